"""Where StepFlow acts, from one diagnosis pass and without a search: only where wrong traces show what it fixes.

1. `compare_bridges` has each head's attention on the segment that a token builds on, where wrong traces take their
   first wrong token, and that of right partners at the same slot and place.
2. The bridge goes into the layers in which the thinking's mass on the question is lower where it is wrong, by
   Wilcoxon's signed ranks, corrected for the number of layers, and by at least half as much as where it lacks most: a
   floor costs all heads of a layer something. It is the right ones' upper quartile; lower ones are too low to fix,
   since slots where chains fail are mixed with some that need nothing from the question.
3. The momentum goes into the layers in which the summary's mass on the thinking is lower in the same sense.
4. Where there is no such layer nothing is chosen, and the repair does nothing.
5. `choose_heads` does the same for single heads, whose floors spare the others of the layer.

The masses are attention, not saliency: a gradient is small where the model is sure, and high saliency on the last step
is what a chain needs in which a line follows from the line before it.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from chainwright._errors import BadInput
from chainwright._stats import holm_rejections
from chainwright.diagnose.steps.lock_in import BridgeGroups, lower
from chainwright.diagnose.steps.measures import SUMMARY, THINKING


class ChosenLayers(NamedTuple):
    """Layers by a diagnosis pass; `StepFlow(*chosen)` is the repair.

    Attributes:
        bridge: Layers with the bridge.
        momentum: Layers with the momentum.
        floors: The floor of each layer of the bridge.
    """

    bridge: tuple[int, ...]
    momentum: tuple[int, ...]
    floors: tuple[float, ...]


def choose_layers(groups: BridgeGroups, *, significance: float = 0.05) -> ChosenLayers:
    """Return where wrong traces lack the attention that right ones pay, and how much of it there should be.

    Args:
        groups: Bridge masses of right and wrong traces, none of them of problems that the result is reported on.
        significance: Largest p-value over all layers, corrected by Holm's method.

    Raises:
        BadInput: A significance outside of 0 to 1.
    """
    _check(significance)
    bridge = _lacking(*groups.of(THINKING), significance)
    momentum = _lacking(*groups.of(SUMMARY), significance)
    return ChosenLayers(tuple(bridge), tuple(momentum), tuple(bridge.values()))


def choose_heads(groups: BridgeGroups, *, significance: float = 0.05) -> tuple[tuple[int, int, float], ...]:
    """Return the single heads in which wrong traces lack attention on the question: (layer, head, floor) each.

    The rule is that of `choose_layers`, head by head, corrected for the number of heads; `StepFlow(None, (),
    bridge_heads=choose_heads(groups))` is the repair.

    Args:
        groups: As for `choose_layers`.
        significance: Largest p-value over all heads, corrected by Holm's method.

    Raises:
        BadInput: A significance outside of 0 to 1.
    """
    _check(significance)
    right, wrong = groups.of(THINKING)  # (pair, layer, head)
    n_heads = right.shape[2]
    found = _lacking(right.flatten(1)[..., None], wrong.flatten(1)[..., None], significance)
    return tuple((one // n_heads, one % n_heads, floor) for one, floor in found.items() if floor > 0)


def _check(significance: float) -> None:
    if not 0 < significance < 1:
        raise BadInput(f"significance must lie between 0 and 1; got {significance}.")


def _lacking(right: Tensor, wrong: Tensor, significance: float) -> dict[int, float]:
    """Return the layers whose wrong masses `[P, L, H]` lie below the right ones, with the right ones' quartile."""
    if len(right) == 0:
        return {}
    right, wrong = right.mean(-1).double(), wrong.mean(-1).double()  # (pair, layer)
    p = [lower((wrong - right)[:, layer].numpy()) for layer in range(right.shape[1])]
    lack, floors = (right - wrong).mean(0), right.quantile(0.75, dim=0)
    found: dict[int, float] = {}
    for layer in holm_rejections(p, significance):
        if lack[layer] >= lack.max() / 2:
            found[layer] = round(float(floors[layer]), 4)
    return dict(sorted(found.items()))
