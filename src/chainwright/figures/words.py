"""Numbers and names as figures and reports say them."""

from __future__ import annotations

import html
from collections.abc import Iterable

from chainwright import tasks
from chainwright._stats import wilson


def percent(share: float) -> str:
    """Return a share as a whole percentage; what is not quite none or all does not read as 0% or 100%."""
    text = f"{share:.0%}"
    if text == "0%" and share > 0:
        return "<1%"
    return ">99%" if text == "100%" and share < 1 else text


def between(low: float, high: float) -> str:
    """Return an interval of shares, such as "38% to 96%"."""
    return f"{percent(max(low, 0.0))} to {percent(min(high, 1.0))}"


def share_of(k: int, n: int, things: str) -> str:
    """Return a count with its share and interval, such as "4 of 5 things (80%; 95% interval 38% to 96%)"."""
    return f"{k:,} of {n:,} {things} ({percent(k / n)}; 95% interval {between(*wilson(k, n))})"


def counted(n: int, singular: str, plural: str | None = None) -> str:
    """Return a number with its noun, such as "1 problem" or "1,200 problems"."""
    return f"{n:,} {singular if n == 1 else plural or singular + 's'}"


def span_of(values: Iterable[int]) -> str:
    """Return the lowest and highest of some numbers, such as "5 to 12", or the one that they all are."""
    low, high = min(known := list(values)), max(known)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def title_of(task: str) -> str:
    """Return a task's title, or its name where Chainwright does not know it."""
    return tasks.title(task) if task in tasks.known() else task


def head_name(head: Iterable[int]) -> str:
    """Return a head as "L1H7"."""
    layer, number = head
    return f"L{layer}H{number}"


def listed(parts: list[str]) -> str:
    """Return parts as "a, b and c"."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def safe(text: str) -> str:
    """Return text that a figure shows as it is, with nothing in it read as markup."""
    return html.escape(text, quote=False)
