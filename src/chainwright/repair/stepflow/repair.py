"""StepFlow: a floor under the attention between segments, and the last step carried over to the next, while decoding.

1. The bridge (`edits/bridge.py`) acts in shallow layers: a query of the thinking gives the question at least a share of
   its attention, one of the summary the thinking.
2. The momentum (`edits/momentum.py`) acts in deep layers: the first token of a step gets the mean value of the step
   before.

Nothing is trained. Which layers, and how strongly, is set by hand, taken from one diagnosis pass (`choose_layers`), or
tuned on a few problems (`StepFlow.tune`); the quarter rule of the paper is the default.

Source: StepFlow (arXiv 2604.06695).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from chainwright._config import Config
from chainwright._errors import BadInput
from chainwright._registry import register
from chainwright.decode.run import generate
from chainwright.edits.base import Edit, Touched, edit
from chainwright.edits.bridge import Bridge, check_floor, check_head_floors
from chainwright.edits.momentum import Momentum, check_strength
from chainwright.evaluation.comparison import compare
from chainwright.models.anatomy import Anatomy, anatomy
from chainwright.models.load import load_tokenizer
from chainwright.models.seam import Handlers
from chainwright.repair.base import Origin, Repair, model_identity
from chainwright.repair.run import Cost, counted
from chainwright.tasks.base import Problem
from chainwright.traces import ONE_LINE_ONE_STEP, LiveSteps, SegmentConfig, Trace
from chainwright.traces.live import KnownRow
from chainwright.traces.segments import check_style


class _Settings(Config):
    bridge_layers: tuple[int, ...] | None = Field(description="Layers with the bridge.")
    momentum_layers: tuple[int, ...] | None = Field(description="Layers with the momentum.")
    tau_max: float | tuple[float, ...] = Field(description="The floor, or one per layer.")
    alpha: float = Field(description="Strength of the momentum.")
    window: int | None = Field(description="Tokens of the previous step that are averaged.")
    into_summary: bool = Field(description="Whether the summary gets the momentum too.")
    style: str = Field(description="The markers of the segments.")
    min_chars: int | None = Field(description="Characters of a step of its own.")
    bridge_heads: tuple[tuple[int, int, float], ...] | None = Field(
        default=None, description="Floors of single heads, each as layer, head and floor."
    )


@register("repair", "stepflow")
class StepFlow(Repair):
    """The bridge and the momentum as one repair.

    Attributes:
        bridge_layers: Layers with the bridge; None takes the bottom quarter, () none.
        momentum_layers: Layers with the momentum; None takes the top quarter, () none.
        tau_max: Largest share of attention that the bridge ensures, or one for each of `bridge_layers`.
        alpha: Strength of the momentum.
        window: Tokens of the previous step that are averaged; None takes all.
        into_summary: Whether the first token of the summary gets the momentum too.
        style: The markers of the segments, or "auto".
        min_chars: Characters of a step of its own; None takes 1 (a line is a step) for models trained by Chainwright
            and 15 for others.
        bridge_heads: Floors of single heads, (layer, head, floor) each, instead of one per layer; then `bridge_layers`
            is None and `tau_max` counts for nothing.
        tokenizer: Decodes the text while it is written; None loads the one saved with the model, once.
    """

    kind = "stepflow"
    acts_by_row = True
    schema = _Settings
    remedy = "make one for this model (StepFlow.tune)"

    def __init__(
        self,
        bridge_layers: Sequence[int] | None = None,
        momentum_layers: Sequence[int] | None = None,
        tau_max: float | Sequence[float] = 0.15,
        alpha: float = 0.06,
        window: int | None = None,
        *,
        into_summary: bool = False,
        style: str = "auto",
        min_chars: int | None = None,
        bridge_heads: Sequence[tuple[int, int, float]] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        origin: Origin | None = None,
    ):
        super().__init__(origin)
        self.bridge_heads = None if bridge_heads is None else tuple((a, b, floor) for a, b, floor in bridge_heads)
        self.bridge_layers = None if bridge_layers is None else tuple(bridge_layers)
        self.momentum_layers = None if momentum_layers is None else tuple(momentum_layers)
        self.tau_max = tuple(tau_max) if isinstance(tau_max, Sequence) else tau_max
        self.alpha, self.window = alpha, window
        self.into_summary, self.style, self.min_chars = into_summary, style, min_chars
        self.tokenizer = tokenizer
        self._tokenizers: dict[
            str, PreTrainedTokenizerBase
        ] = {}  # those read from disk or the Hub, by the model's name
        self._check()

    def _check(self) -> None:
        if self.style != "auto":
            check_style(self.style)
        check_strength(self.alpha, self.window)
        check_head_floors(self.bridge_heads or ())
        if self.bridge_heads is not None and self.bridge_layers is not None:
            raise BadInput(
                "The bridge is on whole layers or on single heads; pass bridge_layers or bridge_heads, and not both "
                f"(got layers {list(self.bridge_layers)})."
            )
        for floor in self.tau_max if isinstance(self.tau_max, tuple) else (self.tau_max,):
            check_floor(floor)
        has_own = self.bridge_layers is not None and isinstance(self.tau_max, tuple)
        if isinstance(self.tau_max, tuple) and not (has_own and len(self.tau_max) == len(self.bridge_layers or ())):
            raise BadInput(
                f"Give one tau_max, or one for each of bridge_layers; got {len(self.tau_max)} of them and "
                f"bridge_layers={self.bridge_layers}."
            )

    def _not_pickled(self) -> frozenset[str]:
        return super()._not_pickled() | {"_tokenizers"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what was pickled; tokenizers are read again where they are needed."""
        self.__dict__ |= {**state, "_tokenizers": {}}

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[Cost]:
        """Decode with the repair inside this context, also by `model.generate` with beams or assistants.

        Raises:
            BadInput: Made for another model, a layer that the model does not have, or no tokenizer.
        """
        self.check_model(model)
        parts = anatomy(model)
        edits = _Together(self._edits(parts.n_layers), self.reading(parts))
        self.cost = cost = Cost()
        with counted(parts, cost), edit(model, edits, strict=False) as (touched,):
            try:
                yield cost
            finally:
                cost.add_work(touched)

    @contextmanager
    def scoring(self, model: nn.Module, traces: Sequence[Trace]) -> Iterator[None]:
        """Score these traces as one batch inside this context, as decoding them with the repair would have gone.

        The segments are read token by token as while decoding. Without a tokenizer those of the traces are taken.
        """
        self.check_model(model)
        parts = anatomy(model)
        edits = _Together(self._edits(parts.n_layers), None)
        if self._has_tokenizer(parts):
            lengths = tuple(trace.response_start for trace in traces)
            edits = replace(edits, steps=self.reading(parts), n_question=lengths)
        else:
            edits = replace(edits, known=tuple(KnownRow.of(trace) for trace in traces))
        with edit(model, edits, strict=False):
            yield

    def _has_tokenizer(self, parts: Anatomy) -> bool:
        return self.tokenizer is not None or bool(parts.model.config._name_or_path)

    def reading(self, parts: Anatomy) -> LiveSteps:
        """Return how responses of this model are read while they are written."""
        if not self._has_tokenizer(parts):
            raise BadInput(
                "StepFlow reads the text while it is written, and this model was not loaded from anywhere that has a "
                "tokenizer; pass StepFlow(..., tokenizer=...)."
            )
        where = str(parts.model.config._name_or_path)
        if self.tokenizer is None and where not in self._tokenizers:
            self._tokenizers[where] = load_tokenizer(where)
        tokenizer = self.tokenizer or self._tokenizers[where]
        is_ours = (Path(where) / "recipe.json").is_file()
        if self.min_chars is None:
            config = ONE_LINE_ONE_STEP if is_ours else SegmentConfig()
        else:
            config = SegmentConfig(self.min_chars, merge_numbers=self.min_chars > 1)
        return LiveSteps(tokenizer, self.style, config)

    def layers(self, n_layers: int) -> Layers:
        """Return the layers of the bridge and of the momentum in a model of so many layers."""
        quarter = max(1, n_layers // 4)
        bridge: Sequence[int] = range(quarter) if self.bridge_layers is None else self.bridge_layers
        if self.bridge_heads is not None:
            bridge = sorted({layer for layer, _, _ in self.bridge_heads})
        momentum = range(n_layers - quarter, n_layers) if self.momentum_layers is None else self.momentum_layers
        return Layers(tuple(bridge), tuple(momentum))

    def _edits(self, n_layers: int) -> tuple[Bridge | Momentum, ...]:
        bridge, momentum = self.layers(n_layers)
        moving = Momentum(momentum, None, self.alpha, self.window, self.into_summary)
        if self.bridge_heads is not None:
            return (Bridge((), None, heads=self.bridge_heads), moving)
        floors = self.tau_max if isinstance(self.tau_max, tuple) else (self.tau_max,) * len(bridge)
        by_floor = {floor: [b for b, own in zip(bridge, floors, strict=True) if own == floor] for floor in floors}
        return (
            *(Bridge(layers, None, floor) for floor, layers in by_floor.items()),
            moving,
        )

    def settings(self) -> dict[str, Any]:
        """Return everything but the tokenizer."""
        own = {} if self.bridge_heads is None else {"bridge_heads": [list(one) for one in self.bridge_heads]}
        return own | {
            "bridge_layers": None if self.bridge_layers is None else list(self.bridge_layers),
            "momentum_layers": None if self.momentum_layers is None else list(self.momentum_layers),
            "tau_max": list(self.tau_max) if isinstance(self.tau_max, tuple) else self.tau_max,
            "alpha": self.alpha,
            "window": self.window,
            "into_summary": self.into_summary,
            "style": self.style,
            "min_chars": self.min_chars,
        }

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], origin: Origin) -> StepFlow:
        """Return the repair that `settings` describe; its tokenizer is the model's."""
        return cls(**settings, origin=origin)

    def describe(self) -> str:
        """Return what the repair does."""
        bridge = "the bottom quarter" if self.bridge_layers is None else f"layers {list(self.bridge_layers)}"
        momentum = "the top quarter" if self.momentum_layers is None else f"layers {list(self.momentum_layers)}"
        if self.bridge_heads is not None:
            heads = ", ".join(f"L{layer}H{head} {floor:g}" for layer, head, floor in self.bridge_heads) or "no head"
            return (
                f"The thinking gives the question, and the summary the thinking, at least a share of the attention "
                f"of single heads: {heads}. In {momentum} the first token of a step gets {self.alpha:g} of the mean "
                "value of the step before. Nothing is trained."
            )
        floors = self.tau_max if isinstance(self.tau_max, tuple) else (self.tau_max,)
        return (
            f"In {bridge} the thinking gives the question, and the summary the thinking, at least "
            f"{' and '.join(f'{floor:g}' for floor in floors) or 'nothing'} of "
            f"each head's attention. In {momentum} the first token of a step gets {self.alpha:g} of the mean value of "
            "the step before. Nothing is trained."
        )

    @classmethod
    def tune(
        cls,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        problems: Sequence[Problem],
        *,
        taus: Sequence[float] = (0.15, 0.3, 0.4, 0.6),
        alphas: Sequence[float] = (0.06, 0.2),
        layer_sets: Sequence[Sequence[int]] | None = None,
        max_new_tokens: int | None = None,
        batch_size: int | None = None,
        progress: bool = False,
    ) -> StepFlow:
        """Return the settings that keep most chains right on one half of the problems, checked on the other half.

        First layers and floor of the bridge, then layers and strength of the momentum beside it. What does not gain a
        problem is dropped, and so is all of it where it loses on the other half: a repair that does nothing is a
        result too. `origin.figures` has every setting that was tried.

        Args:
            model: A Transformers decoder.
            tokenizer: Its tokenizer.
            problems: Validation problems, none of those that the result is to be reported on.
            taus: Floors to try.
            alphas: Strengths to try.
            layer_sets: Layers to try for each; None takes every single layer.
            max_new_tokens: As in `generate`.
            batch_size: As in `generate`.
            progress: Show a progress bar.

        Raises:
            BadInput: Fewer than two problems.
        """
        if len(problems) < 2:
            raise BadInput(
                f"Tuning needs at least two problems, one half to choose on, one to check; got {len(problems)}."
            )
        n_layers = anatomy(model).n_layers
        sets = [(layer,) for layer in range(n_layers)] if layer_sets is None else [tuple(one) for one in layer_sets]
        options = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "progress": progress}
        search = _Search(model, tokenizer, list(problems), options)
        search.run([cls(one, (), tau, tokenizer=tokenizer) for one in sets for tau in taus])
        best = search.best
        search.run(
            [cls(best.bridge_layers, one, best.tau_max, alpha, tokenizer=tokenizer) for one in sets for alpha in alphas]
        )
        return search.result()


