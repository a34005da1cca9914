"""Words that several tasks share in the short rendering.

Word lists of all tasks are lower case and disjoint from each other and from the keywords, so that a word-level
tokenizer gives each word one id. Short text is made of these words, single spaces and newlines; digits are tokens one
by one.
"""

from __future__ import annotations

NAMES = (
    "ann bob cara dan eva finn gina hugo iris jack kate liam mia noah olga paul rosa sam tina umar vera wade yara zoe"
).split()
SYMBOLS = ". ? : + - = *".split()
KEYWORDS = "start end answer".split()
