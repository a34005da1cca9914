"""The command `diagnose`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chainwright._registry import register
from chainwright.cli._asking import ASKING, asking_of
from chainwright.cli._command import ConfigOptions, Values
from chainwright.cli._decoding import settings_of
from chainwright.cli._options import (
    Device,
    DeviceMap,
    ExecutorName,
    HopCounts,
    ModelName,
    Overwrite,
    Quiet,
    Ranks,
    Recompute,
    RemoteCode,
    RenderingName,
    ReportFolder,
    Seed,
    Workers,
)
from chainwright.cli._problems import PROBLEM_SET, problem_source
from chainwright.cli._ranks import in_ranks
from chainwright.cli._results import ResultsFolder, write_diagnosis
from chainwright.cli._shared import say
from chainwright.cli._source import load
from chainwright.cli._studies import print_diagnosis, run_diagnosis
from chainwright.cli._trace_options import TRACES, trace_source

if TYPE_CHECKING:
    from chainwright.studies.diagnosis.config import DiagnoseConfig
    from chainwright.studies.diagnosis.usual import Usual

_CONFIG = "chainwright.studies.diagnosis.config:DiagnoseConfig"
STEPS = ConfigOptions(_CONFIG, "n_maps", "sweep_bytes")
DECODING = ConfigOptions(_CONFIG, "repair", "temperature", "max_new_tokens", "batch_size")
ENGINE = ConfigOptions(_CONFIG, "engine", "engine_url", "engine_model", "engine_tolerance", "engine_timeout")
DRAWING = ConfigOptions(
    "chainwright.studies.config:DecodeSettings",
    *("n_samples", "sampling", "top_p", "top_k", "min_p", "repetition_penalty", "stop", "max_thinking_tokens"),
    flags={"n_samples": "--samples"},
)
SOURCE = ConfigOptions(_CONFIG, "adapter", "dtype", "revision")


@register("command", "diagnose")
def diagnose(
    more_traces: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="Further trace files after --traces.")
    ] = None,
    model: ModelName = "reasoner",
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="A task, several separated by commas, or 'all' (the default).")
    ] = None,
    hops: HopCounts = None,
    n: Annotated[
        int | None,
        typer.Option(
            "-n",
            help="Problems per task and hop count (default: 40, fewer for large models on a CPU), or of --problems or "
            "--traces.",
        ),
    ] = None,
    problems: Values = PROBLEM_SET,
    traces: Annotated[
        list[Path] | None,
        typer.Option("--traces", help="Take the traces in this file instead, in any format that is recognised."),
    ] = None,
    reading: Values = TRACES,
    n_contexts: Annotated[
        int | None,
        typer.Option(help="Contexts per set when heads are located (default: 16, fewer for large models on a CPU)."),
    ] = None,
    max_types: Annotated[
        int | None,
        typer.Option(
            help="Key error types per task that are searched for heads, 0 for none (default: 2, for large models on a "
            "CPU 1)."
        ),
    ] = None,
    measured: Annotated[
        float | None,
        typer.Option(help="Share of a large model's heads that are measured (default: 0.25)."),
    ] = None,
    out_folder: ReportFolder = Path("runs/diagnosis"),
    seed: Seed = 0,
    rendering: RenderingName = "auto",
    steps: Annotated[
        bool | None,
        typer.Option("--steps/--no-steps", help="Step maps of right and wrong traces (tasks: off, otherwise on)."),
    ] = None,
    maps: Values = STEPS,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Print how long it will take, from a few passes that are timed (with --steps: what the step maps "
            "will take, from the config alone), and run nothing.",
        ),
    ] = False,
    asking: Values = ASKING,
    decoding: Values = DECODING,
    drawing: Values = DRAWING,
    engine: Values = ENGINE,
    source: Values = SOURCE,
    device: Device = None,
    trust_remote_code: RemoteCode = False,
    device_map: DeviceMap = None,
    tp: Ranks = None,
    overwrite: Overwrite = False,
    recompute: Recompute = False,
    executor: ExecutorName = "local",
    workers: Workers = None,
    results: ResultsFolder = None,
    quiet: Quiet = False,
) -> None:
    """Find where a model's chains break: on the tasks, on a problem set of yours, or in existing traces."""
    from chainwright._errors import BadInput
    from chainwright.studies.diagnosis.config import DiagnoseConfig

    files = [*(traces or []), *(more_traces or [])]
    if more_traces and not traces:
        raise BadInput(f"{more_traces[0]} is no option; trace files are named with --traces.")
    if plan and (tp is not None or device_map is not None):
        raise BadInput("--plan times passes in one process on one device; leave out --tp and --device-map.")
    folder, results = in_ranks(tp, out_folder, results)
    assert folder is not None
    spread = {"device": device, "trust_remote_code": trust_remote_code, "device_map": device_map, "tp": tp}
    where = {**source, **spread}
    asked, usual = _open(problems, files, reading, n, task, hops), None
    if not asked:
        asked, usual = _cells(model, task, hops, rendering, where, n, steps=bool(steps))
    if steps is False and "instruments" in asked:
        asked["instruments"] = tuple(name for name in asked["instruments"] if name != "steps")
    sizes = {"n_contexts": n_contexts, "max_types": max_types, "measured": measured}
    asked |= {name: value for name, value in sizes.items() if value is not None}
    config = DiagnoseConfig(
        model=model, seeds=(seed,), **asked, **_drawn(asking, drawing), **maps, **decoding, **engine, **source
    )
    if usual is not None and not quiet:
        _say_what(config, usual)
    if plan:
        _print_plan(config, where, steps=bool(steps))
        return
    options: dict[str, Any] = {"overwrite": overwrite, "recompute": recompute, "quiet": quiet}
    if run_diagnosis(config, folder, spread, **options, executor=executor, workers=workers):
        print_diagnosis(folder)
        write_diagnosis(results, folder)


