"""What `mkdocs build` does besides turning `docs/` into pages.

1. The home page is the README.
2. Each public module has a page under `api/`; a public name without a docstring is an error.
3. Links that lead out of `docs/` (a source file, an example, a model's card) lead to a page with that file.
4. Notebooks become pages, with their stored outputs.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))

import api_pages
import code_blocks
import notebook_pages
import public_names

ROOT = Path(__file__).parent.parent
_FENCED = re.compile(r"^([ \t]*)(```+).*?^\1\2$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<=\]\()(?!https?:|#|mailto:)([^)\s#]+)((?:#[^)\s]*)?)(?=\))")
_FETCHED = re.compile(
    r'<(?:script|img|iframe|link rel="(?:stylesheet|preload|icon)")[^>]*?(?:src|href)="(https?://[^"]+)"'
)
_LANGUAGES = {".py": "python", ".toml": "toml", ".md": "markdown", ".yaml": "yaml", ".jsonl": "json"}
_log = logging.getLogger("mkdocs.hooks.chainwright")
_places: dict[str, Path] = {}
"""Where in the repository each page comes from, by its address in the site."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages of public modules and of notebooks to the navigation."""
    assert config.nav is not None
    for entry in config.nav:
        for title, pages in entry.items():
            if title == "Guides":
                pages += _unlisted(config)
            if title == "API":
                pages += [{module.removeprefix("chainwright."): f"api/{module}.md"} for module in api_pages.ordered()]
            if title == "Notebooks":
                pages += [f"notebooks/{file.stem}.md" for file in notebook_pages.files()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the home page, and pages for modules, notebooks and linked files."""
    for missing in public_names.undocumented():
        _log.error("Public name without a docstring: %s", missing)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    _add(files, config, "index.md", f"---\nhide: [navigation]\n---\n\n{readme}", ROOT / "README.md")
    for module in api_pages.ordered():
        _add(files, config, f"api/{module}.md", api_pages.page(module))
    _add(files, config, "api/index.md", api_pages.overview())
    _add(files, config, "blocks.md", code_blocks.overview())
    for notebook in notebook_pages.files():
        _add(files, config, f"notebooks/{notebook.stem}.md", notebook_pages.page(notebook), notebook)
    _add(files, config, "assets/plotly.min.js", notebook_pages.plotly_script())
    waiting = [file for file in files if file.is_documentation_page()]
    for file in waiting:  # grows: linked cards have links of their own
        if file.src_uri not in _places and not file.src_uri.startswith(("api/", "blocks")):
            _places[file.src_uri] = Path(config.docs_dir) / file.src_uri
        if file.src_uri in _places:
            waiting += _linked_files(files, config, file)
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at pages of the site."""
    place = _places.get(page.file.src_uri)
    if place is None:
        return markdown

    def pointed(match: re.Match[str]) -> str:
        address = _address(_target(place, match[1]), Path(config.docs_dir))
        if address is None or files.get_file_from_path(address) is None:
            return match[0]  # mkdocs names it
        return os.path.relpath(address, PurePosixPath(page.file.src_uri).parent) + match[2]

    return _outside_of_fences(markdown, lambda text: _LINK.sub(pointed, text))


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    """Refuse a page that fetches anything from elsewhere."""
    for address in _FETCHED.findall(output):
        _log.error("%s fetches %s; a page of this site needs nothing from the network", page.file.src_uri, address)
    return output


def _unlisted(config: MkDocsConfig) -> list[str]:
    """Return the pages at the top of `docs/` that the navigation does not name: they end up among the guides."""
    named = set(re.findall(r"[\w./-]+\.md", str(config.nav)))
    return sorted(page.name for page in Path(config.docs_dir).glob("*.md") if page.name not in named)


def _linked_files(files: Files, config: MkDocsConfig, file: File) -> list[File]:
    """Add a page for every file of the repository that a page links to, and return the new ones."""
    added = []
    place = _places[file.src_uri]
    for match in _LINK.finditer(_FENCED.sub("", file.content_string)):
        target = _target(place, match[1])
        address = _address(target, Path(config.docs_dir))
        if address and address.startswith("source/") and files.get_file_from_path(address) is None:
            text = target.read_text(encoding="utf-8")
            if target.suffix != ".md":
                language = _LANGUAGES.get(target.suffix, "text")
                text = f"# {target.relative_to(ROOT)}\n\n````{language}\n{text}\n````\n"
            text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)  # the card's fields
            added.append(_add(files, config, address, text, target, InclusionLevel.NOT_IN_NAV))
    return added


def _target(place: Path, link: str) -> Path:
    target = (place.parent / link).resolve()
    return target / "README.md" if target.is_dir() else target


def _address(target: Path, docs: Path) -> str | None:
    """Return the address of a file in the site, or None if there is no such file."""
    if target == ROOT / "README.md":
        return "index.md"
    if not target.is_relative_to(ROOT) or not target.exists():
        return None
    if target.is_relative_to(docs):
        address = target.relative_to(docs).as_posix()
        return address.removesuffix(".ipynb") + ".md" if address.endswith(".ipynb") else address
    name = target.relative_to(ROOT).as_posix()
    return f"source/{name}" if name.endswith(".md") else f"source/{name}.md"


def _outside_of_fences(text: str, change: Any) -> str:
    parts, start = [], 0
    for fence in _FENCED.finditer(text):
        parts += [change(text[start : fence.start()]), fence[0]]
        start = fence.end()
    return "".join([*parts, change(text[start:])])


def _add(
    files: Files,
    config: MkDocsConfig,
    address: str,
    text: str,
    place: Path | None = None,
    inclusion: InclusionLevel = InclusionLevel.UNDEFINED,
) -> File:
    file = File.generated(config, address, content=text, inclusion=inclusion)
    files.append(file)
    if place is not None:
        _places[address] = place
    return file
