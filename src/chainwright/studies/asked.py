"""The problems of a study, made again from what its config says of them, so that it resumes from its folder alone.

A config names what was asked in one of three ways, each under "asked":

    hop counts by task       with "n", "seed" and "rendering" these draw the same problems again
    a problem set            with its options under "set" and its hash under "problems"; one that was changed is refused
    a text                   one prompt
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright.studies.manifest import Manifest
from chainwright.studies.records import sha256_of
from chainwright.tasks import Problem
from chainwright.tasks.cells import sample_cells
from chainwright.tasks.problem_sets import ProblemSource
from chainwright.traces import Trace, read_traces

IDENTITY = ("model", "asked", "n", "rendering", "problems", "set", "traces", "files")
"""The keys of a config that say what was asked; `asked_again` reads them."""


class Asked(NamedTuple):
    """What is asked, and what demonstrations are chosen from (None: what is asked)."""

    asked: Sequence[Problem | str]
    pool: Sequence[Problem] | None


def identity_of_set(source: ProblemSource) -> dict[str, Any]:
    """Return what is added to a config for a problem set, so that it can be read again."""
    return {"set": source.record()}


def asked_again(known: Manifest) -> Asked:
    """Return the problems or the prompt that a study was begun with.

    Raises:
        BadInput: A problem set cannot be read, or was changed since the study began.
    """
    config = known.config
    if "set" in config:
        return _of_set(config)
    said = config.get("asked")
    if isinstance(said, Mapping):
        return Asked(sample_cells(said, config["n"], config["seed"], config["rendering"]), None)
    if isinstance(said, str) and "problems" not in config:
        return Asked([said], None)
    raise BadInput(f"This study does not say how its problems were read, so it is resumed otherwise: {known.again}")


def _of_set(config: Mapping[str, Any]) -> Asked:
    source = ProblemSource.from_record(config["set"])
    found = source.load()
    _check(source.source, found.sha256, config["problems"])
    whole = source.replace(n=None, seed=None).load() if source.n is not None else found
    return Asked(found.problems, whole.problems)


def traces_again(known: Manifest, tokenizer: PreTrainedTokenizerBase) -> list[Trace]:
    """Return the traces that a study was begun with.

    Raises:
        BadInput: A file cannot be read, or was changed since the study began.
    """
    config = known.config
    if "files" not in config:
        raise BadInput(f"This study does not name its files of traces, so it is resumed otherwise: {known.again}")
    for name, sha256 in zip(config["files"], config["traces"], strict=True):
        if not Path(name).is_file():
            raise BadInput(f"There is no file {name}, whose traces this study is of; put it back, or name it again.")
        _check(name, sha256_of(Path(name)), sha256)
    problems = ProblemSource.from_record(config["set"]).load().problems if "set" in config else None
    return read_traces(list(config["files"]), tokenizer, problems=problems)[: config["n"]]


def _check(name: str, sha256: str, expected: str) -> None:
    if sha256 != expected:
        raise BadInput(
            f"{name} was changed since the study began, so it cannot be resumed with it; put it back, or begin again "
            "in another folder (or with --overwrite)."
        )
