"""Checkers of final answers, registered by name: what was extracted, by which rule, and whether it is right.

`load` returns the checker of a registered name, or of a function of the user's: "file.py:function" or
"package.module:function".
"""

from __future__ import annotations

from chainwright.checkers._loading import load, name_of, names
from chainwright.checkers.base import UNREAD, Checker, Verdict

__all__ = ["UNREAD", "Checker", "Verdict", "load", "name_of", "names"]
