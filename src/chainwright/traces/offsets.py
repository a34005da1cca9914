"""Which characters of the decoded text each token wrote, found by decoding and never by tokenising again.

1. Decode a growing window of ids, one id longer each time. What the new id added to the window's text is its
   own.
2. While the text ends in half a character, wait for the ids that complete it.
3. When an id changes text that was there before it (a decoder removes the space before a newline), take the
   changed characters back and hand them out again in order.
4. Let the window begin anew every few ids, so that the time grows linearly with their number.
5. Compare with the text of all ids decoded at once. Should it differ (a decoder that looks far back), start
   over with a window that holds every id from the first one on, which is exact and takes quadratic time.

Tokenizers differ in what the first id of a window loses (a leading space, half a character); both texts of a
window lose it alike, so their difference does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from chainwright.traces.segments import MARKERS, Span

_WINDOW = 8  # ids of context that a new window begins with; a character takes at most four
_MOST_PENDING = 16  # ids that may wait for a character to be finished; more are garbage
_UNFINISHED = "\ufffd"  # what a decoder writes for the bytes of a character that is not complete


class Tokenizer(Protocol):
    """What this package needs of a tokenizer; every Hugging Face tokenizer has it."""

    @property
    def all_special_ids(self) -> list[int]:
        """Ids that `decode` leaves out when special tokens are skipped."""

    def __call__(self, text: str, **kwargs: Any) -> Mapping[str, Any]:
        """Return at least `input_ids`."""

    def decode(self, token_ids: list[int], **kwargs: Any) -> Any:
        """Return the text of a list of ids."""

    def convert_ids_to_tokens(self, ids: int) -> Any:
        """Return the token of an id."""

    def convert_tokens_to_ids(self, tokens: str) -> Any:
        """Return the id of a token, or an id of another token or None when there is no such token."""


class TokenOffsets(NamedTuple):
    """A text and the characters that each token covers.

    Attributes:
        text: The decoded text.
        offsets: A span for each token, in order. Tokens that together write one character share its span; a
            token that writes nothing has an empty span where it stands.
    """

    text: str
    offsets: list[Span]


def token_offsets(tokenizer: Tokenizer, input_ids: Sequence[int], *, keep_markers: bool = False) -> TokenOffsets:
    """Return the decoded text of `input_ids` and the span of it that each token covers.

    Args:
        tokenizer: The tokenizer that the ids belong to.
        input_ids: T token ids.
        keep_markers: Whether segment markers that are special tokens (Harmony's) stay in the text. Without
            it the text equals `tokenizer.decode(input_ids, skip_special_tokens=True)`.
    """
    decode = _decoder(tokenizer)
    markers = _hidden_markers(tokenizer, decode) if keep_markers else {}
    silent = {i for i in set(input_ids) & set(tokenizer.all_special_ids) if i not in markers and not decode([i])}
    text, offsets = "", []
    for run in _runs(input_ids, markers):
        if run[0] in markers:
            part, spans = markers[run[0]], [Span(0, len(markers[run[0]]))]
        else:
            part, spans = _offsets_of_run(decode, run, silent)
        offsets += [Span(len(text) + span.start, len(text) + span.end) for span in spans]
        text += part
    return TokenOffsets(text, offsets)


def decode_with_markers(tokenizer: Tokenizer, input_ids: Sequence[int]) -> str:
    """Return the text of `token_offsets(..., keep_markers=True)` without its offsets, which is faster."""
    return MarkerDecoder(tokenizer)(input_ids)


class MarkerDecoder:
    """Decodes as `decode_with_markers` does; what it needs to know of the tokenizer is looked up once."""

    def __init__(self, tokenizer: Tokenizer):
        self._decode = _decoder(tokenizer)
        self._markers = _hidden_markers(tokenizer, self._decode)

    def __call__(self, input_ids: Sequence[int]) -> str:
        """Return the text of some ids."""
        if self._markers.keys().isdisjoint(input_ids):
            return self._decode(list(input_ids))
        runs = _runs(input_ids, self._markers)
        return "".join(self._markers[run[0]] if run[0] in self._markers else self._decode(run) for run in runs)


def _decoder(tokenizer: Tokenizer) -> Callable[[list[int]], str]:
    """Return a function from ids to text, special tokens skipped and spaces left as they are."""
    return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _hidden_markers(tokenizer: Tokenizer, decode: Callable[[list[int]], str]) -> dict[int, str]:
    """Return the markers, by id, that this tokenizer has as special tokens and so leaves out of the text."""
    found = {}
    for marker in MARKERS:
        token_id = tokenizer.convert_tokens_to_ids(marker)
        if isinstance(token_id, int) and tokenizer.convert_ids_to_tokens(token_id) == marker:
            if not decode([token_id]):
                found[token_id] = marker
    return found


def _runs(input_ids: Sequence[int], markers: Mapping[int, str]) -> Iterator[list[int]]:
    """Yield the ids in runs: each marker alone, and what stands between markers together."""
    run: list[int] = []
    for token_id in input_ids:
        if token_id not in markers:
            run.append(token_id)
            continue
        if run:
            yield run
        yield [token_id]
        run = []
    if run:
        yield run


def _offsets_of_run(decode: Callable[[list[int]], str], run: list[int], silent: set[int]) -> TokenOffsets:
    """Return text and spans of one run; silent (special) ids get an empty span where they stand."""
    heard = [token_id for token_id in run if token_id not in silent]
    text, spans = _walk(decode, heard, _WINDOW)
    whole = decode(run)
    if text != whole:
        text, spans = _walk(decode, heard, len(heard))
    coming = [*spans, Span(len(text), len(text))][::-1]
    offsets: list[Span] = []
    for token_id in run:
        start = coming[-1].start
        offsets.append(Span(start, start) if token_id in silent else coming.pop())
    return TokenOffsets(text, offsets)


def _walk(decode: Callable[[list[int]], str], ids: list[int], window: int) -> TokenOffsets:
    """Return text and spans by decoding windows of `window` to about twice as many ids of context."""
    chars: list[str] = []
    spans: list[Span] = []
    shared: set[int] = set()  # tokens that wrote a part of a character, by index
    anchor, clean = 0, ""  # clean = text of ids[anchor:len(spans)]
    pending: list[str] = []  # texts of the ids after those, one id longer each
    for i in range(len(ids)):
        if not pending and i - anchor >= 2 * window:
            anchor, clean = _new_anchor(decode, ids[:i], window, chars) or (anchor, clean)
        now = decode(ids[anchor : i + 1])
        pending.append(now)
        if now.endswith(_UNFINISHED) and len(pending) < _MOST_PENDING and i + 1 < len(ids):
            continue
        kept = _n_common(clean, now)
        start = base = max(0, len(chars) - len(clean) + kept)
        if kept < len(clean):
            start = _hand_out_again("".join(chars[base:]), now[kept:], base, spans, shared)
        chars[base:] = now[kept:]
        for text in pending:
            end = max(start, base - kept + _n_common(text, now))
            if start == end and len(pending) > 1:
                shared.add(len(spans))
            spans.append(Span(start, end))
            start = end
        clean, pending = now, []
    for i in shared:
        start, end = spans[i]
        spans[i] = Span(start, max(end, min(start + 1, len(chars))))
    return TokenOffsets("".join(chars), spans)


def _new_anchor(
    decode: Callable[[list[int]], str], ids: list[int], window: int, chars: list[str]
) -> tuple[int, str] | None:
    """Return where a new window may begin, and its text so far, or None.

    It may begin about `window` ids back, at an id from which on the text comes out as it did before; between
    two bytes of a character it does not.
    """
    for anchor in range(len(ids) - window, len(ids) - window - 4, -1):
        text = decode(ids[anchor:])
        if text and chars[-len(text) :] == list(text):
            return anchor, text
    return None


def _n_common(a: str, b: str) -> int:
    """Return how many characters two texts have in common at their beginning."""
    if b.startswith(a):
        return len(a)
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (left, right) in pairs if left != right), min(len(a), len(b)))


def _hand_out_again(old: str, new: str, base: int, spans: list[Span], shared: set[int]) -> int:
    """Give the characters from `base` on, once `old` and now `new`, to the tokens before the latest one.

    A token keeps what it wrote if that still stands there (spaces around it may be gone); else it is left
    with nothing and noted in `shared`: it wrote a part of the character that the latest token completes.

    Returns:
        Where the latest token's own characters begin.
    """
    first = len(spans)
    while first and (spans[first - 1].end > base or spans[first - 1].start > base):
        first -= 1
    position = base
    for i in range(first, len(spans)):
        start, end = spans[i]
        piece = old[max(start - base, 0) : max(end - base, 0)].strip(" ")
        rest = new[position - base :]
        n_spaces = len(rest) - len(rest.lstrip(" "))
        begin = min(start, position)
        if piece and _UNFINISHED not in piece and rest[n_spaces:].startswith(piece):
            position += n_spaces + len(piece)
        else:
            shared.add(i)
        spans[i] = Span(begin, position)
    return position
