"""Every kind of finding comes back from its folder as it was, and what is damaged, newer or foreign is refused."""

import importlib
import json
import pkgutil
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import pyarrow as pa
import pytest
import torch

import chainwright
from chainwright import tasks
from chainwright._errors import BadInput
from chainwright._finding import SCHEMA_VERSION, Finding
from chainwright._registry import load_all
from chainwright._tables import Tables
from chainwright.diagnose import (
    Alternatives,
    BridgeGroups,
    Emergence,
    ErrorTable,
    FlowContrast,
    FlowStages,
    HeadCheck,
    HeadComparison,
    HeadEvidence,
    HeadRoles,
    IterationOverlap,
    IterationScores,
    IterationSettings,
    KnockoutEffects,
    LogitFlow,
    LogitLens,
    MarkedQuery,
    RoleFinding,
    SlotContexts,
    StepCauses,
    StepGroups,
    StepSaliency,
    compare_heads,
    compare_steps,
    first_errors,
    flow_contrast,
    flow_stages,
    head_roles,
    iteration_overlap,
    iteration_scores,
    knockout_effects,
    logit_flow,
    logit_lens,
    step_causes,
    step_saliency,
)
from chainwright.diagnose.curves import Curves, curves
from chainwright.diagnose.flow.facts import FactAnswers
from chainwright.diagnose.pivots.completers import GoldChain
from chainwright.diagnose.pivots.config import PivotConfig
from chainwright.diagnose.pivots.finding import Pivots
from chainwright.diagnose.pivots.run import pivots
from chainwright.engines.check import EngineCheck
from chainwright.evaluation.accuracy import Accuracy, evaluate
from chainwright.evaluation.comparison import Comparison, compare
from chainwright.evaluation.flips import Flips, flips
from chainwright.evaluation.samples import SampleAccuracy, evaluate_samples
from chainwright.lab import IterationConfig
from chainwright.lab.iteration import held_out_sets, measure
from chainwright.lab.iteration_model import new_iteration_model
from chainwright.models import load_model
from chainwright.repair import Candidates
from chainwright.reproduce.back_attention.finding import BackAttentionFinding
from chainwright.scoring import score_all
from chainwright.traces import Span, Trace
from families import random_ids, tiny
from trace_tokenizers import task_words

TOKENS = torch.tensor([5, 17])


def traces() -> list[Trace]:
    problem = tasks.sample("parity", 3, 1)[0]
    texts = (problem.chain, problem.chain.replace("heads", "tails"), "? ?")
    return [Trace.from_text(task_words(), problem.prompt, text, problem=problem) for text in texts]


def roles() -> HeadRoles:
    model, ids = tiny("llama"), random_ids(2, 5)
    right = SlotContexts(ids, torch.ones_like(ids), TOKENS, TOKENS)
    wrong = SlotContexts(ids, torch.ones_like(ids), TOKENS, TOKENS + 1)
    return head_roles(model, right, wrong)


def iteration() -> IterationScores:
    tokenizer = task_words()
    settings = IterationSettings(n_shuffles=9, n_checked=1, n_controls=1)
    twice = [traces()[0]] * 2
    return iteration_scores(tiny("llama", vocab_size=len(tokenizer)), tokenizer, twice, settings=settings)


def emergence() -> Emergence:
    config = IterationConfig(max_length=3, modulus=3, d_model=8, n_held_out=2)
    return measure(new_iteration_model(config), config, held_out_sets(config), 0, 2.5)


def candidates() -> Candidates:
    row = {"layer": 0, "head": 1, "fixed": 0.5, "kept": 0.75, "rectification": 0.25, "types": ["clf: x"]}
    return Candidates(
        heads=[[0, 1]], rows=[{**row, "is_chosen": True}], coverage=[0.5], any_head=0.5, types={"clf: x": [[0, 1]]},
        n_errors=2, n_right=4,
    )  # fmt: skip


def stepped() -> Trace:
    steps = [Span(0, 4), Span(4, 7), Span(7, 9)]
    return Trace(random_ids(1, 9)[0], steps[0], steps[1], steps[2], steps)


