"""The fingerprint of a model's weights: what it sees, and what it does not mind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from chainwright.models.fingerprint import fingerprint
from families import FAMILIES, tiny


class Large(nn.Module):
    """A model whose weight is too large to be hashed whole."""

    def __init__(self, dtype: torch.dtype = torch.float32, n_columns: int = 1024) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3000, n_columns, generator=torch.Generator().manual_seed(0)).to(dtype))
        self.register_buffer("scale", torch.ones(3))
        self.register_buffer("cache", torch.ones(3), persistent=False)


def mark(model: nn.Module) -> str:
    found = fingerprint(model)  # type: ignore[arg-type]
    assert len(found) == 16 and int(found, 16) >= 0
    return found


def swap_rows(weight: Tensor) -> None:
    weight[[5, 2999]] = weight[[2999, 5]].clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_columns", [1024, 1023])
def test_every_single_number_counts_also_in_large_tensors(dtype: torch.dtype, n_columns: int) -> None:
    model = Large(dtype, n_columns)
    seen = {mark(model)}
    changes: list[Callable[[], object]] = [
        lambda: model.weight[0, 0].add_(0.5),
        lambda: model.weight[1777, 513].add_(0.5),
        lambda: model.weight[2999, -1].add_(0.5),
        lambda: swap_rows(model.weight),
        lambda: model.scale[1].add_(0.5),
    ]
    with torch.no_grad():
        for change in changes:
            change()
            seen.add(mark(model))
        assert len(seen) == 1 + len(changes)
        last = mark(model)
        model.cache.add_(1)
    assert mark(model) == last, "what a checkpoint does not hold does not count"


def test_it_does_not_depend_on_how_the_weights_lie_in_memory() -> None:
    model, other = Large(), Large()
    other.weight = nn.Parameter(other.weight.detach().T.contiguous().T)
    assert not other.weight.is_contiguous() and mark(model) == mark(other)
    assert mark(Large(torch.bfloat16)) != mark(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_have_fingerprints_that_stay(family: str) -> None:
    model = tiny(family)
    before = mark(model)
    assert mark(tiny(family)) == before != mark(tiny(family, seed=1))
    with torch.no_grad():
        list(model.parameters())[-1].flatten()[-1].add_(0.25)
    assert mark(model) != before


def test_weights_that_are_elsewhere_count_by_their_shape() -> None:
    with torch.device("meta"):
        model, other = nn.Linear(4, 3), nn.Linear(4, 5)
    assert mark(model) == mark(model) != mark(other)
