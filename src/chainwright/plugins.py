"""Adding to Chainwright from outside: `register` in a notebook or script, entry points in a package.

    from chainwright.plugins import register

    @register("detector", "spikes")
    class Spikes: ...

A package declares the same in its `pyproject.toml`, and needs no decorator:

    [project.entry-points."chainwright.plugins"]
    "detector.spikes" = "my_package.spikes:Spikes"

The kinds are listed at `KINDS`; nothing is imported before it is asked for. `docs/extending.md` walks through a task, a
repair, an instrument and an edit, and `examples/plugin` is a whole package.
"""

from __future__ import annotations

from typing import get_args

from chainwright._registry import Kind, load, names, register

KINDS: tuple[Kind, ...] = get_args(Kind)
"""Every kind of thing that can be registered."""

__all__ = ["KINDS", "Kind", "load", "names", "register"]
