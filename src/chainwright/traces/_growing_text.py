"""The text of a response while its tokens arrive: after each token the same text and anchors as decoding all at once.

1. Decode a short window of ids that ends with the new one; what it adds to the window's former text is the new
   token's.
2. An incomplete character at the end is kept apart: the text has a replacement character there until it is complete.
3. Where a window cannot tell (the decoder changed text that was already there), all ids are decoded again as
   `token_offsets` decodes a finished trace.

Why not `tokenizers.decoders.DecodeStream`, which also decodes token by token: it returns None until a character is
complete, so a token inside a character has no position; it never takes text back, so with a decoder that removes an
earlier space it silently ends with another text than `decode` (`late_spaces` in the tests); skipping special tokens it
drops Harmony's markers, and keeping them it writes end-of-text tokens too; it cannot be cut back to fewer tokens when
speculative decoding rejects some; and it takes a `tokenizers.Tokenizer` only, not any object that has `decode`.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

from chainwright.traces.offsets import MarkerDecoder, Tokenizer, token_offsets

_WINDOW = 6  # ids that are decoded again to see what a new one adds; a character takes at most four
_INCOMPLETE = "\ufffd"  # what a decoder writes for the bytes of an incomplete character


class _Added(NamedTuple):
    """The text that a token adds: whole characters, and replacement characters for one that it leaves incomplete."""

    whole: str
    incomplete: str


class GrowingText:
    """The text of a growing list of tokens.

    Attributes:
        ids: The tokens so far.
        text: Their text, with a replacement character for an incomplete character at its end.
        ends: Number of complete characters after each token.
        anchors: First character of each token that is not white space, never decreasing.
    """

    def __init__(self, tokenizer: Tokenizer, decode: MarkerDecoder):
        self.tokenizer = tokenizer
        self.decode = decode
        self.ids: list[int] = []
        self.text = ""
        self.ends: list[int] = []
        self.anchors: list[int] = []
        # index of the window's first id, and the complete characters of the ids from there on
        self._window = (0, "")
        # tokens that were last read all at once; their `ends` need not be right one by one
        self._n_reread = 0

    def copy(self) -> GrowingText:
        """Return an independent text with the same tokens."""
        other = copy.copy(self)
        other.ids, other.anchors, other.ends = list(self.ids), list(self.anchors), list(self.ends)
        return other

    def append(self, token_id: int) -> int | None:
        """Add one token.

        Returns:
            The number of characters that were complete before it and still are, after which its own text begins; None
            if all text was decoded again, so that any of it may have changed.
        """
        self.ids.append(token_id)
        added = self._added()
        if added is None:
            self.reread()
            return None
        before = self.n_whole
        self.text = self.text[:before] + added.whole + added.incomplete
        self._anchor(before, added.whole or added.incomplete)
        self.ends.append(before + len(added.whole))
        return before

    def truncate(self, n_tokens: int) -> bool:
        """Drop all but the first tokens; return whether all text was decoded again."""
        del self.ids[n_tokens:], self.anchors[n_tokens:], self.ends[n_tokens:]
        if n_tokens < self._n_reread:
            self.reread()
            return True
        self.text = self.text[: self.n_whole]
        self.text += self._new_window(self.text)
        return False

    @property
    def n_whole(self) -> int:
        """Return the number of complete characters."""
        return self.ends[-1] if self.ends else 0

    def reread(self) -> None:
        """Decode all tokens again, as a finished trace is decoded."""
        self.text, offsets = token_offsets(self.tokenizer, self.ids, keep_markers=True, markers=self.decode.markers)
        self.anchors = []
        for span in offsets:
            self._anchor(span.start, self.text[span.start : span.end])
        whole = self.text.rstrip(_INCOMPLETE)
        self._new_window(whole)
        self.ends = [min(span.end, len(whole)) for span in offsets]
        # a token without text has an empty span, which may lie before the end of the text
        self.ends[-1] = len(whole)
        self._n_reread = len(self.ids)

    def _anchor(self, start: int, piece: str) -> None:
        # a token such as ` The` belongs to the sentence of its first letter, not to the space before it
        n_blank = len(piece) - len(piece.lstrip())
        position = start + (n_blank if n_blank < len(piece) else 0)
        self.anchors.append(max(position, self.anchors[-1] if self.anchors else 0))

    def _added(self) -> _Added | None:
        """Return what the latest token adds, or None if a window of a few tokens cannot show it."""
        latest = len(self.ids) - 1
        whole = self.text[: self.n_whole]
        was_incomplete = len(whole) < len(self.text)
        if was_incomplete and self._n_reread == latest:
            # `ends` of reread tokens is not exact, and the bytes of a character may have replaced text before them
            return None
        start, old = self._window
        if latest - start >= 2 * _WINDOW and not was_incomplete:
            # windows of bounded length keep the total time linear; the old one is kept if no shorter one fits
            start, old = self._window_before(latest, whole) or (start, old)
        now = self.decode(self.ids[start:])
        if not now.startswith(old) or not whole.endswith(old[-8:]):
            return None  # the decoder changed text before this token
        added = now[len(old) :].rstrip(_INCOMPLETE)
        if was_incomplete and _INCOMPLETE in added:
            return None  # bytes that belong to no character: how many marks they become depends on all of them
        self._window = (start, old + added)
        return _Added(added, now[len(old) + len(added) :])

    def _window_before(self, end: int, whole: str) -> tuple[int, str] | None:
        """Return a window that reaches to token `end`: its start and complete characters; None if none is found nearby.

        A window may begin at a token from which on the decoder gives the same text as before. Inside a character it
        does not, nor where the decoder drops a leading space.
        """
        for start in range(max(0, end - _WINDOW), max(-1, end - 2 * _WINDOW), -1):
            old = self.decode(self.ids[start:end]).rstrip(_INCOMPLETE)
            if start == 0 or (old and whole.endswith(old)):
                return start, old
        return None

    def _new_window(self, whole: str) -> str:
        """Make a window that reaches to the latest token; return the replacement for a character left incomplete."""
        window = self._window_before(len(self.ids), whole)
        self._window = window or (0, self.decode(self.ids).rstrip(_INCOMPLETE))
        start, old = self._window
        return self.decode(self.ids[start:])[len(old) :]
