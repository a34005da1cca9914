"""Watching a pass module by module."""

import torch
from torch import nn

from chainwright.models._probe import first_calls, holds_equal, is_equal, recording


class _InPlace(nn.Module):
    """Adds one to its input in place, as some layers add to the residual stream."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.add_(1)


def test_calls_are_recorded_as_copies_and_an_outer_module_follows_those_inside_it() -> None:
    inner = _InPlace()
    outer = nn.Sequential(inner, inner)
    with recording(outer.modules()) as calls:
        outer(torch.zeros(2, 3))
    assert [call.module for call in calls] == [inner, inner, outer]
    # the second call changed the very tensor that the first one returned
    assert [float(c.returned[0, 0]) for c in calls] == [1, 2, 2]
    assert not outer._forward_hooks and not inner._forward_hooks


def test_the_first_call_of_each_module_counts() -> None:
    inner = _InPlace()
    outer = nn.Sequential(inner, inner)
    with recording(outer.modules()) as calls:
        outer(torch.zeros(1, 1))
    first = first_calls(calls, {inner, outer})
    assert list(first) == [inner, outer] and float(first[inner].returned) == 1
    assert list(first_calls(calls, {outer})) == [outer]


def test_calls_without_a_tensor_are_skipped() -> None:
    class Nothing(nn.Module):
        def forward(self, x: torch.Tensor | None) -> None:
            return None

    module = Nothing()
    with recording([module]) as calls:
        module(torch.zeros(1))
        module(None)
    assert calls == []


def test_equal_tensors_and_equal_numbers_are_two_questions() -> None:
    a = torch.arange(6.0).view(2, 3)
    assert is_equal(a, a.clone()) and not is_equal(a, a.view(3, 2)) and not is_equal(a, a + 1e-6)
    assert holds_equal(a, a.view(3, 2)) and not holds_equal(a, a[:1]) and not holds_equal(a, a.flip(0))
