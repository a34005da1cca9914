"""How traces were asked, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chainwright.traces import Trace

_WHAT = {"text": "as plain text", "rendered": "as text that went through the chat template before"}
_LIMITS = {
    "given": "as given",
    "set": "the default for problem sets",
    "chain": "1.5 x the gold chain + 16",
    "answer": "the answer + 1",
    "text": "the default without a gold chain",
    "thinking": "the default for models that think",
}


def describe(traces: Sequence[Trace]) -> str:
    """Return one line on how the traces of `generate` were asked: rendering, chat template, room for the response."""
    known = [trace.info for trace in traces if "rendering" in trace.info]
    parts = []
    for (rendering, uses_chat, limit), n in Counter(
        (i["rendering"], i["chat_template"], i["limit"]) for i in known
    ).items():
        sizes = [int(i["max_new_tokens"]) for i in known if (i["rendering"], i["limit"]) == (rendering, limit)]
        what = _WHAT.get(str(rendering), f"in the {rendering} rendering")
        how = "through the chat template" if uses_chat else "without a chat template"
        room = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
        parts.append(f"{n} {what}, {how}, at most {room} new tokens ({_LIMITS[str(limit)]})")
    if n_unknown := len(traces) - len(known):
        parts.append(f"{n_unknown} in an unknown way")
    return f"Asked {'; '.join(parts)}." if parts else "Nothing was asked."
