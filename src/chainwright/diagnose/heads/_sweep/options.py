"""The options of a sweep: which are allowed, and how many heads are measured with them."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from chainwright._config import Positions
from chainwright._errors import BadInput
from chainwright.models.anatomy import Anatomy

Method = Literal["exact", "gradient", "screened"]
Products = Literal["model", "bfloat16"]
ONE_BY_ONE = "silence the heads one by one inside edit(model, KnockOut({(layer, head)}))"


def check_options(method: str, positions: str, share: float, max_bytes: int | None) -> None:
    """Raise BadInput unless a sweep can be run with these options."""
    if method not in get_args(Method):
        raise BadInput(f"method must be one of {', '.join(get_args(Method))}; got {method!r}.")
    if positions not in get_args(Positions):
        raise BadInput(f"positions must be 'all' or 'last'; got {positions!r}.")
    if not 0 < share <= 1:
        raise BadInput(f"share must be above 0 and at most 1; got {share}.")
    if max_bytes is not None and max_bytes < 1:
        raise BadInput(f"max_bytes must be at least 1, or None; got {max_bytes}.")


def check_products(parts: Anatomy, products: str, method: str, positions: str) -> None:
    """Raise BadInput unless a sweep can multiply in this way."""
    if products not in get_args(Products):
        raise BadInput(f"products must be one of {', '.join(get_args(Products))}; got {products!r}.")
    if products == "model":
        return
    if method == "gradient" or positions == "last":
        raise BadInput(
            "products='bfloat16' is for heads that are silenced at all positions and measured; got "
            f"method={method!r}, positions={positions!r}."
        )
    if parts.model.dtype != torch.float32:
        raise BadInput(f"products='bfloat16' is for float32 models; this one is in {parts.model.dtype}.")


def n_screened(share: float, n_heads: int) -> int:
    """Return how many heads of a row are measured exactly after screening."""
    return max(1, round(share * n_heads))


def n_measured(parts: Anatomy, n_rows: int, method: Method, share: float) -> int:
    """Return how many (row, head) pairs a sweep measures."""
    n_heads = parts.n_layers * parts.n_heads
    per_row = {"exact": n_heads, "gradient": 0, "screened": n_screened(share, n_heads)}
    return n_rows * per_row[method]
