"""The command `models`."""

from __future__ import annotations

from typing import Annotated

import typer

from chainwright._errors import BadInput
from chainwright._registry import register
from chainwright.cli._shared import print_table, say


@register("command", "models")
def models(
    name: Annotated[str | None, typer.Argument(help="A bundled name, a folder, or a Hub id.")] = None,
    check_families: Annotated[
        bool,
        typer.Option("--check-families", help="Build a tiny model of every type and try it (a few minutes)."),
    ] = False,
    only: Annotated[
        str | None, typer.Option(help="With --check-families: only these types, separated by commas.")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="With --check-families: print a Markdown table.")
    ] = False,
) -> None:
    """List the bundled models, show the parts found in one model, or try every model type."""
    from chainwright.models import anatomy, bundled_models, load_model

    if check_families:
        _check_families(name, only, markdown)
        return
    if only is not None or markdown:
        raise BadInput("--only and --markdown belong to --check-families; add it.")
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


def _check_families(name: str | None, only: str | None, markdown: bool) -> None:
    from chainwright._progress import progress_bar
    from chainwright.cli._families import as_markdown, check_family, counts, model_types

    if name is not None:
        raise BadInput(f"--check-families builds models of its own and takes no model; got {name!r}.")
    outcomes = []
    kinds = model_types(only)
    with progress_bar("model types", len(kinds)) as bar:
        for done, kind in enumerate(kinds):
            bar.move_to(done, kind)
            outcomes.append(check_family(kind))
    if markdown:
        say(as_markdown(outcomes))
    else:
        print_table("Model types", [outcome._asdict() for outcome in outcomes])
    say(counts(outcomes))