def engine_check() -> EngineCheck:
    row = {"part": "parity-006-0", "n_traces": 6, "n_checked": 6, "n_tokens": 200, "engine_logprob": -0.1,
           "local_logprob": -0.1, "difference": 0.001, "largest": 0.01, "n_text": 0}  # fmt: skip
    return EngineCheck(engine="reasoner at x", tolerance=0.05, rows=[row], config={}, provenance={})


def step_groups() -> StepGroups:
    problem = tasks.sample("parity", 3, 1, rendering="short")[0]
    model, tokenizer = load_model("reasoner")
    wrong = (
        problem.chain.replace("flips", "stays") if "flips" in problem.chain else problem.chain.replace("stays", "flips")
    )
    both = [Trace.from_text(tokenizer, problem.prompt, text, problem=problem) for text in (problem.chain, wrong)]
    return compare_steps(both, step_saliency(model, both), n_resamples=5)


def bridge_groups() -> BridgeGroups:
    row = {"segment": "thinking", "layer": 0, "n": 1, "right": 0.5, "wrong": 0.25, "difference": -0.25, "low": -0.25}
    row |= {"high": -0.25, "p": 0.5, "head": 0, "head_right": 0.5, "head_wrong": 0.25}
    mass = torch.tensor([[[0.5]]])
    return BridgeGroups(right=mass, wrong=mass / 2, segments=["thinking"], rows=[row], n_unmatched=0)


def reasoner_traces() -> list[Trace]:
    problem, (_, tokenizer) = tasks.sample("parity", 3, 1, rendering="short")[0], load_model("reasoner")
    swapped = problem.chain.replace("heads", "x").replace("tails", "heads").replace("x", "tails")
    texts = (problem.chain, swapped)
    return [Trace.from_text(tokenizer, problem.prompt, text, problem=problem) for text in texts]


def fact_answers() -> FactAnswers:
    row = {"relation": "capital", "hops": 1, "prompt": "The capital of France is", "answer": "Paris", "said": "Paris"}
    return FactAnswers(answers=[{**row, "outcome": "e2", "are_known": True}])


def pivots_of_a_wrong_trace() -> Pivots:
    model, tokenizer = load_model("reasoner")
    (wrong,) = [trace for trace in reasoner_traces() if not trace.is_correct]
    config = PivotConfig(temperature=1.0)
    return pivots(model, tokenizer, wrong, config=config, completer=GoldChain(tokenizer), progress=False)


def alternatives() -> Alternatives:
    return Alternatives(
        trace=torch.tensor([0]),
        position=torch.tensor([4]),
        top_ids=torch.tensor([[5, 6]]),
        p_top=torch.tensor([[0.75, 0.25]]),
        expected_ids=torch.tensor([6]),
        p_expected=torch.tensor([0.25]),
        token_strs={"5": "a", "6": "é"},
    )


def evidence() -> HeadEvidence:
    return HeadEvidence(
        task="parity",
        error_type="name recall",
        heads=[[1, 1]],
        sites=[[0, 4]],
        is_erroneous=torch.tensor([True]),
        is_seen=torch.tensor([False]),
        right_ids=torch.tensor([6]),
        p_right=torch.tensor([[0.25, 0.5]]),
        top_ids=torch.tensor([[[5], [6]]]),
        p_top=torch.tensor([[[0.75], [0.5]]]),
        token_strs={"5": "a", "6": "b"},
    )


def back_attention_finding() -> BackAttentionFinding:
    parts = ("one hop", "held_out", "new first fact", "new second fact", "seen", "e2", "r2(e1)")
    row = {"variant": "no change", "parameters": 0, "seeds": 1, **dict.fromkeys(parts, 0.5)}
    return BackAttentionFinding(rows=[row])


