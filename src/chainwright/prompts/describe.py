"""How traces were asked, in words."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from chainwright.traces import Trace

Info: TypeAlias = Mapping[str, Any]
_WHAT = {"text": "as plain text", "rendered": "as text that went through the chat template before"}
_DRAWN = {"top_p": "top-p", "top_k": "top-k", "min_p": "min-p", "repetition_penalty": "repetition penalty"}
_LIMITS = {
    "given": "as given",
    "set": "the default for problem sets",
    "chain": "1.5 x the gold chain + 16",
    "answer": "the answer + 1",
    "text": "the default without a gold chain",
    "thinking": "the default for models that think",
}


def describe(traces: Sequence[Trace]) -> str:
    """Return one line on how the traces of `generate` were asked and drawn."""
    known = [trace.info for trace in traces if "rendering" in trace.info]
    groups: dict[tuple[str, ...], list[Info]] = defaultdict(list)
    for info in known:
        groups[_how(info)].append(info)
    parts = [f"{len(infos)} {', '.join([*how[:-1], _room(infos, how[-1])])}" for how, infos in groups.items()]
    if n_unknown := len(traces) - len(known):
        parts.append(f"{n_unknown} in an unknown way")
    drawn = "".join(f" {sentence}" for sentence in dict.fromkeys(filter(None, map(_drawn, known))))
    if n_more := max((int(info.get("sample", 0)) for info in known), default=0):
        drawn += f" {n_more + 1} responses to each problem."
    return f"Asked {'; '.join(parts)}.{drawn}" if parts else "Nothing was asked."


def _how(info: Info) -> tuple[str, ...]:
    """Return the parts of a sentence on how one trace was asked, and what its limit follows from."""
    what = _WHAT.get(str(info["rendering"]), f"in the {info['rendering']} rendering")
    parts = [what, "through the chat template" if info["chat_template"] else "without a chat template"]
    if "shots" in info:
        parts.append(_shots(info))
    if "system" in info:
        where = " (in the first turn, since the template has no system role)" if info.get("system_folded") else ""
        parts.append(f"system prompt {_quoted(info['system'])}{where}")
    if "chat_kwargs" in info:
        kwargs = json.loads(str(info["chat_kwargs"]))
        parts.append("template with " + ", ".join(f"{name}={json.dumps(value)}" for name, value in kwargs.items()))
    if "instruction" in info:
        parts.append(f"instruction {_quoted(info['instruction'])}")
    return (*parts, str(info["limit"]))


def _shots(info: Info) -> str:
    if not info["shots"]:
        return "without demonstrations"
    where = "as turns of the chat" if info["shots_as"] == "chat" else "in one text"
    source = f" from {info['shots_from']}" if "shots_from" in info else ""
    return f"{info['shots']} demonstration{'s' if int(info['shots']) > 1 else ''}{source} {where}"


def _room(infos: Sequence[Info], limit: str) -> str:
    sizes = [int(info["max_new_tokens"]) for info in infos]
    room = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    return f"at most {room} new tokens ({_LIMITS[limit]})"


def _drawn(info: Info) -> str:
    """Return a sentence on how one trace was drawn, "" for plain greedy decoding."""
    parts = [f"{words} {info[name]:g}" for name, words in _DRAWN.items() if name in info]
    if info.get("temperature"):
        parts = [f"Drawn at temperature {info['temperature']:g}", *parts]
    elif parts:
        parts = ["Greedy", *parts]
    if "stops" in info:
        parts.append("stop at " + ", ".join(map(repr, json.loads(str(info["stops"])))))
    if "max_thinking_tokens" in info:
        parts.append(f"at most {info['max_thinking_tokens']} tokens of thinking")
    text = ", ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _quoted(text: object) -> str:
    line = " ".join(str(text).split())
    return repr(line if len(line) <= 60 else f"{line[:60]}...")
