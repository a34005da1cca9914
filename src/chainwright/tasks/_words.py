"""Word lists of the tasks, and the closed vocabulary of the short rendering.

All lists are lower case and disjoint from each other and from the keywords, so that a word-level tokenizer
gives each of them one id. Short text is made of these tokens, single spaces and newlines, digits being tokens
one by one.
"""

from __future__ import annotations

from string import ascii_lowercase, digits

NAMES = (
    "ann bob cara dan eva finn gina hugo iris jack kate liam mia noah olga paul rosa sam tina umar vera wade yara zoe"
).split()
VERBS = "has buys finds gets brings makes picks wins".split()
OBJECTS = "apples pears coins books cups stamps shells pens kites keys hats socks plates eggs bells rings".split()
WORDS = (
    "cobra crab climb magic bread cloud table stone leaf roof flag king beach moth taxi ski rock desk wheel "
    "pearl drum farm lemon train piano echo lamp ship river silver glass moss robot forest menu window fox "
    "honey candy jazz"
).split()
FOLDERS = "src/ lib/ docs/ bin/ tests/ data/ img/ tmp/ logs/ conf/ assets/ build/ web/ core/".split()
PARENT, STAY = "../", "./"

_TASKS = "parity mdm llc clf moas nums objc".split()
_KEYWORDS = ("start end answer heads tails flips stays add subtract time to in out digit place shift parts and").split()
_SYMBOLS = ". ? : + - = *".split()


def vocabulary() -> list[str]:
    """Return every token of the short rendering, in an order that never changes.

    The newline comes first, then symbols, digits, letters, task names, keywords and the word lists.
    """
    lists = [_SYMBOLS, digits, ascii_lowercase, _TASKS, _KEYWORDS, NAMES, VERBS, OBJECTS, WORDS]
    return ["\n", *(token for tokens in lists for token in tokens), *FOLDERS, PARENT, STAY]