MAKERS: dict[type[Finding], Callable[[], Finding]] = {
    Accuracy: lambda: evaluate(traces()),
    Alternatives: alternatives,
    BackAttentionFinding: back_attention_finding,
    BridgeGroups: bridge_groups,
    Candidates: candidates,
    Curves: lambda: curves(reasoner_traces(), score_all(load_model("reasoner").model, reasoner_traces())),
    Comparison: lambda: compare({"plain": traces(), "again": traces()}),
    Emergence: emergence,
    ErrorTable: lambda: first_errors(traces()),
    FactAnswers: fact_answers,
    Flips: lambda: flips({"plain": traces(), "again": traces()}, load_model("reasoner").tokenizer),
    FlowContrast: lambda: flow_contrast(
        tiny("llama"), {"one": [MarkedQuery(random_ids(1, 4)[0], 7, (1,), (3,), 9)]}, list("abcd"), "7 over 9"
    ),
    FlowStages: lambda: flow_stages(tiny("llama"), [MarkedQuery(random_ids(1, 6)[0], 7, (1,), (3,))], n_neurons=5),
    HeadComparison: lambda: compare_heads(roles(), roles()),
    HeadEvidence: evidence,
    HeadRoles: roles,
    RoleFinding: lambda: RoleFinding.of("clf", "word recall", roles(), HeadCheck([1, 2], 0.5, 1.0, 4, 6)),
    IterationOverlap: lambda: iteration_overlap(iteration(), torch.arange(12.0).reshape(3, 4)),
    IterationScores: iteration,
    KnockoutEffects: lambda: knockout_effects(tiny("llama"), random_ids(2, 5), TOKENS, method="screened"),
    LogitFlow: lambda: logit_flow(tiny("llama"), random_ids(1, 6), 7, n_neurons=5, n_traced=3),
    LogitLens: lambda: logit_lens(tiny("gpt2"), random_ids(2, 5), TOKENS),
    Pivots: pivots_of_a_wrong_trace,
    SampleAccuracy: lambda: evaluate_samples(traces()),
    StepCauses: lambda: step_causes(tiny("llama"), [stepped()], n_pairs=3),
    Tables: lambda: Tables(title="all", tables={"one": [{"a": 1, "b": None}], "two": []}, notes=["so"]),
    StepGroups: step_groups,
    EngineCheck: engine_check,
    StepSaliency: lambda: step_saliency(tiny("llama"), (random_ids(1, 9)[0], [(0, 4), (4, 9)])),
}
every_kind = pytest.mark.parametrize("kind", MAKERS, ids=lambda kind: kind.__name__)


@dataclass(frozen=True, kw_only=True)
class Small(Finding):
    """A finding for the tests of the store alone."""

    numbers: torch.Tensor
    words: list[str]

    def summary(self) -> str:
        return " ".join(self.words)

    def to_frame(self) -> pa.Table:
        return pa.table({"n": self.numbers.flatten().tolist()})


def small(value: float = 1.0) -> Small:
    return Small(numbers=torch.full((2, 2), value), words=["a", "é"], config={"n": 3}, provenance={"model": "tiny"})


def same(got: Finding, want: Finding) -> None:
    assert type(got) is type(want)
    for f in fields(want):
        ours, theirs = getattr(got, f.name), getattr(want, f.name)
        if isinstance(theirs, torch.Tensor):
            assert ours.dtype == theirs.dtype and ours.device.type == "cpu", f.name
            off = (ours.double() - theirs.double()).abs()
            assert torch.equal(ours, theirs), f"{f.name}: max {float(off.max()):.3g}, mean {float(off.mean()):.3g}"
        else:
            assert ours == theirs, f.name


