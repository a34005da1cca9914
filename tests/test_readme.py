"""The README's commands exist, and its badges and citation are true; that its code runs is in test_code_blocks."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import yaml
from typer.testing import CliRunner

from chainwright import __version__
from chainwright._registry import names
from chainwright.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_every_command_exists_and_is_listed() -> None:
    listed = set(re.findall(r"(?:`|^)chainwright ([a-z][\w-]*)", README + COMMANDS, re.M))
    there = {name.partition(".")[0] for name in names("command")}
    assert listed <= there and there - listed <= {"demo"}
    for command in listed:
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README):
        assert (ROOT / target).exists(), target


def test_the_badges_are_true() -> None:
    texts = {
        file.stem: ElementTree.parse(file).getroot().get("aria-label") for file in (ROOT / "docs/badges").iterdir()
    }
    assert texts == {
        "licence": f"licence: {PROJECT['license']}",
        "python": f"python: {PROJECT['requires-python'].removeprefix('>=')}+",
    }


def test_the_picture_has_words_for_those_who_do_not_see_it() -> None:
    picture = ElementTree.parse(ROOT / "docs" / "idea.svg").getroot()
    named = [element.tag.rpartition("}")[2] for element in picture]
    assert named[:2] == ["title", "desc"] and picture.get("role") == "img"


def test_the_citation_fits_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__ and citation["license"] == PROJECT["license"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]
    methods = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "methods").glob("*.md"))
    papers = [reference["identifiers"][0]["value"] for reference in citation["references"]]
    assert len(papers) == 4 and all(paper.replace(":", " ") in methods for paper in papers)


def test_every_extra_is_in_the_table() -> None:
    table = README.partition("| extra |")[2].partition("\n\n")[0]
    assert all(f"`{extra}`" in table for extra in PROJECT["optional-dependencies"])
