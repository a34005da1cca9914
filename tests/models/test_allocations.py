"""What long traces and large vocabularies make of the memory: no hot path may build a T x T or a T x V tensor.

Every tensor with memory of its own is recorded while a path runs on a tiny model; with T tokens and V = T the largest
that may be there is far below T x T, once the constants that bound pieces are set lower.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from chainwright import StepFlow, edit, generate, knockout_effects, score, step_saliency
from chainwright.decode.sampling import Sampling
from chainwright.diagnose import alternatives
from chainwright.diagnose.contexts import SlotContexts
from chainwright.diagnose.flow.attribution import logit_flow
from chainwright.diagnose.heads.lens import answer_writing_scores
from chainwright.diagnose.heads.role_sweep import RolesConfig
from chainwright.diagnose.heads.roles import head_roles
from chainwright.diagnose.pivots.continuations import Row, Trunks, continued
from chainwright.edits import KnockOut
from chainwright.models.anatomy import anatomy
from chainwright.models.load import load_tokenizer
from chainwright.repair import TCR, BackAttention, EntropyDetector, TCRConfig
from chainwright.repair.back_attention.training import AnswerTraining, train
from chainwright.repair.tcr.training_data import Lesson, outcomes
from chainwright.scoring import score_all
from chainwright.tasks import Problem
from chainwright.traces import Trace

T = V = 1536
LARGEST = T * T // 4
PIECES = 2**18  # what bounds logits and weights that are there at once
TOKENIZER = load_tokenizer("reasoner")
IDS = torch.randint(5, 100, (T,), generator=torch.Generator().manual_seed(0))
PROMPT = " ".join(["start"] * T)


def live_bytes():
    path = Path(__file__).parents[2] / "benchmarks" / "live_bytes.py"
    spec = importlib.util.spec_from_file_location("live_bytes", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LiveBytes


def model(dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=V,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2 * T,
    )
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()


def trace(n: int = T) -> Trace:
    return Trace.from_ids(TOKENIZER, IDS[:n], T // 2)


def contexts(seed: int, n_padding: int = 0) -> SlotContexts:
    ids = torch.randint(5, 100, (2, T), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[1, :n_padding] = 0
    return SlotContexts(ids, mask, ids[:, 0], (ids[:, 0] + seed) % 100)


class Chooser:
    reads_hidden = False

    def scores(self, seen) -> Tensor:
        return torch.arange(3.0).flip(0).expand(len(seen.contexts), 3)


def tcr() -> TCR:
    return TCR([(0, 0), (1, 1)], Chooser(), EntropyDetector(0.0), config=TCRConfig(n_votes=2))


def decoded(m, repair=None) -> object:
    return generate(m, TOKENIZER, [PROMPT], max_new_tokens=3, raw=True, progress=False, repair=repair)


def knocked_out(m) -> object:
    with edit(m, KnockOut({(0, 1)})):
        return decoded(m)


def chains(m) -> object:
    lessons = [Lesson(IDS.tolist(), T // 2, "t", ["structure"] * (T // 2))]

    def doubtful(entropy: Tensor, is_right: Tensor, features: Tensor) -> Tensor:
        return torch.arange(len(entropy)) % 2 == 0

    return outcomes(anatomy(m), lessons, [(0, 0), (1, 1)], layers=(0, 1), doubtful=doubtful)


def roles(m, method: str) -> object:
    return head_roles(m, contexts(0, 7), contexts(1, 7), config=RolesConfig(method=method))


def long_continuations(m) -> object:
    rows = [Row(tuple(IDS.tolist()), i, 3) for i in range(3)]
    return continued(Trunks(anatomy(m)), rows, sampling=Sampling(temperature=1.0), seed=0, ends=set())


def taught_back(m) -> object:
    # short questions and a vocabulary that is large beside them
    repair = BackAttention.new(m, source=0)
    heads = torch.nn.ModuleList([head.to(m.dtype) for head in repair.heads]).requires_grad_(True)
    question = Problem(task="t", hops=1, prompt=" ".join(["start"] * 60), chain="", slots=(), answer="7")
    with edit(m, repair._edit_of(list(heads))):
        return train(m, TOKENIZER, heads.parameters(), [question], AnswerTraining(n_steps=1, batch_size=16))


def maps(m) -> object:
    steps = [(i, min(i + 16, T)) for i in range(0, T, 16)]
    return step_saliency(m, (IDS, steps), block_bytes=4 * PIECES)


PATHS: dict[str, Callable] = {
    "scores": lambda m: score(m, trace()),
    "alternatives": lambda m: alternatives(m, TOKENIZER, [trace()]),
    "scores of unequal traces": lambda m: score_all(m, [trace(), trace(T - 9)]),
    "scores with StepFlow": lambda m: score(m, trace(), repair=StepFlow(style="plain", tokenizer=TOKENIZER)),
    "scores with TCR": lambda m: score(m, Trace.from_ids(TOKENIZER, IDS, T - 8), repair=tcr()),
    "scores with back attention": lambda m: score(m, trace(), repair=BackAttention.new(m, source=0)),
    "decoding": decoded,
    "decoding without a head": knocked_out,
    "decoding with StepFlow": lambda m: decoded(m, StepFlow(style="plain", tokenizer=TOKENIZER)),
    "decoding with TCR": lambda m: decoded(m, tcr()),
    "decoding with back attention": lambda m: decoded(m, BackAttention.new(m, source=0)),
    "continuations": long_continuations,
    "knockouts": lambda m: knockout_effects(m, IDS[None], IDS[:1]),
    "knockouts at the last position": lambda m: knockout_effects(m, IDS[None], IDS[:1], positions="last"),
    "knockouts by gradient": lambda m: knockout_effects(m, IDS[None], IDS[:1], method="gradient"),
    "exact roles in unequal contexts": lambda m: roles(m, "exact"),
    "screened roles in unequal contexts": lambda m: roles(m, "screened"),
    "direct writing": lambda m: answer_writing_scores(m, IDS[None], IDS[:1]),
    "right chains without heads": chains,
    "step maps": maps,
    "logit flow": lambda m: logit_flow(m, IDS, 7, n_neurons=5, n_traced=4, depth=1, max_rows=64),
    "training back attention": taught_back,
}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for where in ("scoring.LOGITS_AT_ONCE", "repair.tcr._teacher_forcing.LOGITS_AT_ONCE",
                  "edits.bridge._WEIGHTS_AT_ONCE", "edits.back_attention._WEIGHTS_AT_ONCE"):  # fmt: skip
        monkeypatch.setattr(f"chainwright.{where}", PIECES)
    # as if 1,536 tokens were long
    monkeypatch.setattr("chainwright.scoring._LONG", T - 100)
    yield


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_as_large_as_tokens_times_tokens(path: str) -> None:
    m = model()
    anatomy(m)  # finding the parts is no part of the path
    with live_bytes()() as seen:
        PATHS[path](m)
    large = {(one.operation, one.shape, one.dtype) for one in seen.made if prod(one.shape) >= LARGEST}
    assert not large, sorted(map(str, large))


def test_a_bfloat16_model_is_never_widened_as_a_whole() -> None:
    m = model(torch.bfloat16)
    anatomy(m)
    with live_bytes()(at_least=0) as seen:
        score(m, trace())
        decoded(m)
    table = (V, 16)  # the embedding and the output head
    assert not [one for one in seen.made if one.shape == table and one.dtype == torch.float32]
    wide = [prod(one.shape) for one in seen.made if one.dtype == torch.float32 and one.shape[-1:] == (V,)]
    assert wide and max(wide) <= PIECES + V


def test_it_sees_a_mask_of_every_token_against_every_other() -> None:
    m = model()
    anatomy(m)
    with live_bytes()() as seen:
        score_all(m, [trace(), trace(T - 9)], batch_size=2)  # padded, because it was asked for
    assert any(prod(one.shape) >= LARGEST for one in seen.made)


@pytest.mark.gpu
@pytest.mark.parametrize("path", ["scores", "decoding", "step maps", "knockouts"])
def test_the_same_on_a_gpu_in_bfloat16(path: str) -> None:
    m = model(torch.bfloat16).cuda()
    anatomy(m)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    PATHS[path](m)
    assert torch.cuda.max_memory_allocated() - before < 2 * LARGEST * 4 * 4
