"""Which call of `generate` a forward pass belongs to.

A pass by hand and one by `generate` look the same to the model, and `generate` is not replaced to tell them apart: its
frame is found on the stack. Its own copy of the generation config lives as long as the call.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

from transformers import GenerationMixin

_GENERATE = inspect.unwrap(GenerationMixin.generate).__code__
_OWN = "generation_config"


def _nothing() -> None:
    """Stand for the call of generate of a pass that is in none."""


class Generation:
    """The outermost call of `generate` that the latest pass belongs to."""

    def __init__(self) -> None:
        self._config: Callable[[], Any] = _nothing
        self._depth = 0  # frames between `enter` and the call

    def enter(self) -> bool:
        """Note the call that this pass belongs to; return whether that is another one than before."""
        known = self._config()
        if known is not None and self._is_at_depth(known):
            return False
        frame: FrameType | None = sys._getframe(0)
        outermost, depth = None, 0
        while frame is not None:
            if frame.f_code is _GENERATE:
                outermost, self._depth = frame, depth
            frame, depth = frame.f_back, depth + 1
        config = None if outermost is None else outermost.f_locals[_OWN]
        self._config = _nothing if config is None else weakref.ref(config)
        return config is not None and config is not known

    def _is_at_depth(self, known: Any) -> bool:
        """Return whether the known call is still where it was on the stack, which saves walking through it."""
        try:
            frame = sys._getframe(self._depth + 1)  # one more than from `enter`
        except ValueError:
            return False
        return frame.f_code is _GENERATE and frame.f_locals[_OWN] is known
