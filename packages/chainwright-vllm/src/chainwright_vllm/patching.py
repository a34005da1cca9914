"""How the plug-in gets into vLLM, which has no hooks at these places: methods are wrapped, once, and by name.

A place that is not there in the installed vLLM is an error at start-up: the plug-in must not be half in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

_MARK = "__chainwright__"


def wrap(owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace `owner.name` by `make(own)`; a second time does nothing.

    Raises:
        RuntimeError: There is no such name.
    """
    own = vars(owner).get(name)
    if own is None:
        raise RuntimeError(
            f"chainwright-vllm does not fit this version of vLLM: {owner.__name__} has no {name}; install a version "
            "of vLLM that the plug-in names in its documentation."
        )
    if hasattr(own, _MARK):
        return
    wrapped = functools.wraps(own)(make(own))
    setattr(wrapped, _MARK, own)
    setattr(owner, name, wrapped)
