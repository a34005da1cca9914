"""Fitting TCR: from traces of a model to a repair, with what was measured on the way.

1. Candidate heads from the traces (`candidates`).
2. Every lesson is run once, and at doubtful tokens also without each head: that labels which choices are right.
3. The selector learns to rank the choices, the detector to recognise wrong tokens, the verifier to choose between
   the model's first and second choice.
4. On lessons that none of them has seen, every combination of them is scored by the share of chains that come
   out right: first how many heads vote, then the threshold of the detector. If no threshold beats leaving the model
   alone, it is set where it does least.

Fit and tune lessons are different problems. Accuracy is to be measured on a third set (`chainwright reproduce tcr`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright.decode.run import generate
from chainwright.edits import Head
from chainwright.models.anatomy import Anatomy, anatomy
from chainwright.models.load import end_ids, provenance
from chainwright.prompts.asking import Asking
from chainwright.repair.base import Origin, model_identity
from chainwright.repair.tcr._mlp import Perceptron
from chainwright.repair.tcr._two_best import N_FEATURES
from chainwright.repair.tcr.candidate_heads import Candidates, Roles, find_candidates
from chainwright.repair.tcr.config import FitConfig, TCRConfig
from chainwright.repair.tcr.detector import EntropyDetector, TrainedDetector, fit_detector
from chainwright.repair.tcr.selector import Selector, fit_light_selector
from chainwright.repair.tcr.thresholds import (
    Decided,
    Detection,
    detection,
    exact_share,
    ranking,
    tune_figures,
    tuned_threshold,
    tuned_votes,
)
from chainwright.repair.tcr.token_repair import Detector, Seen
from chainwright.repair.tcr.training_data import Lesson, Outcomes, lessons_of, outcomes
from chainwright.repair.tcr.verifier import Verifier, fit_verifier
from chainwright.tasks.base import Problem
from chainwright.traces import Trace

if TYPE_CHECKING:
    from chainwright.repair.tcr.lora_selector import ClassifierSelector

Say = Callable[[str], None]
Tick = Callable[[int, int], None]
_THRESHOLDS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_TAUS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
_MOST_LENS_LAYERS = 8


class Fitted(NamedTuple):
    """The parts of a repair (`TCR.from_fit` puts them together), and what was measured on tune lessons.

    Attributes:
        heads: The candidate heads.
        selector: Ranks them.
        detector: Flags tokens, at the tuned threshold.
        verifier: Decides between the model's first and second choice; None where heads vote.
        config: How the repair decodes.
        layers: Layers that selector and detector read.
        lens_layers: Layers at which detector and verifier read the two likeliest tokens through the logit lens.
        end_ids: Tokens that end a response.
        origin: The model, and the figures for the card.
        candidates: The heads with their coverage.
        figures: Value of each measure by name.
        tune: Outcomes of the tune lessons, for studies.
    """

    heads: list[Head]
    selector: Selector
    detector: Detector
    verifier: Verifier | None
    config: TCRConfig
    layers: tuple[int, ...]
    lens_layers: tuple[int, ...]
    end_ids: list[int]
    origin: Origin
    candidates: Candidates
    figures: dict[str, float]
    tune: Outcomes


def read_layers(n_layers: int) -> tuple[int, ...]:
    """Return the layers that are read by default: a quarter, a half and three quarters of the way, and the last."""
    return tuple(sorted({max(0, round(n_layers * part) - 1) for part in (0.25, 0.5, 0.75, 1.0)}))


def read_lens_layers(n_layers: int, config: FitConfig) -> tuple[int, ...]:
    """Return the layers that are read through the logit lens: by default, where it is read, at most eight."""
    if config.lens_layers is not None or config.detector != "lens":
        return config.lens_layers or ()
    n_read = min(_MOST_LENS_LAYERS, n_layers)
    return tuple(round((i + 1) * n_layers / n_read) - 1 for i in range(n_read))


def split_lessons(lessons: Sequence[Lesson], tune_share: float) -> tuple[list[Lesson], list[Lesson]]:
    """Return lessons to fit on and lessons to tune on, spread evenly over all of them."""
    every = max(2, round(1 / tune_share))
    fit = [lesson for i, lesson in enumerate(lessons) if i % every]
    return fit, [lesson for i, lesson in enumerate(lessons) if i % every == 0]


def fit_tcr(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    traces: Sequence[Trace],
    *,
    config: FitConfig | None = None,
    roles: Roles | None = None,
    say: Say = lambda line: None,
    tick: Tick = lambda done, total: None,
) -> Fitted:
    """Return the parts of a TCR fitted on traces of a model, with what was measured.

    Args:
        model: A Transformers decoder.
        tokenizer: Its tokenizer.
        traces: Its greedy traces of problems, right and wrong ones.
        config: How to fit.
        roles: Head roles by (task, key error type), where they are known already (`located_roles`).
        say: Called with a line at each stage.
        tick: Called with (how much of the stage is done, of how much).

    Raises:
        BadInput: The traces hold no error or no right token, or have no problems.
    """
    settings = config or FitConfig()
    parts = anatomy(model)
    lessons = lessons_of(tokenizer, traces)
    _check_traces(traces)
    if settings.selector != "light":  # a base that cannot be loaded or cannot read is reported before the long work
        _classifier(model, 1, settings).encoded(traces[0].input_ids.tolist())
    say(f"Locating heads in {len(traces)} traces")
    try:
        candidates = find_candidates(model, tokenizer, traces, config=settings.candidates, roles=roles, tick=tick)
    except BadInput:
        _check_tokens(look(parts, lessons, [], settings, tick))  # may know why
        raise
    say(candidates.summary())
    heads = [(layer, head) for layer, head in candidates.heads]
    fit, tune = split_lessons(lessons, settings.tune_share)
    say(f"Silencing {len(heads)} heads at doubtful tokens of {len(lessons)} chains")
    seen = look(parts, fit, heads, settings, tick)
    _check_tokens(seen)
    say("Training detector, selector and verifier")
    taught = _worth_learning(seen, settings)
    network = fit_detector(seen.doubt[taught], ~seen.is_right[taught], config=settings.training)
    selector = _selector(model, seen, settings)
    verifier, blind = _verifiers(seen, settings)
    say("Tuning on chains that none of them has seen")
    held = look(parts, tune, heads, settings, tick)
    scores = choice_scores(selector, held)
    n_votes = settings.n_votes or tuned_votes(held, scores)
    decided = Decided.of(held, scores, n_votes, verifier, blind)
    options, flags = _detectors(held, network, settings)
    best = tuned_threshold(held, flags, decided, settings.slack)
    figures = tune_figures(held, decided, flags[best])
    lens_layers = read_lens_layers(parts.n_layers, settings)
    if lens_layers and settings.detector != "entropy":
        figures |= _without_lens(seen, taught, held, network, decided, settings, N_FEATURES * len(lens_layers))
    return Fitted(
        heads=heads,
        selector=selector,
        detector=options[best],
        verifier=verifier,
        config=TCRConfig(
            n_votes=n_votes,
            positions=settings.candidates.positions,
            scale=settings.scale,
            max_bytes=settings.max_bytes,
            decision=settings.decision,
        ),
        layers=settings.layers or read_layers(parts.n_layers),
        lens_layers=lens_layers,
        end_ids=sorted(end_ids(parts.model, tokenizer)),
        origin=_origin(model, figures),
        candidates=candidates,
        figures=figures,
        tune=held,
    )


def fit_tcr_on_problems(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    *,
    config: FitConfig | None = None,
    max_new_tokens: int | None = None,
    asking: Asking | None = None,
    say: Say = lambda line: None,
    tick: Tick = lambda done, total: None,
) -> Fitted:
    """Return a fit on the greedy responses of a model to problems: `generate`, then `fit_tcr`.

    Args:
        model: A Transformers decoder.
        tokenizer: Its tokenizer.
        problems: What it is asked; part of them is kept for tuning.
        config: How to fit.
        max_new_tokens: As for `generate`.
        asking: How the problems are asked.
        say: Called with a line at each stage.
        tick: Called with (how much of the stage is done, of how much).

    Raises:
        BadInput: As `fit_tcr`.
    """
    say(f"Decoding {len(problems)} problems to fit on")
    traces = generate(model, tokenizer, list(problems), asking=asking, progress=False, max_new_tokens=max_new_tokens)
    return fit_tcr(model, tokenizer, traces, config=config, say=say, tick=tick)


def _origin(model: nn.Module, figures: dict[str, float]) -> Origin:
    rows = [{"measure": name, "value": value} for name, value in figures.items()]
    note = "Measured on tune lessons: right chains under forced right prefixes."
    return Origin(model_identity(model), rows, note)


def look(parts: Anatomy, lessons: Sequence[Lesson], heads: Sequence[Head], config: FitConfig, tick: Tick) -> Outcomes:
    """Return the outcomes of lessons, with each head silenced at wrong tokens and at those above `doubt_above`."""

    def doubtful(entropy: Tensor, is_right: Tensor, features: Tensor) -> Tensor:
        return ~is_right | (entropy > config.doubt_above)

    return outcomes(
        parts,
        lessons,
        heads,
        layers=config.layers or read_layers(parts.n_layers),
        lens_layers=read_lens_layers(parts.n_layers, config),
        doubtful=doubtful,
        positions=config.candidates.positions,
        scale=config.scale,
        tick=tick,
    )


def _check_traces(traces: Sequence[Trace]) -> None:
    if not traces:
        raise BadInput("There are no traces to fit on.")
    if all(trace.first_error is None for trace in traces):
        raise BadInput(
            f"None of the {len(traces)} traces has a known first error: nothing to repair; ask for more hops, "
            "or, for problems without slots, look for pivots first (chainwright pivots, then --pivots)."
        )


def _check_tokens(seen: Outcomes) -> None:
    if not bool(seen.is_right.any()):
        raise BadInput(
            "The model predicts no right token at all in these traces, so right and wrong ones cannot be compared."
        )
    if bool(seen.is_right.all()):
        raise BadInput("The model predicts every token of these chains right: nothing to repair; ask for more hops.")


def _selector(model: nn.Module, seen: Outcomes, config: FitConfig) -> Selector:
    if config.selector == "light":
        return fit_light_selector(seen.choice, seen.labels, config=config.training)
    return _classifier(model, seen.votes.shape[1] + 1, config).fit(seen.contexts, seen.labels)


def _classifier(model: nn.Module, n_choices: int, config: FitConfig) -> ClassifierSelector:
    from chainwright.repair.tcr.lora_selector import ClassifierSelector

    tokens_of = provenance(anatomy(model).model)["model"]
    return ClassifierSelector(config.selector, tokens_of, n_choices, config.classifier)


def choice_scores(selector: Selector, found: Outcomes) -> Tensor:
    """Return a selector's scores at the doubtful tokens of some outcomes, `[D, K + 1]`."""
    blank = torch.zeros(len(found.doubtful), 0)
    seen = Seen(found.choice[:, None], blank, found.contexts, found.contexts)
    pieces = [seen.take(range(i, min(i + 64, len(blank)))) for i in range(0, len(blank), 64)]
    return torch.cat([selector.scores(piece) for piece in pieces])


