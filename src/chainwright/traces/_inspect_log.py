"""The samples of inspect's logs: the last reply with its score, and, where Chainwright wrote it, its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chainwright._errors import BadTrace
from chainwright.traces._entries import Entry, Record, ids_of, label_of
from chainwright.traces._messages import entry_of, replies_of, split_chat


def inspect_entries(record: Record) -> list[Entry]:
    """Return the sample of an inspect log; the reply to the last question is the response.

    Raises:
        BadTrace: The sample ended in an error, or the model gave no answer.
    """
    if record.get("error") and not (record.get("output") or {}).get("choices"):
        error = record["error"]
        message = error.get("message", "") if isinstance(error, Mapping) else error
        raise BadTrace(f"the sample ended in an error ({str(message)[:80]})")
    record = _with_attachments(record)
    choices = record["output"].get("choices") or []
    if not choices:
        raise BadTrace("the sample has no output")
    if (error := record["output"].get("error")) and not record["output"].get("completion"):
        raise BadTrace(f"the model gave no answer ({str(error)[:120]})")
    replies = replies_of("choices", choices)
    ours = _ours(record)
    turns = list(record.get("messages") or [])
    while turns and turns[-1].get("role") == "assistant":
        turns.pop()
    if not turns:
        turns = record["input"] if isinstance(record["input"], list) else [{"role": "user", "content": record["input"]}]
    before, _ = split_chat(turns)
    target = record["target"]
    answer = target[0] if isinstance(target, (list, tuple)) and target else target
    question = record["input"] if isinstance(record["input"], str) else None
    metadata = record.get("metadata") or {}
    shared = {
        "question": question,
        "turns": before,
        "prompt_ids": ids_of(ours.get("prompt_token_ids")),
        "label": _inspect_label(record.get("scores") or {}),
        "answer": answer if isinstance(answer, (str, int, float)) and answer != "" else None,
        "id": label_of(record, ("id",)),
        "model": str(record.get("model", "")),
        "labels": {k: v for k, v in metadata.items() if isinstance(v, (str, int, float)) and not isinstance(v, bool)},
    }
    epoch = int(record.get("epoch", 1)) - 1
    for k, details in enumerate(ours.get("choices", [])):
        replies[k] = replies[k]._replace(ids=ids_of(details.get("token_ids")))
    return [entry_of(reply, sample=epoch * len(replies) + k, **shared) for k, reply in enumerate(replies)]


def _inspect_label(scores: Mapping[str, Any]) -> bool | None:
    """Return what the first scorer says: C or 1 is right, I, N or 0 wrong, anything between is neither."""
    for score in scores.values():
        value = score.get("value") if isinstance(score, Mapping) else score
        if isinstance(value, bool) or value in ("C", "I", "N", 0, 1):
            return value in ("C", 1, True)
    return None


def _with_attachments(record: Record) -> Record:
    """Return a sample with its long texts, which a log keeps apart, put back."""
    attachments = record.get("attachments") or {}
    return _replaced(record, {f"attachment://{name}": text for name, text in attachments.items()})  # type: ignore[no-any-return]


def _replaced(value: Any, texts: Mapping[str, str]) -> Any:
    if not texts:
        return value
    if isinstance(value, str):
        return texts.get(value, value)
    if isinstance(value, Mapping):
        return {
            key: item if key in ("events", "attachments") else _replaced(item, texts) for key, item in value.items()
        }
    return [_replaced(item, texts) for item in value] if isinstance(value, list) else value


def _ours(record: Record) -> Mapping[str, Any]:
    """Return what the provider `chainwright` says of the tokens of an output; empty for any other."""
    ours = (record["output"].get("metadata") or {}).get("chainwright")
    is_ours = isinstance(ours, Mapping) and len(ours.get("choices", ())) == len(record["output"]["choices"])
    return ours if isinstance(ours, Mapping) and is_ours else {}