def _drawn(asking: Values, drawing: Values) -> dict[str, Any]:
    """Return how problems are asked and responses drawn, as far as that was said."""
    from chainwright.prompts.asking import Asking
    from chainwright.studies.config import DecodeSettings

    how = asking_of(asking)
    drawn = settings_of(drawing)
    said: dict[str, Any] = {} if how == Asking() else {"asking": how}
    return said if drawn == DecodeSettings() else said | {"decoding": drawn}


def _cells(
    model: str, task: str | None, hops: str | None, rendering: str, where: Values, n: int | None, *, steps: bool
) -> tuple[dict[str, Any], Usual]:
    """Return the settings of a diagnosis of tasks, and what was chosen to suit the model."""
    from chainwright.prompts.rendering import rendering_for
    from chainwright.studies.diagnosis.config import USUAL
    from chainwright.studies.diagnosis.usual import usual_for
    from chainwright.tasks.cells import choose_cells

    rendered = rendering_for(rendering, model)
    options = {name: where[name] for name in ("adapter", "device", "revision", "trust_remote_code")}
    usual = usual_for(model, **options)
    cells = choose_cells(task or "all", hops, rendered)
    if hops is None and rendered == "natural":
        cells = {name: usual.hops.get(name, counts) for name, counts in cells.items()}
    instruments = (*USUAL, *(["steps"] if steps else []))
    asked = {**usual.settings, "hops": cells, "rendering": rendered, "instruments": instruments}
    return asked if n is None else {**asked, "n": n}, usual


def _say_what(config: DiagnoseConfig, usual: Usual) -> None:
    """Print what is asked where it was chosen to suit the model."""
    from chainwright.studies.diagnosis.usual import said

    if usual.settings or usual.hops:
        for line in said(config):
            say(line)


def _open(
    problems: Values, files: list[Path], reading: Values, n: int | None, task: str | None, hops: str | None
) -> dict[str, Any]:
    """Return the settings of a diagnosis of a problem set or of trace files; empty if neither is named."""
    from chainwright._errors import BadInput
    from chainwright.studies.diagnosis.config import OPEN

    # with --traces alone, checker and skip_bad are about the traces
    is_set = problems["source"] is not None or not files
    asked = problem_source(problems, n=None if files else n) if is_set else None
    found = trace_source(files, reading, n=n, checker=problems["checker"], skip_bad=problems["skip_bad"])
    if asked is None and found is None:
        return {}
    for flag, value in (("--task", task), ("--hops", hops)):
        if value is not None:
            raise BadInput(f"{flag} asks for a task, but --problems or --traces was passed as well; take one of them.")
    return {"problems": asked, "traces": found, "instruments": OPEN, "rendering": "natural"}


def _print_plan(config: DiagnoseConfig, where: Values, *, steps: bool) -> None:
    """Print what the diagnosis will take; of step maps from the config alone. Nothing is written."""
    if not steps:
        from chainwright.studies.diagnosis.estimate import plan_diagnosis

        loaded = load(config.model, {**where, "dtype": config.dtype})
        say(plan_diagnosis(loaded.model, loaded.tokenizer, config).summary())
        return
    from chainwright.models.load import empty_model, load_tokenizer
    from chainwright.studies.diagnosis.step_maps import plan_steps

    source: dict[str, Any] = {"revision": config.revision, "trust_remote_code": where["trust_remote_code"]}
    tokenizer = load_tokenizer(config.model, adapter=config.adapter, **source)
    estimate = plan_steps(empty_model(config.model, dtype=config.dtype, **source), tokenizer, config, where["device"])
    say(f"Step maps, if the responses are as long as the gold chains: {estimate}")
