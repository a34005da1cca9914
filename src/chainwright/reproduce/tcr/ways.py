"""The ways of decoding that the TCR study compares, as repairs made of the parts of the fitted one."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from chainwright import tasks
from chainwright._errors import BadInput
from chainwright.prompts.prompt import prompt_ids
from chainwright.repair.base import Repair
from chainwright.repair.composed import Composed
from chainwright.repair.stepflow.repair import StepFlow
from chainwright.repair.tcr.baselines import BestHead, DoLa, RemoveAndResample
from chainwright.repair.tcr.candidate_heads import Candidates
from chainwright.repair.tcr.detector import EntropyDetector, GoldDetector
from chainwright.repair.tcr.repair import TCR
from chainwright.repair.tcr.selector import FixedSelector, NeverAbstains, RandomSelector, Selector
from chainwright.repair.tcr.token_repair import Detector
from chainwright.repair.tcr.training_data import lesson_ids


def repair_for(
    way: str, tcr: TCR, n_layers: int, candidates: Candidates | None, tau: float, gold: GoldDetector | None
) -> Repair:
    """Return the repair of a way of decoding.

    Args:
        way: One of `WAYS` but "none".
        tcr: The fitted repair, whose heads, layers and end tokens all ways share.
        n_layers: Number of layers of the model.
        candidates: How the heads were found; needed by "best single head" alone.
        tau: Threshold of the entropy detector, nats.
        gold: Detector that knows the right chains; needed by the ways in `GOLD` alone.
    """
    if way == "DoLa":
        return DoLa(n_layers, end_ids=tcr.end_ids)
    what, _, flagged_by = way.partition(", ")
    detector = _detector(flagged_by, tcr, tau, gold)
    if what == "remove":
        return RemoveAndResample(detector, layers=tcr.layers, lens_layers=tcr.lens_layers, end_ids=tcr.end_ids)
    if what == "best head":
        assert isinstance(detector, GoldDetector)
        return BestHead(tcr.heads, detector, end_ids=tcr.end_ids)
    return _with(tcr, detector, way, candidates)


def decoding_with(names: str) -> Repair:
    """Return a saved repair, or several that decode together, their names joined by "+".

    Raises:
        BadInput: There is no such repair, or two of them cannot decode together.
    """
    parts = [name.strip() for name in names.split("+")]
    repairs = [StepFlow() if name == "stepflow" else Repair.from_pretrained(name) for name in parts]
    return repairs[0] if len(repairs) == 1 else Composed(repairs)


def _detector(name: str, tcr: TCR, tau: float, gold: GoldDetector | None) -> Detector:
    if name == "gold":
        assert gold is not None, "ways in GOLD come with their detector"
        return gold
    return EntropyDetector(tau) if name == "entropy" else tcr.detector


def _with(tcr: TCR, detector: Detector, way: str, candidates: Candidates | None) -> TCR:
    """Return the repair with another detector and another decision.

    With entropy or gold flags it is the paper's: three heads vote.
    """
    selector: Selector = tcr.selector
    config, n = tcr.config, len(tcr.heads)
    if way == "TCR, vote":
        config = config.replace(decision="vote")
    elif way == "TCR, entropy":
        config = config.replace(decision="vote", n_votes=3)
    elif way == "TCR, gold":
        selector, config = NeverAbstains(tcr.selector), config.replace(decision="vote", n_votes=3)
    elif way == "random head":
        selector, config = RandomSelector(n), config.replace(decision="vote", n_votes=1)
    elif way == "best single head":
        selector, config = FixedSelector(n, [best_single(tcr, candidates)]), config.replace(decision="vote", n_votes=1)
    return TCR(
        tcr.heads, selector, detector,
        config=config, layers=tcr.layers, lens_layers=tcr.lens_layers, end_ids=tcr.end_ids, verifier=tcr.verifier,
    )  # fmt: skip


def best_single(tcr: TCR, candidates: Candidates | None) -> int:
    """Return which of the heads fixes most and breaks least on the fitting problems."""
    assert candidates is not None, "the config refuses this way without a fit"
    worth = {(r["layer"], r["head"]): r["fixed"] + r["kept"] for r in candidates.rows}
    return max(range(len(tcr.heads)), key=lambda k: worth.get(tcr.heads[k], -1.0))


def gold_detector(tokenizer: PreTrainedTokenizerBase, problems: Sequence[tasks.Problem]) -> GoldDetector:
    """Return the detector that knows the right chains of these problems.

    Raises:
        BadInput: A problem in another rendering than the short one, which has many right wordings.
    """
    if any(problem.rendering != "short" for problem in problems):
        raise BadInput(
            "Right chains are known from problems only in the short rendering, in which a chain has one right wording; "
            "take the first errors of traces instead (GoldDetector.of_traces)."
        )
    return GoldDetector({tuple(prompt_ids(tokenizer, p)): lesson_ids(tokenizer, p) for p in problems})
