"""`reproduce tcr --plan` on the published shapes of the paper's models, which need not be there."""

import json
from pathlib import Path
from typing import Any

import pytest

from chainwright.reproduce.tcr.config import WAYS, ReproduceTCRConfig
from chainwright.reproduce.tcr.estimate import estimate
from chainwright.tasks.cells import fit_cells
from command_line import call

_COMMON: dict[str, Any] = {"dtype": "bfloat16", "tie_word_embeddings": False}
# config.json as published, without what does not change the shape; and the published number of weights
PAPERS: dict[str, tuple[dict[str, Any], float]] = {
    "Qwen2.5-7B-Instruct": (
        {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 3584,
         "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
         "vocab_size": 152064},
        7.61e9,
    ),
    "Phi-3-mini-4k-instruct": (
        {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_size": 3072,
         "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3"},
         "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
         "vocab_size": 32064, "pad_token_id": 32000},
        3.82e9,
    ),
    "Meta-Llama-3-8B-Instruct": (
        {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
         "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
         "vocab_size": 128256},
        8.03e9,
    ),
    "Qwen3-8B": (
        {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 4096,
         "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
         "head_dim": 128, "vocab_size": 151936},
        8.2e9,
    ),
}  # fmt: skip


def config_folder(folder: Path, name: str) -> Path:
    """Write the published config.json of a model, and nothing else."""
    place = folder / name
    place.mkdir()
    (place / "config.json").write_text(json.dumps({**_COMMON, **PAPERS[name][0]}))
    return place


def asked(model: str, **changes: Any) -> ReproduceTCRConfig:
    given = {"hops": fit_cells("all", None, "natural"), "ways": WAYS, "variants": (),
             "fit_hops": fit_cells("parity,mdm,llc,clf,moas", None, "natural"), "rendering": "natural"}  # fmt: skip
    return ReproduceTCRConfig(model=model, **{**given, **changes})


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_models_are_planned_from_their_config_alone(tmp_path: Path, name: str) -> None:
    found = estimate(asked(str(config_folder(tmp_path, name))))
    assert found.n_parameters == pytest.approx(PAPERS[name][1], rel=0.02)
    assert found.weight_gb == pytest.approx(2 * found.n_parameters / 1e9), "bfloat16"
    # 50 hops of parity with a worked example: some 570 tokens asked, 700 answered, half as many more allowed
    assert 1500 < found.longest < 2000
    shape, per_token = PAPERS[name][0], found.cache_gb * 1e9
    d_head = shape.get("head_dim", shape["hidden_size"] // shape["num_attention_heads"])
    one = 2 * 2 * shape["num_hidden_layers"] * shape["num_key_value_heads"] * d_head
    assert per_token <= one * 2**15 * 1.05, "as many tokens at once as generate allows"
    assert found.n_answers == 21 * 8 * 3 * len(WAYS)
    # one batch of up to 40 rows a (task, seed, way), 700 steps at most, 22 to 60 ms each
    assert 0.3 < found.decode_hours < 3 and 0.5 < found.fit_hours < 10
    assert found.memory_gb < 80, "fits one large card"


def test_the_estimate_follows_what_is_asked(tmp_path: Path) -> None:
    folder = str(config_folder(tmp_path, "Phi-3-mini-4k-instruct"))
    whole = estimate(asked(folder))
    assert estimate(asked(folder, n=16)).n_answers == 2 * whole.n_answers
    faster = estimate(asked(folder), bandwidth_gbs=1e6, tflops=300.0)
    assert faster.fit_hours < whole.fit_hours and faster.decode_hours < whole.decode_hours
    n_steps = 3.6e3 * faster.decode_hours / (32 * 0.8e-3)
    assert 1e4 < n_steps < 2e5, "then starting the layers is all that takes time"
    assert estimate(asked(folder), dtype="float32").weight_gb == pytest.approx(2 * whole.weight_gb)
    alone, voting = (estimate(asked(folder, ways=ways)).decode_hours for ways in (("none",), ("TCR",)))
    assert alone < voting < 2 * alone
    removing = estimate(asked(folder, ways=("remove",))).decode_hours
    assert removing == pytest.approx(alone)
    made = estimate(asked(folder, ways=("none", "TCR"), repair="somewhere"))
    assert made.fit_hours == 0.0 and "nothing to fit" in made.summary()


def test_the_command_prints_it_and_runs_nothing(tmp_path: Path) -> None:
    folder = config_folder(tmp_path, "Qwen3-8B")
    code, printed = call("reproduce", "tcr", "-m", folder, "--plan", "-o", tmp_path / "study")
    assert code == 0 and "8,190,735,360 weights. Memory about" in printed and "GB/s" in printed
    assert not (tmp_path / "study").exists()
    (folder / "config.json").write_text('{"model_type": "no-such-type"}')
    code, printed = call("reproduce", "tcr", "-m", folder, "--plan")
    assert code == 2 and "cannot be read, so nothing can be planned" in printed