def _worth_learning(seen: Outcomes, config: FitConfig) -> Tensor:
    """Return which tokens teach the detector: all that are wrong or not quite certain, and some of the others."""
    some = torch.rand(len(seen.entropy), generator=torch.Generator().manual_seed(config.training.seed))
    return ~seen.is_right | (seen.entropy > config.certain_below) | (some < config.certain_share)


def _detectors(held: Outcomes, network: Perceptron, config: FitConfig) -> tuple[list[Detector], list[Tensor]]:
    """Return detectors from the lowest threshold to the highest, and what each flags, bool `[S]`."""
    if config.detector != "entropy":
        doubts = network(held.doubt)[:, 0].sigmoid()
        floor = config.doubt_above  # below it no token was looked at, so nothing is known of what flags would do
        flags = [(doubts > t) & (held.entropy > floor) for t in _THRESHOLDS]
        return [TrainedDetector(network, t, floor) for t in _THRESHOLDS], flags
    taus = _TAUS if config.tau is None else (config.tau,)
    return [EntropyDetector(t) for t in taus], [held.entropy > t for t in taus]


def _without_lens(
    seen: Outcomes,
    taught: Tensor,
    held: Outcomes,
    network: Perceptron,
    decided: Decided,
    config: FitConfig,
    n_lens: int,
) -> dict[str, float]:
    """Return how well a detector ranks tokens that reads the lens, and as a control one that does not."""
    control = fit_detector(seen.doubt[taught, :-n_lens], ~seen.is_right[taught], config=config.training)
    blind = held.replace(doubt=held.doubt[:, :-n_lens])
    _, flags = _detectors(blind, control, config)
    best = flags[tuned_threshold(held, flags, decided, config.slack)]
    at = detection(held, best)
    return {
        "detector, area under the curve": ranking(held, network(held.doubt)[:, 0], config.doubt_above),
        "without the lens, area under the curve": ranking(held, control(blind.doubt)[:, 0], config.doubt_above),
        "without the lens, chains right": exact_share(held, best, decided.best),
        "without the lens, precision": at.precision,
        "without the lens, recall": at.recall,
        "without the lens, flagged tokens": at.rate,
    }


def _verifiers(seen: Outcomes, config: FitConfig) -> tuple[Verifier | None, Verifier | None]:
    """Return a verifier, and as a control one that reads only what the detector reads."""
    if config.decision == "vote":
        return None, None
    first, second = seen.is_right[seen.doubtful], seen.second_is_right[seen.doubtful]
    read = (seen.verifier_features, seen.doubt[seen.doubtful])
    full, blind = (fit_verifier(features, first, second, config=config.training) for features in read)
    return full, blind


__all__ = [
    "Detection",
    "Fitted",
    "detection",
    "exact_share",
    "fit_tcr",
    "fit_tcr_on_problems",
    "look",
    "read_layers",
    "split_lessons",
]
