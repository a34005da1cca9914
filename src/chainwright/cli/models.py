"""The command `models`."""

from __future__ import annotations

from typing import Annotated

import typer

from chainwright._registry import register
from chainwright.cli._shared import print_table


@register("command", "models")
def models(name: Annotated[str | None, typer.Argument(help="A bundled name, a folder, or a Hub id.")] = None) -> None:
    """List the bundled models, or show the parts found in one model."""
    from chainwright.models import anatomy, bundled_models, load_model

    if name is not None:
        parts = anatomy(load_model(name).model)
        print_table(name, [{"part": part, "found": what} for part, what in parts.describe().items()])
        return
    rows = []
    for known in bundled_models():
        parts = anatomy(load_model(known, device="cpu").model)
        n = sum(p.numel() for p in parts.model.parameters())
        sizes = {"layers": parts.n_layers, "heads": parts.n_heads, "d_model": parts.d_model}
        rows.append({"name": known, **sizes, "parameters": f"{n:,}"})
    print_table("Bundled models", rows)
