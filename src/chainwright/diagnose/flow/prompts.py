"""From text to the inputs of `logit_flow` and `flow_stages`: a prompt with its target, and the positions of words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright.diagnose.flow._components import token_text
from chainwright.diagnose.flow.attribution import SpanMode
from chainwright.diagnose.flow.stages import MarkedQuery
from chainwright.tasks import Problem
from chainwright.traces.offsets import token_offsets


@dataclass(frozen=True)
class FlowPrompt:
    """A prompt as tokens, with the tokens of its target and of a conflicting answer.

    Attributes:
        text: The prompt.
        input_ids: `[T]`.
        target_ids: The target's tokens, at least one.
        conflict_id: The first token of the conflicting answer, or None.
    """

    text: str
    input_ids: Tensor
    target_ids: list[int]
    conflict_id: int | None = None


def flow_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str, target: str, *, against: str | None = None, span: SpanMode | None
) -> FlowPrompt:
    """Return a prompt and its target as tokens; a space is put between them unless either has one there.

    Args:
        tokenizer: The model's tokenizer.
        prompt: The text before the target, used as it is, without a chat template.
        target: The answer to follow.
        against: A conflicting answer; only its first token is compared.
        span: As in `logit_flow`: how to treat a target of several tokens, None to refuse it.

    Raises:
        BadInput: The prompt or target is empty or has a word that the tokenizer does not know, the target has several
            tokens without `span`, or the conflicting answer begins with the same token.
    """
    if not prompt.strip():
        raise BadInput("The prompt is empty; give the text before the target.")
    ids = _known(tokenizer, "prompt", prompt, _unclosed(tokenizer, prompt))
    targets = _continuation(tokenizer, prompt, ids, "target", target)
    if len(targets) > 1 and span is None:
        pieces = ", ".join(repr(token_text(tokenizer, i)) for i in targets)
        raise BadInput(
            f"The target {target!r} is {len(targets)} tokens here ({pieces}); choose --span first to follow the "
            "first one, or --span sum to follow and sum all of them."
        )
    conflict = None
    if against is not None:
        conflict = _continuation(tokenizer, prompt, ids, "conflicting answer", against)[0]
        if conflict == targets[0]:
            raise BadInput(
                f"The target {target!r} and the conflicting answer {against!r} begin with the same token, "
                f"{token_text(tokenizer, conflict)!r}, so they cannot be compared; put what they share into the "
                "prompt."
            )
    return FlowPrompt(prompt, torch.tensor(ids), targets if span == "sum" else targets[:1], conflict)


def _continuation(tokenizer: PreTrainedTokenizerBase, prompt: str, ids: list[int], what: str, text: str) -> list[int]:
    """Return the tokens of a text that follows the prompt."""
    if not text.strip():
        raise BadInput(f"The {what} is empty; give the text that the model might write.")
    is_spaced = prompt[-1].isspace() or text[0].isspace()
    whole = _unclosed(tokenizer, prompt + ("" if is_spaced else " ") + text)
    if whole[: len(ids)] == ids and len(whole) > len(ids):
        continuation = whole[len(ids) :]
    else:  # the tokenizer merges the end of the prompt with the text, so the text is tokenized by itself
        continuation = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return _known(tokenizer, what, text, continuation)


def _unclosed(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of a text without the end token that some tokenizers append to every text."""
    ids = list(tokenizer(text)["input_ids"])
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def _known(tokenizer: PreTrainedTokenizerBase, what: str, text: str, ids: list[int]) -> list[int]:
    if not ids:
        raise BadInput(f"The {what} {text!r} has no tokens; give some text.")
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        words = text.split()
        lost = [w for w in words if tokenizer.unk_token_id in tokenizer(w, add_special_tokens=False)["input_ids"]]
        raise BadInput(
            f"The {what} has {', '.join(map(repr, lost or [text]))}, which is not in this model's vocabulary of "
            f"{len(tokenizer)} tokens; use words that are in it."
        )
    return ids


def marked_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: FlowPrompt, *, entity: str | None, relation: str | None
) -> MarkedQuery:
    """Return a prompt as a query with the tokens of two of its words or phrases marked.

    Args:
        tokenizer: The model's tokenizer.
        prompt: From `flow_prompt`.
        entity: The entity as it is written in the prompt; its last mention is marked.
        relation: The relation as it is written in the prompt.

    Raises:
        BadInput: One of them is missing, or not in the prompt.
    """
    places: list[tuple[int, ...]] = []
    for name, text in (("entity", entity), ("relation", relation)):
        if not text:
            raise BadInput(
                f"The stages need both words marked, and the {name} is not: pass --entity and --relation with words "
                "of the prompt, or neither for a flow without stages."
            )
        places.append(marks_of(tokenizer, prompt, name, text))
    return MarkedQuery(prompt.input_ids, prompt.target_ids[0], places[0], places[1], prompt.conflict_id)


def marks_of(tokenizer: PreTrainedTokenizerBase, prompt: FlowPrompt, name: str, text: str) -> tuple[int, ...]:
    """Return the positions of the tokens that write a text, at its last mention in a prompt.

    Args:
        tokenizer: The model's tokenizer.
        prompt: From `flow_prompt`.
        name: What the text names, for the message.
        text: Words as they are written in the prompt.

    Raises:
        BadInput: The text is not in the prompt.
    """
    cut = token_offsets(tokenizer, prompt.input_ids.tolist(), keep_markers=True)
    start = cut.text.rfind(text)
    positions = tuple(
        i for i, span in enumerate(cut.offsets) if start >= 0 and span.start < start + len(text) and span.end > start
    )
    if not positions:
        raise BadInput(f"The {name} {text!r} is not in the prompt {prompt.text!r}; give words as written there.")
    return positions


def problem_queries(
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    follow: Sequence[str],
    against: Sequence[str | None],
) -> list[MarkedQuery]:
    """Return questions about a made-up world as queries with two words marked.

    With one hop these are e1 and r1, the entity and the relation. With two they are r1 and r2 (`hop_marks`), since the
    question there is whether the first hop's position contributes to the answer.

    Args:
        tokenizer: The model's tokenizer.
        problems: From `World.question`.
        follow: The answer to follow for each question.
        against: A conflicting answer for each question, or None; an equal answer counts as None.

    Raises:
        BadInput: A word that the tokenizer does not know.
    """
    queries = []
    for problem, target, other in zip(problems, follow, against, strict=True):
        prompt = flow_prompt(tokenizer, problem.prompt, target, against=None if other == target else other, span=None)
        first, second = (
            marks_of(tokenizer, prompt, name, problem.facts[key])
            for key, name in zip(
                ("r1", "r2") if problem.hops == 2 else ("e1", "r1"), hop_marks(problem.hops), strict=True
            )
        )
        queries.append(MarkedQuery(prompt.input_ids, prompt.target_ids[0], first, second, prompt.conflict_id))
    return queries


def hop_marks(hops: int) -> tuple[str, str]:
    """Return the names of the two marked words in a question about a made-up world."""
    return ("first relation", "second relation") if hops == 2 else ("entity", "relation")
