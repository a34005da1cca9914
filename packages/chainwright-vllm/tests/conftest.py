"""One engine of vLLM for all tests, with little memory: prompts come in chunks and requests are preempted.

With RUNNER=v2 in the environment it has vLLM's second model runner, which needs Triton. Triton has no CPU backend here,
so its kernels run in Triton's interpreter, and vLLM is made to believe in a backend. With COMPILED=1 the model is
compiled, for the tests that take no hooks away.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
}
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
IS_V2 = os.environ.get("RUNNER") == "v2"
if IS_V2:
    os.environ |= {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"}
    from triton.backends import backends

    driver = SimpleNamespace(is_active=lambda: True)
    backends["cpu"] = SimpleNamespace(driver=driver, compiler=None)

import torch  # noqa: E402
from wider_heads import reasoner, widen  # noqa: E402

import chainwright as cw  # noqa: E402
from chainwright import KnockOut  # noqa: E402

Ask = Callable[..., list[Any]]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bundled reasoner with heads that vLLM's CPU backend takes."""
    return widen(reasoner(), tmp_path_factory.mktemp("models") / "reasoner-32")


@pytest.fixture(scope="session")
def engine(folder: Path) -> Any:
    """Return a `vllm.LLM` with room for 640 tokens, of which a pass takes at most 48."""
    from vllm import LLM

    return LLM(
        str(folder),
        dtype="float32",
        enforce_eager=os.environ.get("COMPILED") != "1",
        max_model_len=256,
        max_num_seqs=8,
        max_num_batched_tokens=48,
        block_size=32,
        num_gpu_blocks_override=20,
        enable_prefix_caching=True,
    )


@pytest.fixture(scope="session")
def core(engine: Any) -> Any:
    """Return what runs in the engine: `.scheduler` and, of its worker, `.runner`."""
    core = engine.llm_engine.engine_core.engine_core
    core.runner = core.model_executor.driver_worker.worker.model_runner
    assert (".gpu.model_runner" in type(core.runner).__mro__[1].__module__) == IS_V2
    return core


@pytest.fixture(scope="session")
def ask(engine: Any) -> Ask:
    """Return a function that sends requests in one batch."""
    from vllm import SamplingParams

    def send(prompts: Sequence[Any], wishes: Sequence[Any], max_tokens: int = 24, **settings: Any) -> list[Any]:
        params = [
            SamplingParams(
                **{"temperature": 0, "max_tokens": max_tokens, "logprobs": 0, **settings},
                extra_args=None if wish is None else {"chainwright": wish},
            )
            for wish in wishes
        ]
        return engine.generate([{"prompt_token_ids": list(ids)} for ids in prompts], params, use_tqdm=False)

    return send


@pytest.fixture(scope="session")
def plain_model() -> Any:
    """Return the bundled reasoner and its tokenizer in Transformers."""
    return cw.load_model("reasoner")


@pytest.fixture(scope="session")
def prompts(plain_model: Any) -> list[list[int]]:
    """Return the beginnings of eight chains of 80 tokens, more than a pass takes."""
    _, tokenizer = plain_model
    problems = [*cw.tasks.sample("clf", 16, 4, seed=5), *cw.tasks.sample("parity", 16, 4, seed=5)]
    return [tokenizer(f"{problem.prompt}{problem.chain}")["input_ids"][:80] for problem in problems]


@pytest.fixture(scope="session")
def expected(plain_model: Any) -> Callable[..., list[int]]:
    """Return a function that generates with Transformers and Chainwright's KnockOut."""
    model, _ = plain_model

    def generate(ids: Sequence[int], heads: Any = None, n: int = 24, **how: Any) -> list[int]:
        edits = cw.edit(model, KnockOut(heads, **how)) if heads else contextlib.nullcontext()
        prompt = torch.tensor([list(ids)])
        with edits, torch.no_grad():
            out = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=n, do_sample=False, pad_token_id=0
            )
        return out[0, len(ids) :].tolist()

    return generate
