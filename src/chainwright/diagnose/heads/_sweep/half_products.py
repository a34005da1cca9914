"""Products in bfloat16 of what a knockout changed, added to the baseline pass's products in float32.

A linear module gives W x + b. With x0 and y0 its input and output in the baseline pass, W x + b = y0 + W (x - x0), so
only the difference need be multiplied. In bfloat16 that costs half as much on processors with instructions for it, and
its rounding, three digits, is relative to the change and not to the values: an effect is rounded, not what it is
measured from. Everything else (norms, attention, activations, sums) stays as the model computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from chainwright.diagnose.heads._sweep.segments import picked_rows
from chainwright.models.anatomy import Anatomy
from chainwright.models.half_precision import multiplies_bfloat16
from chainwright.models.layer_halves import returning

_N_COMPARED = 4  # tokens on which a record is compared with the module
_TOLERANCE = 1e-4  # largest difference, relative to the largest output


def can_halve(parts: Anatomy) -> bool:
    """Return whether bfloat16 products are faster here: float32 weights, on a processor with instructions for them."""
    is_cpu = parts.device.type == "cpu"
    return is_cpu and parts.model.dtype == torch.float32 and multiplies_bfloat16(parts.device)


class Record(NamedTuple):
    """Input and output of a linear module in the baseline pass, `[N, T, in]` and `[N, T, out]`."""

    given: Tensor
    returned: Tensor


class HalfProducts:
    """The linear modules of one layer, with their weights in bfloat16 and what they did in the baseline pass."""

    def __init__(self, block: nn.Module):
        self.weights = {
            module: _in_half(module)
            for module in block.modules()
            # a module with a forward of its own (weights moved between devices, an adapter) need not be linear
            if type(module) in (nn.Linear, Conv1D) and "forward" not in module.__dict__
            if isinstance(module.weight, Tensor) and module.weight.dtype == torch.float32
        }

    def recorded(self, shape: torch.Size, run: Callable[[], Any]) -> dict[nn.Module, Record]:
        """Run the layer and return what each module was given and returned, if that was once and for all tokens.

        Args:
            shape: The rows and columns of the layer's input, `[N, T]`.
            run: Runs the layer.
        """
        seen: dict[nn.Module, list[Record]] = {module: [] for module in self.weights}

        def watching(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            def watched(given: Tensor) -> Tensor:
                returned = forward(given)
                # a copy, since some layers change what a module returned in place
                seen[module].append(Record(given, returned.clone()))
                return returned

            return watched

        with ExitStack() as stack:
            for module in self.weights:
                stack.enter_context(returning(module, watching(module, module.forward)))
            run()
        return {m: calls[0] for m, calls in seen.items() if len(calls) == 1 and _is_whole(m, calls[0], shape)}

    @contextmanager
    def used(self, records: dict[nn.Module, Record], rows: Tensor) -> Iterator[None]:
        """Make the modules multiply only what differs from the baseline pass.

        Args:
            records: What they did there.
            rows: Row of the baseline pass that each row of their inputs belongs to `[R]`.
        """
        changes: list[tuple[Tensor, Tensor]] = []  # the last input and its change: several modules read one norm

        def change(given: Tensor, record: Record) -> Tensor:
            if not changes or changes[-1][0] is not given:
                changes[:] = [(given, (given - picked_rows(record.given, rows)).to(torch.bfloat16))]
            return changes[-1][1]

        def halved(module: nn.Module, record: Record) -> Callable[[Tensor], Tensor]:
            own, weight = module.forward, self.weights[module]

            def forward(given: Tensor) -> Tensor:
                if given.shape[:-1] != (len(rows), record.given.shape[1]):
                    return own(given)  # type: ignore[no-any-return]
                product = (change(given, record) @ weight).float()
                return product.add_(picked_rows(record.returned, rows))

            return forward

        with ExitStack() as stack:
            for module, record in records.items():
                stack.enter_context(returning(module, halved(module, record)))
            yield


def _is_whole(module: nn.Module, record: Record, shape: torch.Size) -> bool:
    """Return whether a record has all tokens, and its input was left as it was afterwards (first row, some tokens)."""
    if record.given.shape[:-1] != shape:
        return False
    want: Tensor = record.returned[:1, :_N_COMPARED]
    got: Tensor = module(record.given[:1, :_N_COMPARED])
    return bool((got - want).abs().max() <= _TOLERANCE * want.abs().max())


def _in_half(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    # `[in, out]`: the products of a layer are faster than with its transpose
    weight = weight.T if isinstance(module, nn.Linear) else weight
    return weight.detach().to(torch.bfloat16).contiguous()