class Layers(NamedTuple):
    """Where StepFlow acts.

    Attributes:
        bridge: Layers with the bridge.
        momentum: Layers with the momentum.
    """

    bridge: tuple[int, ...]
    momentum: tuple[int, ...]


@dataclass(frozen=True)
class _Together(Edit):
    """Several edits that act on the same segments and steps, which are read once for all of them.

    Attributes:
        edits: The edits.
        steps, n_question, known: As in `Reading`.
    """

    is_innermost: ClassVar[bool] = True
    needs_whole: ClassVar[bool] = True

    edits: tuple[Bridge | Momentum, ...]
    steps: LiveSteps | None
    n_question: tuple[int, ...] | None = None
    known: tuple[KnownRow, ...] | None = None

    def handlers(self, parts: Anatomy, touched: Touched) -> Handlers:
        """Return the handlers of all; without layers to act in nothing is read."""
        handlers = Handlers({})
        acting = [each for each in self.edits if each.acting_layers(parts)]
        if not acting:
            return handlers
        reading = touched.read(self.steps, self.n_question, self.known)
        for each in acting:
            handlers = handlers.joined(each.on(reading, parts, touched))
        return handlers


class _Search:
    """The settings tried so far, on all problems; chosen by one half of them."""

    def __init__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, problems: list[Problem], options: dict[str, Any]
    ):
        self.model, self.tokenizer, self.problems, self.options = model, tokenizer, problems, options
        self.best = StepFlow((), (), tokenizer=tokenizer)
        self.plain = generate(model, tokenizer, problems, **options)
        self.best_traces = self.plain
        self.figures: list[dict[str, Any]] = []

    def run(self, candidates: Sequence[StepFlow]) -> None:
        """Try settings, and keep the best of all."""
        for one in candidates:
            traces = generate(self.model, self.tokenizer, self.problems, repair=one, **self.options)
            self.figures.append(self._figures(one, traces))
            if _n_right(traces[::2]) > _n_right(self.best_traces[::2]):
                self.best, self.best_traces = one, traces

    def _figures(self, one: StepFlow, traces: list[Trace]) -> dict[str, Any]:
        return {
            "bridge layers": str(list(one.bridge_layers or ())),
            "tau_max": one.tau_max,
            "momentum layers": str(list(one.momentum_layers or ())),
            "alpha": one.alpha,
            "chosen on, right": _n_right(traces[::2]),
            "held out, right": _n_right(traces[1::2]),
        }

    def result(self) -> StepFlow:
        """Return the best settings with the figures of all, or none if they lose on the half that is held out."""
        held_out = compare({"none": self.plain[1::2], "tuned": self.best_traces[1::2]}).overall("tuned")
        if held_out["exact_gain"] is None:
            raise BadInput(
                "StepFlow.tune counts whole chains, but no chain of these problems could be read; pass problems of a "
                "task, or problems with a chain and slots."
            )
        is_kept = held_out["exact_gain"] >= 0
        note = (
            f"Whole chains right on {len(self.plain[::2])} problems to choose on and {len(self.plain[1::2])} held out; "
            f"without the repair {_n_right(self.plain[::2])} and {_n_right(self.plain[1::2])}. Held out, the chosen "
            f"settings gain {held_out['exact_gain']:+.3f} (95% {held_out['exact_gain_low']:+.3f} to "
            f"{held_out['exact_gain_high']:+.3f}){'' if is_kept else ', so they are not kept and nothing is done'}."
        )
        kept = self.best if is_kept else StepFlow((), (), tokenizer=self.tokenizer)
        kept.origin = Origin(model_identity(self.model), self.figures, note)
        return kept


def _n_right(traces: Sequence[Trace]) -> int:
    return sum(trace.is_exact is True for trace in traces)
