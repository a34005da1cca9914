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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright._registry import register
from chainwright.decode import generate
from chainwright.edits.base import Edit, Touched, edit
from chainwright.edits.bridge import Bridge
from chainwright.edits.following import Follower
from chainwright.edits.momentum import Momentum
from chainwright.evaluation.comparison import compare
from chainwright.models.anatomy import Anatomy, anatomy
from chainwright.models.load import load_tokenizer
from chainwright.models.seam import Handlers
from chainwright.repair.base import Cost, Origin, Repair, model_identity
from chainwright.tasks.base import Problem
from chainwright.traces import ONE_LINE_ONE_STEP, LiveSteps, SegmentConfig, Trace
from chainwright.traces.live import KnownRow
from chainwright.traces.segments import check_style


@register("repair", "stepflow")
class StepFlow(Repair):
    """The bridge and the momentum as one repair.

    Attributes:
        bridge_layers: Layers with the bridge; None takes the bottom quarter, () none.
        momentum_layers: Layers with the momentum; None takes the top quarter, () none.
        tau_max: Largest share of attention that the bridge sees to; several are those of `bridge_layers` one by one.
        alpha: Strength of the momentum.
        window: Tokens of the previous step that are averaged; None takes all.
        into_summary: Whether the first token of the summary gets the momentum too.
        style: The markers of the segments, or "auto".
        min_chars: Characters of a step of its own; None takes 1 (a line is a step) for models trained by Chainwright
            and 15 for others.
        tokenizer: What reads the text while it is written; None loads the one that lies with the model.
    """

    kind = "stepflow"

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
        tokenizer: PreTrainedTokenizerBase | None = None,
        origin: Origin | None = None,
    ):
        super().__init__(origin)
        self.bridge_layers = None if bridge_layers is None else tuple(bridge_layers)
        self.momentum_layers = None if momentum_layers is None else tuple(momentum_layers)
        self.tau_max = tuple(tau_max) if isinstance(tau_max, Sequence) else tau_max
        self.alpha, self.window = alpha, window
        self.into_summary, self.style, self.min_chars = into_summary, style, min_chars
        self.tokenizer = tokenizer
        if style != "auto":
            check_style(style)
        self._edits(1, None)  # refuses bad settings now

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[Cost]:
        """Decode with the repair inside this context, also by `model.generate` with beams or assistants.

        Raises:
            BadInput: Made for another model, a layer that the model does not have, or no tokenizer.
        """
        self.check_model(model)
        parts = anatomy(model)
        follower = Follower(self.reading(parts))
        self.cost = Cost()
        with (
            _prompts_known(parts.model, follower),
            edit(model, self._whole(parts, follower), strict=False) as (touched,),
        ):
            try:
                yield self.cost
            finally:
                self.cost.n_changed = touched.n_sites

    @contextmanager
    def scoring(self, model: nn.Module, traces: Sequence[Trace]) -> Iterator[None]:
        """Score these traces as one batch inside this context, as decoding them with the repair would have gone.

        The segments are read token by token as while decoding. Without a tokenizer those of the traces are taken.
        """
        self.check_model(model)
        parts = anatomy(model)
        if self._has_tokenizer(parts):
            follower = Follower(self.reading(parts), [trace.response_start for trace in traces])
        else:
            follower = Follower(None, known=[KnownRow.of(trace) for trace in traces])
        with edit(model, self._whole(parts, follower), strict=False):
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
        tokenizer = self.tokenizer or load_tokenizer(where)
        is_ours = (Path(where) / "recipe.json").is_file()
        if self.min_chars is None:
            config = ONE_LINE_ONE_STEP if is_ours else SegmentConfig()
        else:
            config = SegmentConfig(self.min_chars, merge_numbers=self.min_chars > 1)
        return LiveSteps(tokenizer, self.style, config)

    def layers(self, n_layers: int) -> Layers:
        """Return the layers of the bridge and of the momentum in a model of so many layers."""
        quarter = max(1, n_layers // 4)
        bridge = range(quarter) if self.bridge_layers is None else self.bridge_layers
        momentum = range(n_layers - quarter, n_layers) if self.momentum_layers is None else self.momentum_layers
        return Layers(tuple(bridge), tuple(momentum))

    def _edits(self, n_layers: int, steps: LiveSteps | None) -> tuple[Bridge | Momentum, ...]:
        bridge, momentum = self.layers(n_layers)
        floors = self.tau_max if isinstance(self.tau_max, tuple) else (self.tau_max,) * len(bridge)
        if len(floors) != len(bridge) or (isinstance(self.tau_max, tuple) and self.bridge_layers is None):
            raise BadInput(
                f"Several tau_max are those of bridge_layers one by one; got {len(floors)} of them and "
                f"bridge_layers={self.bridge_layers}."
            )
        by_floor = {floor: [b for b, own in zip(bridge, floors, strict=True) if own == floor] for floor in floors}
        return (
            *(Bridge(layers, steps, floor) for floor, layers in by_floor.items()),
            Momentum(momentum, steps, self.alpha, self.window, self.into_summary),
        )

    def _whole(self, parts: Anatomy, follower: Follower) -> Edit:
        return _Whole(self._edits(parts.n_layers, follower.how), follower, self)

    def settings(self) -> dict[str, Any]:
        """Return everything but the tokenizer."""
        return {
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
        problem is left out, and so is all of it where it loses on the other half; a repair that does nothing is a
        result. `origin.figures` has every setting that was tried.

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
class _Whole(Edit):
    """The edits on one run that is followed once."""

    is_innermost: ClassVar[bool] = True

    edits: tuple[Bridge | Momentum, ...]
    follower: Follower
    repair: StepFlow

    def handlers(self, parts: Anatomy, touched: Touched) -> Handlers:
        """Return the handlers of all, and the follower once; without layers to act in nothing is followed."""
        handlers = Handlers({})
        for one in self.edits:
            handlers = handlers.joined(Handlers(one.following(self.follower, parts, touched).by_layer))
        followed = (self.follower.before,) if handlers.by_layer else ()
        return Handlers(handlers.by_layer, (self._count, *followed))

    def _count(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        self.repair.cost.n_forwards += 1
        if isinstance(ids, Tensor):
            self.repair.cost.n_tokens += len(ids)


@contextmanager
def _prompts_known(model: PreTrainedModel, follower: Follower) -> Iterator[None]:
    """Tell the follower how long the prompts are whenever `model.generate` is called.

    The first pass of assisted decoding holds candidates besides the prompt, so that it does not tell.
    """
    own = model.generate

    def generate_knowing(inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        ids = kwargs.get("input_ids") if inputs is None else inputs
        mask = kwargs.get("attention_mask")
        if isinstance(ids, Tensor):
            is_given = isinstance(mask, Tensor) and mask.shape == ids.shape
            follower.n_question = (mask if is_given else torch.ones_like(ids)).sum(1).tolist()  # type: ignore[union-attr]
        try:
            return own(inputs, *args, **kwargs)
        finally:
            follower.n_question = None

    before = model.__dict__.get("generate")
    model.generate = generate_knowing
    try:
        yield
    finally:
        if before is None:
            del model.generate
        else:
            model.generate = before


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
