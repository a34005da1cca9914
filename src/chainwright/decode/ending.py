"""What ends a response besides the end token: stop strings, and thinking that takes too long.

1. The text of each row grows with its tokens, so that a stop string is found across tokens.
2. A stop string counts where the thinking is not open: neither inside it nor in the marker that closes it. Blank ones,
   such as an empty line, do not count between that marker and the answer either.
3. The response ends before the stop string. Tokens stay whole: one that wrote the end of the answer and the beginning
   of the stop string is in the response, with both; one that wrote only a space before the stop string is not.
4. Thinking that is open for too many tokens ends the response there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria

from chainwright._errors import BadInput
from chainwright.markers.borders import prompt_family
from chainwright.markers.known import MARKERS, Events, ThinkMarkers, events
from chainwright.markers.scan import Core, Scan, scan
from chainwright.traces._growing_text import GrowingText
from chainwright.traces.offsets import MarkerDecoder, decode_with_markers, token_offsets


class End(NamedTuple):
    """Where a response ended before its end token.

    Attributes:
        n_tokens: How many of the new tokens belong to it.
        stop: The stop string that ended it; None where the thinking took too long.
        place: Where that begins in the text of the response.
    """

    n_tokens: int
    stop: str | None
    place: int = -1


@dataclass(frozen=True)
class Endings:
    """What ends responses.

    Attributes:
        tokenizer: The model's tokenizer.
        stops: Stop strings, without those that are special tokens.
        end_ids: Special tokens that were passed as stop strings.
        max_thinking: Most tokens that thinking may be open for; None without a limit.
        markers: The pair of markers around the thinking; None knows the usual ones.
    """

    tokenizer: PreTrainedTokenizerBase
    stops: tuple[str, ...] = ()
    end_ids: frozenset[int] = frozenset()
    max_thinking: int | None = None
    markers: ThinkMarkers | None = None

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        stops: Sequence[str],
        max_thinking: int | None,
        markers: ThinkMarkers | None,
    ) -> Endings:
        """Return what ends responses; stop strings that are special tokens become end tokens.

        Raises:
            BadInput: A stop string is a marker of thinking, or holds a special token beside other text.
        """
        texts: list[str] = []
        end_ids: set[int] = set()
        special = _special_tokens(tokenizer) if stops else {}
        own = () if markers is None else (markers.open, markers.close)
        for stop in dict.fromkeys(stops):
            if stop.strip() in (*MARKERS, *own):
                raise BadInput(
                    f"{stop!r} is a marker of thinking, while which no stop string is looked for; limit the thinking "
                    "with max_thinking_tokens (--max-thinking-tokens)."
                )
            if stop in special:
                end_ids.add(special[stop])
            elif inside := [token for token in special if token in stop]:
                raise BadInput(f"The stop string {stop!r} holds the special token {inside[0]!r}; pass that alone.")
            else:
                texts.append(stop)
        return cls(tokenizer, tuple(texts), frozenset(end_ids), max_thinking, markers)

    @property
    def are_watched(self) -> bool:
        """Whether the text of responses has to be read while they are written."""
        return bool(self.stops) or self.max_thinking is not None

    def watch(
        self, prompts: Sequence[Sequence[int]], n_questions: Sequence[int], more: Sequence[Sequence[str]]
    ) -> Watch:
        """Return what watches a batch.

        Args:
            prompts: The prompt of each row.
            n_questions: How many of its tokens are the question; the rest begins the response.
            more: Stop strings of each row alone.
        """
        how, decode = events("auto", self.markers), MarkerDecoder(self.tokenizer, self.markers)
        rows = []
        for ids, n_question, own in zip(prompts, n_questions, more, strict=True):
            question = decode_with_markers(self.tokenizer, list(ids[:n_question]), self.markers)
            family = prompt_family(question, "auto", self.markers)
            first = Scan(core=Core(family=family, depth=int(family is not None)))
            stops = tuple(dict.fromkeys((*self.stops, *own)))
            rows.append(_Row(self, stops, how, first, GrowingText(self.tokenizer, decode), ids[n_question:]))
        return Watch(rows, max(map(len, prompts)))


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the tokens that are skipped in decoded text, with their ids."""
    known = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in tokenizer.all_special_tokens}
    return known | {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}