def test_no_kind_is_forgotten() -> None:
    for module in pkgutil.walk_packages(chainwright.__path__, "chainwright."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    own = {kind for kind in _below(Finding) if kind.__module__.startswith("chainwright.")}
    assert own == set(MAKERS) == set(load_all("finding").values())


def _below(kind: type[Finding]) -> list[type[Finding]]:
    return [below for sub in kind.__subclasses__() for below in (sub, *_below(sub))]


@every_kind
def test_every_kind_comes_back(tmp_path: Path, kind: type[Finding]) -> None:
    made = MAKERS[kind]()
    folder = made.save(tmp_path / "deep" / "it")
    assert sorted(p.name for p in folder.iterdir()) == ["result.json", "tensors.safetensors"]
    same(kind.load(folder), made)
    same(Finding.load(str(folder)), made)
    assert kind.load(folder).summary() == made.summary()
    assert kind.load(folder).to_frame() == made.to_frame()
    assert sorted(p.name for p in folder.parent.iterdir()) == ["it"]
    record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert record["schema_version"] == SCHEMA_VERSION and record["kind"] == kind.__name__


@every_kind
def test_the_same_finding_is_the_same_bytes(tmp_path: Path, kind: type[Finding]) -> None:
    for name in ("a", "b"):
        MAKERS[kind]().save(tmp_path / name)
    for file in ("result.json", "tensors.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_tensors_that_share_memory_or_gradients(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4).requires_grad_()
    made = Small(numbers=whole.T[1:3], words=[])
    got = Small.load(made.save(tmp_path / "a"))
    assert got.numbers.tolist() == whole.T[1:3].tolist() and not got.numbers.requires_grad


def test_nothing_is_replaced_unless_asked(tmp_path: Path) -> None:
    folder = small(1.0).save(tmp_path / "a")
    with pytest.raises(BadInput, match=r"a exists; pass overwrite=True or choose another folder"):
        small(2.0).save(folder)
    assert Small.load(folder).numbers[0, 0] == 1.0
    small(2.0).save(folder, overwrite=True)
    assert Small.load(folder).numbers[0, 0] == 2.0
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_is_no_finding_is_not_replaced_even_if_asked(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("also mine")
    for name in ("mine", "file"):
        with pytest.raises(BadInput, match="holds no finding, so it is not replaced"):
            small().save(tmp_path / name, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "also mine"


def test_a_finding_put_aside_by_a_killed_run_is_still_read(tmp_path: Path) -> None:
    folder = small(1.0).save(tmp_path / "a")
    folder.rename(tmp_path / ".a.12-0123abcd.old")
    assert Small.load(folder).numbers[0, 0] == 1.0


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, SCHEMA_VERSION - 1, None, "1"])
def test_other_schemas_are_refused_with_both_versions(tmp_path: Path, version: object) -> None:
    folder = small().save(tmp_path / "a")
    record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    (folder / "result.json").write_text(json.dumps(record | {"schema_version": version}), encoding="utf-8")
    with pytest.raises(BadInput, match=rf"has schema version {version}, this Chainwright reads {SCHEMA_VERSION}"):
        Small.load(folder)


def test_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    folder = small().save(tmp_path / "a")
    with pytest.raises(BadInput, match="a holds a Small, not a Accuracy"):
        Accuracy.load(folder)
    record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    (folder / "result.json").write_text(json.dumps(record | {"kind": "Larger"}), encoding="utf-8")
    with pytest.raises(BadInput, match="a holds a Larger, not a Finding"):
        Finding.load(folder)


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    whole = small().save(tmp_path / "whole")

    def copy(name: str) -> Path:
        return Path(shutil.copytree(whole, tmp_path / name))

    with pytest.raises(BadInput, match=r"There is no file .*result\.json"):
        Small.load(tmp_path / "none")
    folder = copy("no tensors")
    (folder / "tensors.safetensors").unlink()
    with pytest.raises(BadInput, match=r"tensors\.safetensors is missing or damaged"):
        Small.load(folder)
    folder, content = copy("cut"), (whole / "tensors.safetensors").read_bytes()
    for n in range(0, len(content), 7):
        (folder / "tensors.safetensors").write_bytes(content[:n])
        with pytest.raises(BadInput, match=r"tensors\.safetensors is missing or damaged"):
            Small.load(folder)
    folder = copy("json")
    for text in ("", "{", "[]", "3", "null", "{}", '{"schema_version": 1}'):
        (folder / "result.json").write_text(text)
        with pytest.raises(BadInput):
            Small.load(folder)
    record = json.loads((whole / "result.json").read_text(encoding="utf-8"))
    for values in ({}, {"words": [], "colour": "blue"}, [], None):
        (folder / "result.json").write_text(json.dumps(record | {"values": values}))
        with pytest.raises(BadInput, match="do not make a Small"):
            Small.load(folder)


def test_no_pickle_is_ever_written(tmp_path: Path) -> None:
    for path in small().save(tmp_path / "a").iterdir():
        assert not path.read_bytes().startswith((b"\x80", b"PK"))
