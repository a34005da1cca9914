"""What a diagnosis of tasks asks by default: enough to see where chains break, in a time that one will wait.

A small model, or any model on a GPU, gets the defaults of the config and the usual hop counts of each task. On a
processor a model with 50 million parameters or more in its layers gets fewer problems and contexts. An adapter that
was trained here states the hop counts that it was trained on; it is asked inside that range and just beyond its end,
where chains begin to break.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from chainwright import tasks
from chainwright._files import read_json
from chainwright.diagnose.heads.role_sweep import LARGE
from chainwright.models.load import empty_model
from chainwright.models.sources import source_of
from chainwright.studies.diagnosis.config import DiagnoseConfig

SMALLER: Mapping[str, Any] = {"n": 10, "n_contexts": 5, "max_types": 1, "n_evidence": 2}
"""Settings of large models on a processor: two tasks take minutes there, not an hour."""
_BESIDE = (0, 1, 3)  # hops relative to the end of the range that an adapter was trained on


class Usual(NamedTuple):
    """What is asked unless the user says otherwise.

    Attributes:
        settings: Settings that differ from the defaults of `DiagnoseConfig`.
        hops: Hop counts by task that differ from the task's usual ones.
    """

    settings: Mapping[str, Any]
    hops: Mapping[str, tuple[int, ...]]


def usual_for(
    model: str,
    adapter: str | None = None,
    *,
    device: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Usual:
    """Return what a model is asked by default in the natural rendering; only its config is read.

    Raises:
        BadInput: There is no such model, it was not fetched, or its config cannot be read.
    """
    on_cpu = device == "cpu" or (device is None and not torch.cuda.is_available())
    is_large = on_cpu and _n_layer_parameters(model, revision, trust_remote_code) >= LARGE
    trained = trained_hops(model, adapter)
    hops = {task: tuple(sorted({max(1, high + more) for more in _BESIDE})) for task, (_, high) in trained.items()}
    return Usual(SMALLER if is_large else {}, hops)


def _n_layer_parameters(model: str, revision: str | None, trust_remote_code: bool) -> int:
    empty = empty_model(model, revision=revision, trust_remote_code=trust_remote_code)
    ends = {id(end.weight) for end in (empty.get_input_embeddings(), empty.get_output_embeddings()) if end is not None}
    return sum(p.numel() for p in empty.parameters() if id(p) not in ends)


def trained_hops(model: str, adapter: str | None = None) -> dict[str, tuple[int, int]]:
    """Return the range of hops of each task in the last training of an adapter; empty for what was not trained here."""
    source = source_of(model)
    folder = adapter or (None if source is None else source.adapter)
    path = None if folder is None else Path(folder) / "recipe.json"
    recipe = read_json(path) if path is not None and path.is_file() else {}
    trainings = recipe.get("trainings", []) if isinstance(recipe, Mapping) else []
    hops = trainings[-1].get("settings", {}).get("hops", {}) if trainings else {}
    return {task: (int(low), int(high)) for task, (low, high) in hops.items() if task in tasks.known()}


def said(config: DiagnoseConfig) -> Iterator[str]:
    """Yield in lines what is asked of a model that has defaults of its own."""
    hops = "; ".join(f"{tasks.title(t)} {', '.join(map(str, counts))}" for t, counts in config.hops.items())
    yield f"{config.n} problems at each hop count: {hops}."
    if "heads" in config.instruments and config.max_types:
        types = "1 key error type" if config.max_types == 1 else f"{config.max_types} key error types"
        yield (
            f"Heads at up to {types} per task, in {config.n_contexts} right and {config.n_contexts} wrong contexts; of "
            f"models this large {config.measured:.0%} of the heads are measured, the others estimated."
        )
    yield "This suits the model and the machine; --hops, -n, --n-contexts and --max-types change it."
