"""How much a forward pass computes and reads, and what that takes on a device.

A pass over n tokens multiplies each with the weights of all layers, attends to what came before, and writes and reads
activations. Its products run while weights are read, so the longer of the two counts; activations, caches and logits
come on top. A processor also waits while Python starts each layer; a GPU does so only where that takes longer than the
work itself.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from chainwright.planning.devices import Device
from chainwright.planning.shape import Shape, itemsize

# numbers that one layer reads and writes for a token besides products: norms, rotations, activations, sums
_PER_WRITTEN, _PER_WIDTH = 2.5, 20.0
_PER_LOGIT = 14.0  # float32 numbers read and written to make a log-probability and an entropy of one logit
_PER_SCORE = 2.0  # the same for one attention weight inside a fused kernel
_A_STEP = 8.0  # starts of a layer that a decoding step takes besides: masks, caches, drawing, stopping
_APPENDED = 3.0  # a growing cache is read, written and read again at each step


class Work(NamedTuple):
    """What something computes and moves.

    Attributes:
        flops: Operations in the model's number type.
        wide: Operations in float32.
        weights: Bytes of weights that are read.
        moved: Other bytes.
        layers: Layers that are started.
        texts: Tokens whose text is read by Python.
        rows: Tokens that are multiplied together, by which a processor is faster or slower.
    """

    flops: float = 0.0
    wide: float = 0.0
    weights: float = 0.0
    moved: float = 0.0
    layers: float = 0.0
    texts: float = 0.0
    rows: float = inf

    def times(self, n: float) -> Work:
        """Return the work done n times."""
        return Work(*(n * value for value in self[: len(self) - 1]))._replace(rows=self.rows)

    def plus(self, other: Work) -> Work:
        """Return both together."""
        n = len(self) - 1
        sums = (a + b for a, b in zip(self[:n], other[:n], strict=True))
        return Work(*sums)._replace(rows=min(self.rows, other.rows))

    def seconds(self, on: Device, dtype: str) -> float:
        """Return how long it takes if all of it is alike; passes of different kinds are to be added up in seconds."""
        products = self.flops / on.rate(dtype, self.rows) + self.wide / on.rate("float32")
        busy = max(products, self.weights / on.bytes_per_second) + self.moved / on.bytes_per_second
        starting = self.layers * on.seconds_a_layer
        return (busy + starting if on.waits else max(busy, starting)) + self.texts * on.seconds_a_text


class Passes(NamedTuple):
    """A model in a number type: what its passes compute."""

    shape: Shape
    dtype: str

    @property
    def size(self) -> int:
        """Return the bytes of a number."""
        return itemsize(self.dtype)

    @property
    def weight_bytes(self) -> int:
        """Return the memory of the model."""
        return self.shape.n_weights * self.size

    @property
    def cache_bytes(self) -> int:
        """Return the memory of one token's keys and values."""
        return self.shape.cached * self.size

    def forward(self, n_tokens: float, context: float, n_logits: float = 0.0, *, share: float = 1.0) -> Work:
        """Return the work of one pass.

        Args:
            n_tokens: Tokens of all rows.
            context: Tokens that each attends to, on average.
            n_logits: Tokens whose logits are computed.
            share: Share of the layers that is run.
        """
        s = self.shape
        attending = 4 * s.n_layers * context * s.n_heads * s.d_head
        moved = s.n_layers * (_PER_WRITTEN * s.written + _PER_WIDTH * s.d_model) * self.size
        moved += 4 * _PER_SCORE * s.n_layers * context * s.n_heads
        # where a token uses some of the experts, many tokens use all of them
        used = s.per_token + (s.in_layers - s.per_token) * min(1.0, n_tokens * s.per_token / max(1, s.in_layers) / 8)
        head = s.d_model * s.d_vocab
        return Work(
            flops=share * n_tokens * (2 * s.per_token + attending) + 2 * n_logits * head,
            weights=(share * used + (head if n_logits else 0)) * self.size,
            moved=share * n_tokens * moved + n_logits * s.d_vocab * 4 * _PER_LOGIT,
            layers=share * s.n_layers,
            rows=n_tokens,
        )

    def unembedding(self, n_tokens: float) -> list[Work]:
        """Return the work of `unembed`: a pass of one token to get at the output head, and the logits of some."""
        return [self.forward(1, 1), self.forward(0, 1, n_tokens)._replace(layers=0.0, rows=n_tokens)]

    def step(self, n_rows: float, context: float) -> Work:
        """Return the work of decoding one token of every row of a batch."""
        cache = Work(moved=_APPENDED * n_rows * context * self.cache_bytes, layers=_A_STEP)
        return self.forward(n_rows, context, n_rows).plus(cache)

    def decoding(self, n_rows: float, prompt: float, answer: float) -> list[Work]:
        """Return the work of decoding a batch of rows: reading the prompts, and all steps."""
        return [
            self.forward(n_rows * prompt, prompt / 2, n_rows),
            self.step(n_rows, prompt + answer / 2).times(answer),
        ]

    def inside(self, n_tokens: float) -> float:
        """Return the memory of the activations of one layer."""
        return n_tokens * (1.5 * self.shape.written + 6 * self.shape.d_model) * self.size

    def logits(self, n_tokens: float, copies: float = 3.0) -> float:
        """Return the memory of some tokens' logits in float32, with what is computed of them beside."""
        return n_tokens * self.shape.d_vocab * 4 * copies
