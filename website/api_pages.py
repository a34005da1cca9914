"""The pages of the API reference, one for each public module, written for mkdocstrings."""

from __future__ import annotations

from public_names import Name, docstring, documented_in, public_modules


def ordered() -> list[str]:
    """Return the public modules, the top level first."""
    return sorted(public_modules(), key=lambda module: (module != "chainwright", module))


def page(module: str) -> str:
    """Return the page of a module: what it is, its names, and their documentation."""
    text = docstring(module) or ""
    own = [name for name in public_modules()[module] if documented_in()[name.path] == module]
    return "\n".join([f"# {module}", "", text, "", *_table(module), "", *(_entry(name) for name in own)])


def overview() -> str:
    """Return the page that lists the public modules."""
    rows = [f"| [`{m}`]({m}.md) | {_first(docstring(m))} | {len(public_modules()[m])} |" for m in ordered()]
    return "\n".join(
        [
            "# API reference",
            "",
            "Every public name of Chainwright. What is not here is private and may change without notice. The names of",
            "the top level are those of the usual loop; each is documented with the package that it comes from.",
            "",
            "| module | | names |",
            "|---|---|---|",
            *rows,
        ]
    )


def _table(module: str) -> list[str]:
    rows = []
    for name in public_modules()[module]:
        home = documented_in()[name.path]
        target = f"#{name.path}" if home == module else f"{home}.md#{name.path}"
        if name.path in public_modules():
            target = f"{name.path}.md"
        rows.append(f"| [`{name.name}`]({target}) | {_first(docstring(name.path))} |")
    return ["| name | |", "|---|---|", *rows]


def _entry(name: Name) -> str:
    if name.path in public_modules():
        return ""  # a module with a page of its own
    return f"::: {name.path}\n    options:\n      heading: {name.public}.{name.name}\n      toc_label: {name.name}\n"


def _first(text: str | None) -> str:
    """Return the first sentence or line of a docstring, as a table cell."""
    line = " ".join((text or "").partition("\n\n")[0].split())
    return line.replace("|", "\\|")
