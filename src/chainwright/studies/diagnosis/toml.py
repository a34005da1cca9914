"""A study file: the settings of a diagnosis in TOML.

    model = "reasoner"
    tasks = ["parity", "clf"]   # or "all"; default: the tasks that hops names, or all
    hops = "10-14"              # or [10, 12], or a table of either by task; default: the usual ones
    n = 40
    seeds = [0, 1]

or, in place of tasks and hops, a problem set or trace files:

    [problems]
    source = "gsm8k_test.jsonl"

    [traces]
    files = ["samples.jsonl"]

Every other key is one of `DiagnoseConfig`, with its default there; `rendering` may also be "auto".
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chainwright import tasks
from chainwright._errors import BadInput, unknown_name
from chainwright.prompts.rendering import rendering_for
from chainwright.studies.diagnosis.config import DiagnoseConfig
from chainwright.tasks.cells import choose_cells, parse_hops


def read_study_file(path: str | Path) -> DiagnoseConfig:
    """Return the diagnosis that a TOML file asks for.

    Raises:
        BadInput: No such file, no TOML, an unknown key (the nearest known one is named), or a value that is of a wrong
            type or impossible.
    """
    path = Path(path)
    asked = _parsed(path)
    known = list(DiagnoseConfig.model_fields)
    if unknown := [key for key in asked if key not in (*known, "tasks")]:
        raise unknown_name(f"key in {path}:", unknown[0], [*known, "tasks"])
    if not isinstance(asked.get("model"), str):
        raise BadInput(f'{path} must name a model, such as model = "reasoner"; got {asked.get("model")!r}.')
    try:
        return _config(asked)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"Cannot read the study file {path}: {error.strerror or error}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is no readable TOML: {error}.") from error


def _config(asked: Mapping[str, Any]) -> DiagnoseConfig:
    rendering = asked.get("rendering", "auto")
    if not isinstance(rendering, str):
        raise BadInput(f"rendering must be a text; got {rendering!r}.")
    rendering = rendering_for(rendering, asked["model"])
    is_open = bool(asked.get("problems") or asked.get("traces"))
    has_cells = not is_open or asked.get("tasks") or asked.get("hops")
    hops = _hops(asked.get("tasks"), asked.get("hops"), rendering) if has_cells else {}
    settings = {name: value for name, value in asked.items() if name != "tasks"}
    return DiagnoseConfig.from_record(settings | {"rendering": rendering, "hops": hops})


def _hops(names: Any, hops: Any, rendering: tasks.Rendering) -> dict[str, tuple[int, ...]]:
    """Return the hop counts of each task that the keys `tasks` and `hops` ask for."""
    table = hops if isinstance(hops, Mapping) else {}
    if names is None:
        names = list(table) or "all"
    if not (isinstance(names, str) or (isinstance(names, list) and all(isinstance(name, str) for name in names))):
        raise BadInput(f'tasks must be a list of names, or "all"; got {names!r}.')
    chosen = choose_cells(names if isinstance(names, str) else ",".join(names), None, rendering)
    given = {tasks.canonical(name): _counts(value) for name, value in table.items()}
    if idle := [name for name in given if name not in chosen]:
        raise BadInput(f"hops names {idle[0]!r}, which is not among the tasks {', '.join(chosen)}.")
    if hops is not None and not isinstance(hops, Mapping):
        return dict.fromkeys(chosen, _counts(hops))
    return chosen | given


def _counts(value: Any) -> tuple[int, ...]:
    if isinstance(value, str):
        return parse_hops(value)
    if type(value) is int:
        return parse_hops(str(value))
    if isinstance(value, list) and value and all(type(item) is int and item > 0 for item in value):
        return tuple(sorted(set(value)))
    raise BadInput(f'Hops are given as "4-10", 12 or [4, 8, 12], whole numbers from 1; got {value!r}.')


def study_file_text(config: DiagnoseConfig) -> str:
    """Return the study file that asks for a diagnosis: its model, rendering and hops, and what is not the default."""
    record = config.record()
    defaults: dict[str, Any] = {name: field.get_default() for name, field in DiagnoseConfig.model_fields.items()}
    defaults["seeds"], defaults["instruments"] = (list(defaults[name]) for name in ("seeds", "instruments"))
    always = ("model", "rendering")
    lines = [
        f"{name} = {_value(value)}"
        for name, value in record.items()
        if not isinstance(value, Mapping) and value is not None and (name in always or value != defaults[name])
    ]
    tables = {name: value for name, value in record.items() if isinstance(value, Mapping) and value}
    return "\n".join([*lines, *(line for name, table in tables.items() for line in _table(name, table))]) + "\n"


def _table(name: str, table: Mapping[str, Any]) -> list[str]:
    """Return the lines of a table, without the values that TOML cannot say or that say nothing."""
    known = {key: value for key, value in table.items() if value is not None and value not in ({}, [])}
    return [
        "",
        f"[{name}]",
        *(f"{json.dumps(key) if name == 'hops' else _key(key)} = {_value(value)}" for key, value in known.items()),
    ]


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else json.dumps(name)


def _value(value: Any) -> str:
    """Return a value in TOML, which writes all but tables as JSON does."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)
