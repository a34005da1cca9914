"""Texts without what does not matter for an answer: case, markup, quotation marks, accents of typing."""

from __future__ import annotations

import re
import unicodedata

from chainwright.checkers.values import plain

_QUOTES = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201b\u0060\u00b4", "'") | dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb", '"')
)
_ENDS = " \t\n.,;:!?\"'$*_`|{}\\"


def normal(text: str) -> str:
    """Return a text in lower case, with single spaces, without markup and the punctuation at its ends."""
    text = unicodedata.normalize("NFKC", plain(text)).translate(_QUOTES).casefold()
    text = re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "", text)
    text = re.sub(r"[*_`]+(?=\w)|(?<=\w)[*_`]+|\\[()\[\]]", "", text)
    text = " ".join(text.split()).strip(_ENDS)
    is_wrapped = text[:1] + text[-1:] in ("()", "[]") and not re.search(r"[()\[\]]", text[1:-1])
    return text[1:-1].strip(_ENDS) if is_wrapped and re.fullmatch(r"[^,;]*", text) else text


def contains(text: str, part: str) -> bool:
    """Return whether a normal text has another one in it as whole words."""
    # 5 is neither in 5.5 nor in -5
    before, after = (r"(?<!\s-)(?<!^-)(?<![0-9][.,])", r"(?![.,][0-9])") if part[:1].isdigit() else ("", "")
    return re.search(rf"(?<!\w){before}{re.escape(part)}(?!\w){after}", text) is not None


def shortened(text: str, most: int = 120) -> str:
    """Return a text on one line that is not too long for a table."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3] + "..."
