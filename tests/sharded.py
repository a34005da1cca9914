"""What each rank of `run_ranks` does: the same with a model that is spread over the ranks and with a whole one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.distributed import DistributedConfig

from chainwright import (
    TCR,
    BackAttention,
    KnockOut,
    Problem,
    Repair,
    StepFlow,
    edit,
    generate,
    head_roles,
    knockout_effects,
    load_model,
    logit_flow,
    logit_lens,
    score,
    step_saliency,
    tasks,
)
from chainwright._errors import ChainwrightError
from chainwright.diagnose import (
    answer_writing_scores,
    bridge_mass,
    correct_contexts,
    erroneous_contexts,
    first_errors,
    iteration_scores,
    step_causes,
)
from chainwright.edits import AttendBack, BackHead, Bridge, Cut, CutAttention, Momentum
from chainwright.models import anatomy, capture
from chainwright.models.fingerprint import fingerprint
from chainwright.models.seam import Handlers, attach
from chainwright.repair import AnswerTraining
from chainwright.repair.tcr.config import CandidateConfig, FitConfig, TrainConfig
from chainwright.traces import LiveSteps, Span, Trace
from families import left_padded, random_ids
from step_runs import Words, cached, rows_of, uncached

STEPS = LiveSteps(Words(), "think")
Check = Callable[[PreTrainedModel], Any]


def whole(folder: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def split(folder: str) -> PreTrainedModel:
    """Return a model with tensor parallelism over all ranks."""
    config = DistributedConfig(tp_plan="auto")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, distributed_config=config).eval()


def differences(folder: str, names: list[str]) -> dict[str, str | float]:
    """Return, for each check, the largest difference between the two models, or what went wrong."""
    one, spread = whole(folder), split(folder)
    found: dict[str, str | float] = {}
    for name in names:
        torch.manual_seed(0)
        want = CHECKS[name](one)
        torch.manual_seed(0)
        try:
            got = CHECKS[name](spread)
        except (ChainwrightError, RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
            import traceback

            found[name] = f"{type(error).__name__}: {str(error)[:200]} {traceback.format_exc()[-1500:]}"
        else:
            found[name] = difference(got, want)
    return found


def difference(got: Any, want: Any) -> str | float:
    """Return the largest difference of numbers, relative to the largest number of a tensor if that is above 1."""
    if isinstance(want, Tensor):
        if got.shape != want.shape or not torch.equal(got.isnan(), want.isnan()):
            return f"shapes {list(got.shape)} and {list(want.shape)}, or other gaps"
        want, got = want.detach().double().nan_to_num(), got.detach().double().nan_to_num()
        return float((got - want).abs().max() / want.abs().max().clamp(min=1)) if want.numel() else 0.0
    if isinstance(want, (list, tuple)):
        if len(got) != len(want):
            return f"lengths {len(got)} and {len(want)}"
        return max((difference(a, b) for a, b in zip(got, want, strict=True)), key=_badness, default=0.0)
    if isinstance(want, float):
        return abs(got - want)
    return 0.0 if got == want else f"{got!r} is not {want!r}"


def _badness(value: str | float) -> float:
    return float("inf") if isinstance(value, str) else value


@torch.no_grad()
def _edited(model: PreTrainedModel, *edits: Any, n_new: int = 0) -> Any:
    rows, _ = rows_of(n_new=18)
    with edit(model, *edits) as touched:
        logits = cached(model, rows, n_new) if n_new else uncached(model, rows)
    return logits, [one.n_sites for one in touched]


def plain(model: PreTrainedModel) -> Any:
    rows, _ = rows_of()
    return uncached(model, rows)


def fingerprints(model: PreTrainedModel) -> Any:
    return fingerprint(model)


def sizes(model: PreTrainedModel) -> Any:
    parts = anatomy(model)
    return parts.n_layers, parts.n_heads, parts.n_kv_heads, parts.d_head, parts.d_model, parts.d_vocab


def knocked_out(model: PreTrainedModel) -> Any:
    rows = [{(0, 2)}, {(1, 0), (1, 3)}, {(2, -1), (0, 1)}]
    return [
        _edited(model, KnockOut({(0, 3), (2, 0)})),
        _edited(model, KnockOut(rows), n_new=5),
        _edited(model, KnockOut({(1, 2)}, positions="last", scale=0.5), n_new=5),
    ]


def cut(model: PreTrainedModel) -> Any:
    return _edited(model, CutAttention([Cut((15, 20), (4, 9)), None, Cut((12, 27), (2, 5))]))


def bridged(model: PreTrainedModel) -> Any:
    single = ((0, 3, 0.6), (2, 0, 0.4))
    question = (6, 9, 4)
    return [
        _edited(model, Bridge((0, 1, 2), STEPS, 0.6, n_question=question)),
        _edited(model, Bridge((), STEPS, heads=single, n_question=question)),
        _edited(model, Bridge((0, 2), STEPS, 0.6), n_new=18),
    ]


def injected(model: PreTrainedModel) -> Any:
    return [
        _edited(model, Momentum((0, 2), STEPS, 1.5, n_question=(6, 9, 4))),
        _edited(model, Momentum((0, 2), STEPS, 1.5), n_new=18),
    ]


def together(model: PreTrainedModel) -> Any:
    edits = (Bridge((1,), STEPS, 0.6), KnockOut({(1, 3)}), Momentum((1, 2), STEPS, 1.5))
    return _edited(model, *edits, n_new=18)


def read_back(model: PreTrainedModel) -> Any:
    torch.manual_seed(0)
    head = BackHead(model.config.hidden_size, 1, (1, 2, 3), d_back=8)
    torch.nn.init.normal_(head.o.weight, std=1.0)
    back = AttendBack([head.requires_grad_(False)])
    return [_edited(model, back), _edited(model, back, KnockOut({(1, 3)}), n_new=5)]


@torch.no_grad()
def handler_of_all_heads(model: PreTrainedModel) -> Any:
    """Run a handler that knows nothing of ranks, beside an edit that runs on the heads of the rank alone."""
    seen = []

    def mixed(call: Any, attend: Any) -> Tensor:
        z = attend(call)
        seen.extend([call.q, call.k, call.v, z])
        return z.flip(2)

    with edit(model, KnockOut({(1, 0)})), attach(model, Handlers({1: (mixed,)})):
        logits = model(random_ids(2, 9)).logits
    return seen, logits


def captured(model: PreTrainedModel) -> Any:
    ids, mask = left_padded([random_ids(1, n, n)[0] for n in (11, 7)])
    with edit(model, KnockOut({(0, 2)})):
        found = capture(model, ids, attention_mask=mask, attention=True, residual=True)
    return [found.z, found.logits, found.attention, found.resid_pre, found.resid_mid, found.resid_post]


def swept(model: PreTrainedModel) -> Any:
    ids, mask = left_padded([random_ids(1, n, n)[0] for n in (23, 21, 21)])
    tokens = torch.tensor([7, 9, 11])
    options: list[dict[str, Any]] = [
        {},
        {"positions": "last"},
        {"method": "gradient"},
        {"method": "screened", "share": 0.5},
    ]
    return [knockout_effects(model, ids, tokens, attention_mask=mask, **each).effect for each in options]


def swept_with_a_beginning(model: PreTrainedModel) -> Any:
    ids = random_ids(3, 26)
    ids[:, :20] = ids[0, :20]
    with edit(model, KnockOut({(0, 1)})):
        edited = knockout_effects(model, ids, torch.tensor([7, 9, 11])).effect
    return knockout_effects(model, ids, torch.tensor([7, 9, 11])).effect, edited


def lens(model: PreTrainedModel) -> Any:
    ids, tokens = random_ids(2, 9), torch.tensor([7, 9])
    return logit_lens(model, ids, tokens).logprob, answer_writing_scores(model, ids, tokens)


def _trace(n_tokens: int = 23, seed: int = 0) -> Trace:
    borders = [0, 5, 6, 10, 13, 17, n_tokens]
    steps = [Span(a, b) for a, b in pairwise(borders)]
    ids = random_ids(1, n_tokens, seed)[0]
    return Trace(ids, steps[0], Span(5, 17), Span(17, n_tokens), steps)


def saliency(model: PreTrainedModel) -> Any:
    with edit(model, KnockOut({(0, 1)})):
        edited = step_saliency(model, _trace()).map
    blocks = step_saliency(model, [_trace(), _trace(31, 1)], block_bytes=2**11)
    span = step_saliency(model, _trace(), target="span")
    return [1000 * each for each in (edited, *(one.map for one in blocks), span.map)], span.loss


def steps_of_attention(model: PreTrainedModel) -> Any:
    causes = step_causes(model, [_trace(), _trace(29, 3)], n_pairs=4, n_bands=1)
    return bridge_mass(model, _trace()), causes.effect


def flow(model: PreTrainedModel) -> Any:
    found = logit_flow(model, random_ids(1, 9)[0], 7, conflict_id=9, n_neurons=20, n_traced=6, n_cells=4)
    values = [v for v in vars(found).values() if isinstance(v, Tensor) and v.is_floating_point()]
    return values


CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        plain, fingerprints, sizes, knocked_out, cut, bridged, injected, together, read_back, handler_of_all_heads,
        captured, swept, swept_with_a_beginning, lens, saliency, steps_of_attention, flow,
    )
}  # fmt: skip


def decoding(n: int, names: list[str]) -> dict[str, str | float]:
    """Return, for the bundled reasoner, how decoding, scores and head roles differ between the two models."""
    one, tokenizer = load_model("reasoner")
    spread = load_model("reasoner", tp_plan="auto").model
    problems = tasks.sample("clf", 13, n, seed=3)
    found: dict[str, str | float] = {}
    for name in names:
        want, got = (DECODED[name](model, tokenizer, problems) for model in (one, spread))
        found[name] = difference(got, want)
    return found


def _traces(repair: Any) -> Any:
    def decoded(model: PreTrainedModel, tokenizer: Any, problems: list[Any]) -> Any:
        used = repair(model, tokenizer)
        traces = generate(model, tokenizer, problems, repair=used, progress=False, max_new_tokens=140)
        changed = 0 if used is None else used.cost.n_changed or 0
        return [trace.response for trace in traces], changed

    return decoded


def _back(model: PreTrainedModel, tokenizer: Any) -> BackAttention:
    torch.manual_seed(0)
    head = BackHead(model.config.hidden_size, 1, (2, 3, 4), d_back=16)
    torch.nn.init.normal_(head.o.weight, std=0.1)
    return BackAttention([head.requires_grad_(False)])


def _scores(model: PreTrainedModel, tokenizer: Any, problems: list[Any]) -> Any:
    trace = generate(model, tokenizer, problems[:1], progress=False, max_new_tokens=40)[0]
    found = []
    for repair in (None, StepFlow((2,), (3,), 0.3, tokenizer=tokenizer)):
        scores = score(model, trace, repair=repair)
        found.append([scores.logprob[1:], scores.entropy[1:]])
    return found


DECODED: dict[str, Callable[[PreTrainedModel, Any, list[Any]], Any]] = {
    "plain": _traces(lambda model, tokenizer: None),
    "stepflow": _traces(lambda model, tokenizer: StepFlow((2,), (3,), 0.3, tokenizer=tokenizer)),
    "tcr": _traces(lambda model, tokenizer: Repair.from_pretrained("tcr-reasoner")),
    "back": _traces(_back),
    "scores": _scores,
}


def refusals(folder: str) -> list[str]:
    """Return what is said of a model of which a weight was spread without Transformers, and of serving a spread one."""
    from chainwright.integrations.server.engine import Engine

    model, tokenizer = load_model("reasoner", tp_plan="auto")
    rank = torch.distributed.get_rank()

    def other_tokens() -> None:
        with torch.no_grad(), edit(model, KnockOut({(0, 1)}), strict=False):
            model(torch.tensor([[3, 4 + rank, 5]]))

    return [
        _said(lambda: anatomy(_by_hand(folder))),
        _said(lambda: Engine(model, tokenizer, {})),
        _said(other_tokens),
    ]


def _by_hand(folder: str) -> PreTrainedModel:
    model, mesh = whole(folder), init_device_mesh("cpu", (2,))
    module = model.model.layers[0].self_attn.o_proj
    module.weight = torch.nn.Parameter(distribute_tensor(module.weight.data, mesh, [Shard(1)]))
    return model


def _said(call: Callable[[], Any]) -> str:
    try:
        call()
    except ChainwrightError as error:
        return str(error)
    return "nothing"


def fitting(names: list[str]) -> dict[str, str | float]:
    """Return how fits and head searches on a whole and on a spread reasoner differ."""
    one, tokenizer = load_model("reasoner")
    spread = load_model("reasoner", tp_plan="auto").model
    traces = generate(one, tokenizer, tasks.sample("clf", 13, 16, seed=7), progress=False)
    found: dict[str, str | float] = {}
    for name in names:
        want, got = (FITTED[name](model, tokenizer, traces) for model in (one, spread))
        found[name] = difference(got, want)
    return found


def _fitted_tcr(model: PreTrainedModel, tokenizer: Any, traces: list[Trace]) -> Any:
    few = CandidateConfig(n_contexts=6, max_heads=3, n_lessons=10)
    config = FitConfig(candidates=few, training=TrainConfig(n_epochs=3), tune_share=0.4)
    repair = TCR.fit(model, tokenizer, traces, config=config)
    return repair.heads, list(repair.tensors().values())


def _fitted_back(model: PreTrainedModel, tokenizer: Any, traces: list[Trace]) -> Any:
    problems = [Problem("own", 1, "clf ./ ./ ?", "", answer, ()) for answer in ("4", "7")]
    training = AnswerTraining(n_steps=4, batch_size=2)
    repair = BackAttention.fit(model, tokenizer, problems, training=training, progress=False)
    return list(repair.tensors().values())


def _roles(model: PreTrainedModel, tokenizer: Any, traces: list[Trace]) -> Any:
    (task, kind) = first_errors(traces).rows[0]["task"], first_errors(traces).rows[0]["error_type"]
    wrong = erroneous_contexts(tokenizer, traces, task, kind, 6)
    right = correct_contexts(traces, wrong, 6)
    roles = head_roles(model, right, wrong)
    return [value for value in vars(roles).values() if isinstance(value, Tensor) and value.is_floating_point()]


def _iteration(model: PreTrainedModel, tokenizer: Any, traces: list[Trace]) -> Any:
    found = iteration_scores(model, tokenizer, traces[:4])
    return [value for value in vars(found).values() if isinstance(value, Tensor) and value.is_floating_point()]


FITTED: dict[str, Callable[[PreTrainedModel, Any, list[Trace]], Any]] = {
    "tcr": _fitted_tcr,
    "back": _fitted_back,
    "roles": _roles,
    "iteration": _iteration,
}
