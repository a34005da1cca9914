"""Two tables say what is silenced where: `slot[token]` names a row of `keep[row, layer, head]`; row 0 keeps everything.

Both live on the device for as long as the model does and are filled before each pass, outside of compiled code and CUDA
graphs; inside stands one multiplication per layer (`heads`), with no branch on data.

A row belongs to a set of heads and a scale, not to a request: requests that ask for the same share it, and a row that
no request of the present pass needs may be given to another set.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from chainwright_vllm.spec import Head, KnockOut

RowKey = tuple[tuple[Head, ...], float]


class Span(NamedTuple):
    """Tokens of a pass that lie next to one another.

    Attributes:
        start: The first of them.
        end: One past the last.
        knock_out: What is done to them.
    """

    start: int
    end: int
    knock_out: KnockOut


class Rows:
    """Which row of the table each set of heads has; the least recently used one is given away.

    Args:
        n_rows: Rows of the table, of which row 0 is nobody's.
    """

    def __init__(self, n_rows: int):
        self._free = list(range(n_rows - 1, 0, -1))
        self._taken: OrderedDict[RowKey, int] = OrderedDict()

    def take(self, keys: Sequence[RowKey]) -> list[tuple[RowKey, int, bool]]:
        """Return for each different key its row, and whether the row is newly given to it.

        Raises:
            ValueError: There are more different keys than rows.
        """
        wanted = list(dict.fromkeys(keys))
        for key in wanted:
            if key in self._taken:
                self._taken.move_to_end(key)
        given = []
        for key in wanted:
            is_new = key not in self._taken
            if is_new:
                self._taken[key] = self._row(set(wanted))
            given.append((key, self._taken[key], is_new))
        return given

    def _row(self, wanted: set[RowKey]) -> int:
        if self._free:
            return self._free.pop()
        oldest = next((key for key in self._taken if key not in wanted), None)
        if oldest is None:
            raise ValueError(f"{len(wanted)} different sets of heads in one pass, and the table has fewer rows.")
        return self._taken.pop(oldest)


class Slots:
    """The two tables of one model runner, and a count of the hooks that have run.

    Attributes:
        slot: Row of each token of the pass, int64 `[max_tokens]`.
        keep: What each head's output is multiplied by, `[rows, layers, heads of this rank]`.
        fired: Passes in which the hook of each layer has run since `fill`, int64 `[layers]`.

    Args:
        n_layers: Layers of the model.
        heads: The heads of this rank, as the model counts them.
        max_tokens: Tokens of the longest pass, padding included.
        max_requests: Requests of the largest pass.
        dtype: Of the model.
        device: Of the model.
        to_device: Copies an int64 array into a tensor of the device without waiting for it.
    """

    def __init__(
        self,
        n_layers: int,
        heads: range,
        max_tokens: int,
        max_requests: int,
        dtype: torch.dtype,
        device: torch.device,
        to_device: Callable[[np.ndarray, Tensor], object] | None = None,
    ):
        self.heads = heads
        self.slot = torch.zeros(max_tokens, dtype=torch.int64, device=device)
        self.keep = torch.ones(max_requests + 1, n_layers, len(heads), dtype=dtype, device=device)
        self.fired = torch.zeros(n_layers, dtype=torch.int64, device=device)
        self._rows = Rows(max_requests + 1)
        self._n_filled = 0  # tokens that may have another slot than 0
        self._to_device = to_device or (lambda array, out: out.copy_(torch.from_numpy(array)))

    def fill(self, spans: Sequence[Span]) -> None:
        """Say what the tokens of the coming pass are multiplied by; all others are left alone."""
        if not spans:
            if self._n_filled:
                self.slot[: self._n_filled].zero_()
                self._n_filled = 0
            return
        rows = {}
        for key, row, is_new in self._rows.take([_key(span.knock_out) for span in spans]):
            rows[key] = row
            if is_new:
                self._write(row, key)
        n_tokens = max(span.end for span in spans)
        slots = np.zeros(max(n_tokens, self._n_filled), dtype=np.int64)
        for span in spans:
            slots[span.start : span.end] = rows[_key(span.knock_out)]
        self._to_device(slots, self.slot[: len(slots)])
        self._n_filled = n_tokens
        self.fired.zero_()

    def _write(self, row: int, key: RowKey) -> None:
        heads, scale = key
        kept = torch.ones(self.keep.shape[1:], dtype=self.keep.dtype)
        for layer, head in heads:
            if head in self.heads:
                kept[layer, head - self.heads.start] = scale
        self.keep[row].copy_(kept)

    def unfired(self, layers: Sequence[int]) -> list[int]:
        """Return those of some layers whose hook has not run since `fill`."""
        ran = self.fired.tolist()
        return [layer for layer in layers if not ran[layer]]


def _key(knock_out: KnockOut) -> RowKey:
    return knock_out.heads, knock_out.scale