class Watch(StoppingCriteria):  # type: ignore[misc]
    """Ends the rows of a batch inside `model.generate`.

    Attributes:
        rows: The rows.
        eos_token_id: Has Transformers pad the rows that are over, also of a model without end tokens.
    """

    def __init__(self, rows: Sequence[_Row], n_prompt: int):
        self.rows, self.n_read = rows, n_prompt
        self.eos_token_id = None

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        """Return which rows are over, bool `[N]`."""
        for row, ids in zip(self.rows, input_ids[:, self.n_read :].tolist(), strict=True):
            row.extend(ids)
        self.n_read = input_ids.shape[1]
        return torch.tensor([row.end is not None for row in self.rows], device=input_ids.device)


class _Row:
    """A response that is being written.

    Attributes:
        end: Where it ended, None as long as it has not.
        n_new: Tokens that were read.
    """

    def __init__(
        self,
        endings: Endings,
        stops: tuple[str, ...],
        how: Events,
        first: Scan,
        written: GrowingText,
        prefilled: Sequence[int],
    ):
        self.endings, self.stops, self.how, self.first, self.written = endings, stops, how, first, written
        self.end: End | None = None
        self.n_new = self.n_thinking = 0
        self.prefilled = list(prefilled)
        self._state = first
        for token in self.prefilled:
            written.append(token)
        self._begin = self._searched = len(written.text)

    def extend(self, ids: Sequence[int]) -> None:
        """Read more tokens, unless the response is over."""
        for token in ids:
            if self.end is None:
                self._append(token)

    def _append(self, token: int) -> None:
        if self.written.append(token) is None:  # any of the text may have changed
            self._state, self._searched = self.first, self._begin
        self.n_new += 1
        stopped = self._stopped()
        if stopped is not None:
            self.end = End(self._n_before(stopped[0]), stopped[1], stopped[0])
        elif self.endings.max_thinking is not None and self._is_open(self.written.n_whole):
            self.n_thinking += 1
            if self.n_thinking >= self.endings.max_thinking:
                self.end = End(self.n_new, None)

    def _stopped(self) -> tuple[int, str] | None:
        """Return where the first stop string begins that counts, and which it is."""
        text, longest = self.written.text[: self.written.n_whole], max(map(len, self.stops), default=1)
        start = self._searched
        while hits := [(place, stop) for stop in self.stops if (place := text.find(stop, start)) >= 0]:
            place, stop = min(hits, key=lambda hit: (hit[0], -len(hit[1])))
            if self._counts(place, stop):
                return place, stop
            start = place + 1
        self._searched = max(start, len(text) - longest + 1, self._begin)
        return None

    def _counts(self, place: int, stop: str) -> bool:
        """Return whether a stop string at `place` ends the response: not in the thinking, nor before the answer."""
        core = self._core(place)
        is_before_answer = core.border >= 0 and not f"{self.written.text[core.border : place]}{stop}".strip()
        return core.depth == 0 and not is_before_answer

    def _is_open(self, end: int) -> bool:
        """Return whether the thinking is open after `text[:end]`."""
        return self._core(end).depth > 0

    def _core(self, end: int) -> Core:
        """Return which markers count in `text[:end]`."""
        text = self.written.text
        if end < self._state.pos:
            return scan(self.how, self.first, text, end, final=True).core
        self._state = scan(self.how, self._state, text, end)
        return scan(self.how, self._state, text, end, final=True).core

    def _n_before(self, place: int) -> int:
        """Return how many of the new tokens to keep before a character of the text."""
        ids, markers = self.written.ids, self.endings.markers
        spans = token_offsets(self.endings.tokenizer, ids, keep_markers=True, markers=markers).offsets
        text = self.written.text
        wrote = [s.start < s.end and (s.end <= place or text[s.start : place].strip() != "") for s in spans]
        return max(0, max((i + 1 for i, is_before in enumerate(wrote) if is_before), default=0) - len(self.prefilled))
