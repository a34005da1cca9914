"""Noise that decides which tokens are drawn: a function of the seed, the row, the step and the token alone.

The greedy choice of `logits / temperature + Gumbel noise` is distributed as `softmax(logits / temperature)`. The noise
is hashed from numbers instead of drawn from a generator, so that

- it is the same on every device, in batches of any size and whatever else is drawn;
- all rows and tokens are computed at once where the logits are.

1. Seed, row and step make two 32-bit keys (by Python's generator, whose values are the same everywhere).
2. A token's number is mixed, combined with the row's keys, and mixed again (the 32-bit finaliser of MurmurHash3).
3. 31 bits of that are a number v in (0, 1); the noise is `-log(-log(1 - v))`. Small v are exact, so that tokens of
   probability down to about 1e-9 are drawn as often as they should be.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

_FACTORS = ((16, 0x85EBCA6B - 2**32), (13, 0xC2B2AE35 - 2**32))  # shift and factor of both rounds, as signed numbers
_GOLDEN = 0x9E3779B1 - 2**32
_AT_ONCE = 2**17  # numbers that fit into a processor's cache


def gumbel_noise(
    seed: int, rows: Sequence[int], step: int, n_tokens: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Return standard Gumbel noise for the next token of some rows, `[len(rows), n_tokens]`, float32.

    Args:
        seed: Decides all of it.
        rows: The index of each row among all rows of a run.
        step: How many tokens the rows have written.
        n_tokens: Size of the vocabulary.
        device: Where it is needed.
    """
    keys = torch.tensor([_keys(seed, row, step) for row in rows], dtype=torch.int32, device=device)
    tokens = _mixed(torch.arange(n_tokens, dtype=torch.int32, device=device).mul_(_GOLDEN))
    out = torch.empty(len(rows), n_tokens, device=device)
    size = max(1, _AT_ONCE // n_tokens) if out.device.type == "cpu" else len(rows)
    for start in range(0, len(rows), size):
        here = slice(start, start + size)
        bits = _mixed((tokens ^ keys[here, :1]).mul_(keys[here, 1:] | 1)).bitwise_and_(2**31 - 1)
        # below 1, so that no token is out of the question
        v = bits.float().add_(0.5).mul_(2.0**-31).clamp_(max=1 - 2.0**-24)
        out[here] = v.neg_().log1p_().neg_().log_().neg_()
    return out


def _keys(seed: int, row: int, step: int) -> tuple[int, int]:
    bits = Random(f"{seed}/{row}/{step}")
    return bits.getrandbits(32) - 2**31, bits.getrandbits(32) - 2**31


def _mixed(x: Tensor) -> Tensor:
    """Return 32-bit integers in whose bits every bit of `x` has a part; `x` is written over."""
    y = torch.empty_like(x)
    for shift, factor in _FACTORS:
        _fold(x, shift, y).mul_(factor)
    return _fold(x, 16, y)


def _fold(x: Tensor, shift: int, y: Tensor) -> Tensor:
    """Return `x ^ (x >> shift)`, the shift filled with zeros, in place; `y` is room to work in."""
    torch.bitwise_right_shift(x, shift, out=y)
    return x.bitwise_xor_(y.bitwise_and_(2 ** (32 - shift) - 1))
