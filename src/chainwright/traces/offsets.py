"""The characters of the decoded text that each token wrote, found by decoding and never by tokenising again.

1. Decode a growing window of ids, one id longer each time. The text that a new id adds to the window is its own.
2. While the text ends inside a character, wait for the ids that complete it.
3. When an id changes earlier text (a decoder removes the space before a newline), withdraw the changed characters and
   assign them again in order.
4. Start a new window every few ids, so that the time grows linearly with their number.
5. Compare with the text of all ids decoded at once. If it differs (a decoder that looks far back), start over with one
   window from the first id on, which is exact and takes quadratic time.

A byte-level tokenizer needs none of this: the bytes of its ids are known, and their places follow by counting. The
result is taken if it is the text that the tokenizer decodes.

Tokenizers differ in what the first id of a window loses (a leading space, part of a character). Both texts of a window
lose the same, so their difference is unaffected.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol

from tokenizers import Tokenizer as CoreTokenizer
from tokenizers.decoders import ByteLevel
from transformers import PreTrainedTokenizerFast

from chainwright.markers.known import MARKERS, ThinkMarkers
from chainwright.traces.segments import Span

_WINDOW = 8  # ids of context that a new window begins with; a character takes at most four
_MOST_PENDING = 16  # ids that may wait for a character to be completed; more than that are not valid UTF-8
_UNFINISHED = "\ufffd"  # what a decoder writes for the bytes of an incomplete character


class Tokenizer(Protocol):
    """The methods of a tokenizer that this package uses; every Hugging Face tokenizer has them."""

    @property
    def all_special_ids(self) -> list[int]:
        """Ids that `decode` omits when special tokens are skipped."""

    def __call__(self, text: str, **kwargs: Any) -> Mapping[str, Any]:
        """Return at least `input_ids`."""

    def decode(self, token_ids: list[int], **kwargs: Any) -> Any:
        """Return the text of a list of ids."""

    def convert_ids_to_tokens(self, ids: int) -> Any:
        """Return the token of an id."""

    def convert_tokens_to_ids(self, tokens: str) -> Any:
        """Return the id of a token; for an unknown token None or the id of another one."""


class TokenOffsets(NamedTuple):
    """A text and the characters that each token covers.

    Attributes:
        text: The decoded text.
        offsets: One span per token, in order. Tokens that together write one character share its span; a token
            that writes nothing has an empty span at its place in the text.
    """

    text: str
    offsets: list[Span]


def token_offsets(
    tokenizer: Tokenizer,
    input_ids: Sequence[int],
    *,
    keep_markers: bool = False,
    markers: ThinkMarkers | None = None,
) -> TokenOffsets:
    """Return the decoded text of `input_ids` and the span of it that each token covers.

    Args:
        tokenizer: The tokenizer of the ids.
        input_ids: T token ids.
        keep_markers: Whether segment markers that are special tokens (Harmony's) stay in the text. Otherwise the text
            equals `tokenizer.decode(input_ids, skip_special_tokens=True)`.
        markers: A pair that counts as segment markers besides the known ones.
    """
    decode = _decoder(tokenizer)
    hidden = _hidden_markers(tokenizer, decode, markers) if keep_markers else {}
    # special tokens other than markers; a special token that does decode to text counts as ordinary
    silent = {i for i in set(input_ids) & set(tokenizer.all_special_ids) if i not in hidden and not decode([i])}
    pieces = token_bytes(tokenizer, set(input_ids) - silent)
    text, offsets = "", []
    for run in _runs(input_ids, hidden):
        if run[0] in hidden:
            # `decode` would drop the marker, so its text is put in by hand
            part, spans = hidden[run[0]], [Span(0, len(hidden[run[0]]))]
        else:
            part, spans = _offsets_of_run(decode, run, silent, pieces)
        offsets += [Span(len(text) + span.start, len(text) + span.end) for span in spans]
        text += part
    return TokenOffsets(text, offsets)


def decode_with_markers(tokenizer: Tokenizer, input_ids: Sequence[int], markers: ThinkMarkers | None = None) -> str:
    """Return the text of `token_offsets(..., keep_markers=True)` without the offsets, which is faster."""
    return MarkerDecoder(tokenizer, markers)(input_ids)


class MarkerDecoder:
    """Decodes like `decode_with_markers`, but looks up the tokenizer's markers only once."""

    def __init__(self, tokenizer: Tokenizer, markers: ThinkMarkers | None = None):
        self.markers = markers
        self._decode = _decoder(tokenizer)
        self._markers = _hidden_markers(tokenizer, self._decode, markers)

    def __call__(self, input_ids: Sequence[int]) -> str:
        """Return the text of some ids."""
        if self._markers.keys().isdisjoint(input_ids):
            return self._decode(list(input_ids))
        runs = _runs(input_ids, self._markers)
        return "".join(self._markers[run[0]] if run[0] in self._markers else self._decode(run) for run in runs)


def _decoder(tokenizer: Tokenizer) -> Callable[[list[int]], str]:
    """Return a function from ids to text that skips special tokens and does not clean up spaces."""
    own = (getattr(type(tokenizer), "decode", None), getattr(type(tokenizer), "_decode", None))
    if own == (PreTrainedTokenizerFast.decode, PreTrainedTokenizerFast._decode):
        core = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        return lambda ids: str(core.decode(ids, skip_special_tokens=True))  # what `decode` calls, after many checks
    return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _hidden_markers(
    tokenizer: Tokenizer, decode: Callable[[list[int]], str], own: ThinkMarkers | None
) -> dict[int, str]:
    """Return the markers, by id, that are special tokens of this tokenizer and so are missing from decoded text."""
    hidden = {}
    for marker in (*MARKERS, *((own.open, own.close) if own else ())):
        token_id = tokenizer.convert_tokens_to_ids(marker)
        # for an unknown token some tokenizers return the id of <unk>, hence the way back
        if isinstance(token_id, int) and tokenizer.convert_ids_to_tokens(token_id) == marker:
            if not decode([token_id]):
                hidden[token_id] = marker
    return hidden


def _runs(input_ids: Sequence[int], markers: Mapping[int, str]) -> Iterator[list[int]]:
    """Yield the ids in runs: each marker alone, and the ids between two markers together."""
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


def _offsets_of_run(
    decode: Callable[[list[int]], str], run: list[int], silent: set[int], pieces: Mapping[int, bytes] | None
) -> TokenOffsets:
    """Return text and spans of one run; silent (special) ids get an empty span at their place."""
    audible = [token_id for token_id in run if token_id not in silent]
    whole = decode(run)
    found = None if pieces is None else spans_of_bytes([pieces[token_id] for token_id in audible])
    text, spans = found if found is not None and found.text == whole else _walk(decode, audible, _WINDOW)
    if text != whole:
        # a decoder that looks further back than a window: exact, but quadratic in the length
        text, spans = _walk(decode, audible, len(audible))
    # a silent id gets the position where the next audible one begins, the last ones that of the end of the text
    remaining = [*spans, Span(len(text), len(text))][::-1]
    offsets: list[Span] = []
    for token_id in run:
        start = remaining[-1].start
        offsets.append(Span(start, start) if token_id in silent else remaining.pop())
    return TokenOffsets(text, offsets)


def token_bytes(tokenizer: Tokenizer, ids: Collection[int]) -> dict[int, bytes] | None:
    """Return the bytes that each id writes, whatever its neighbours; None for a tokenizer that is not byte-level."""
    if not _is_fast(tokenizer) or not isinstance(tokenizer.backend_tokenizer.decoder, ByteLevel):  # type: ignore[attr-defined]
        return None
    strings = {token_id: tokenizer.convert_ids_to_tokens(token_id) for token_id in ids}
    if not all(isinstance(string, str) for string in strings.values()):
        return None
    alphabet = _byte_alphabet()
    return {
        token_id: bytes(map(alphabet.__getitem__, string)) if alphabet.keys() >= set(string) else string.encode()
        for token_id, string in strings.items()
    }


def spans_of_bytes(pieces: Sequence[bytes]) -> TokenOffsets | None:
    """Return the text that pieces of UTF-8 make together, and the span of each; None if they are not valid UTF-8.

    A piece has the characters that it completes, or that one which it writes a part of.
    """
    whole = b"".join(pieces)
    try:
        text = whole.decode("utf-8")
    except UnicodeDecodeError:
        return None
    spans: list[Span] = []
    at = n_begun = n_complete = 0
    for piece in pieces:
        at += len(piece)
        n_begun += sum(byte & 0xC0 != 0x80 for byte in piece)
        # the last character is complete unless the next byte is one more of its own
        end = n_begun - (at < len(whole) and whole[at] & 0xC0 == 0x80)
        spans.append(Span(n_complete, max(end, n_complete + bool(piece))))
        n_complete = end
    return TokenOffsets(text, spans)


@cache
def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for, as GPT-2 has it."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _is_fast(tokenizer: Tokenizer) -> bool:
    return isinstance(getattr(tokenizer, "backend_tokenizer", None), CoreTokenizer)


def _walk(decode: Callable[[list[int]], str], ids: list[int], window: int) -> TokenOffsets:
    """Return text and spans by decoding windows of `window` to about `2 * window` ids of context."""
    chars: list[str] = []
    spans: list[Span] = []
    shared: set[int] = set()  # indices of tokens that wrote only part of a character
    anchor, clean = 0, ""  # clean = text of ids[anchor:len(spans)], which ends with a complete character
    pending: list[str] = []  # the window's text after each of the ids since then, one id longer each time
    for i in range(len(ids)):
        # a new window must not begin while ids wait for the end of a character
        if not pending and i - anchor >= 2 * window:
            anchor, clean = _new_anchor(decode, ids[:i], window, chars) or (anchor, clean)
        now = decode(ids[anchor : i + 1])
        pending.append(now)
        if now.endswith(_UNFINISHED) and len(pending) < _MOST_PENDING and i + 1 < len(ids):
            continue
        n_same = _n_common(clean, now)
        # characters from `base` on are new, or replace ones that this id has changed
        start = base = max(0, len(chars) - len(clean) + n_same)
        if n_same < len(clean):
            start = _assign_again("".join(chars[base:]), now[n_same:], base, spans, shared)
        chars[base:] = now[n_same:]
        for text in pending:
            # a pending id owns what was final after it; inside a character that is nothing
            end = max(start, base - n_same + _n_common(text, now))
            if start == end and len(pending) > 1:
                shared.add(len(spans))
            spans.append(Span(start, end))
            start = end
        clean, pending = now, []
    # all tokens of one character get its whole span
    for i in shared:
        start, end = spans[i]
        spans[i] = Span(start, max(end, min(start + 1, len(chars))))
    return TokenOffsets("".join(chars), spans)


def _new_anchor(
    decode: Callable[[list[int]], str], ids: list[int], window: int, chars: list[str]
) -> tuple[int, str] | None:
    """Return the start of a new window and its text so far, or None.

    It may begin about `window` ids back, at an id from which on the decoder gives the same text as before, which it
    does not between two bytes of a character.
    """
    # four tries: a character has at most four bytes, so one of four successive ids begins one
    for anchor in range(len(ids) - window, len(ids) - window - 4, -1):
        text = decode(ids[anchor:])
        if text and chars[-len(text) :] == list(text):
            return anchor, text
    return None


def _n_common(a: str, b: str) -> int:
    """Return the length of the common prefix of two texts."""
    if b.startswith(a):
        return len(a)
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (left, right) in pairs if left != right), min(len(a), len(b)))


def _assign_again(old: str, new: str, base: int, spans: list[Span], shared: set[int]) -> int:
    """Assign the characters from `base` on, formerly `old` and now `new`, to the tokens before the latest one.

    A token keeps what it wrote if that is still there, possibly without the spaces around it. Otherwise it gets an
    empty span and is added to `shared`: it wrote part of the character that the latest token completes.

    Returns:
        The position at which the latest token's own characters begin.
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
