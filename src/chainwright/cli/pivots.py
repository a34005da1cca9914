"""The command `pivots`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from chainwright._registry import register
from chainwright.cli._asking import ASKING
from chainwright.cli._command import ConfigOptions, Values
from chainwright.cli._options import (
    ExecutorName,
    HopCounts,
    ModelName,
    Overwrite,
    Quiet,
    Recompute,
    RenderingName,
    Seed,
    StudyFolder,
    Workers,
)
from chainwright.cli._problems import PROBLEM_SET
from chainwright.cli._shared import err, say
from chainwright.cli._source import SOURCE, load
from chainwright.cli._studies import executor_for, is_left_to_workers, watch

if TYPE_CHECKING:
    from chainwright.diagnose.pivots.config import PivotConfig
    from chainwright.models import LoadedModel
    from chainwright.tasks import Problem
    from chainwright.traces import Trace

_CONFIG = "chainwright.diagnose.pivots.config:PivotConfig"
SEARCH = ConfigOptions(
    _CONFIG,
    "drop",
    "error_rate",
    "to",
    "per_boundary",
    "budget",
    "n_most",
    "n_rechecks",
    "n_alternatives",
    "n_samples",
    "temperature",
    "top_p",
    "max_new_tokens",
    "batch_size",
    flags={
        "n_most": "--most-per-prefix",
        "n_rechecks": "--rechecks",
        "n_alternatives": "--alternatives",
        "n_samples": "--samples",
        "temperature": "--temperature",
        "max_new_tokens": "--max-new-tokens",
    },
)


@register("command", "pivots")
def pivots(
    model: ModelName = "reasoner",
    task: Annotated[
        str | None,
        typer.Option("--task", "-t", help="A task, several separated by commas, or 'all' (default: clf)."),
    ] = None,
    hops: HopCounts = None,
    n: Annotated[
        int | None,
        typer.Option("-n", help="Problems per task and hop count (default: 10), or of --problems (default: all)."),
    ] = None,
    problems: Values = PROBLEM_SET,
    traces: Annotated[
        list[str] | None,
        typer.Option("--traces", help="Search these files of responses instead of drawing some; may be repeated."),
    ] = None,
    band: Annotated[
        str | None,
        typer.Option("--band", metavar="LOW-HIGH", help="Pass rates of problems that are searched, such as 0.2-0.9."),
    ] = None,
    completer: Annotated[
        str | None,
        typer.Option(
            "--completer",
            help="Who continues prefixes: a model's name or folder, the http address of an OpenAI-compatible server, "
            "or 'gold' on tasks (default: the model itself).",
        ),
    ] = None,
    completer_model: Annotated[
        str | None, typer.Option("--completer-model", help="Name of the model on the server of --completer.")
    ] = None,
    completer_api: Annotated[
        str, typer.Option("--completer-api", metavar="completions|chat", help="API through which the server is called.")
    ] = "completions",
    search: Values = SEARCH,
    out_folder: StudyFolder = Path("runs/pivots"),
    rendering: RenderingName = "auto",
    asking: Values = ASKING,
    seed: Seed = 0,
    plan: Annotated[bool, typer.Option("--plan", help="Print what it will take, and search nothing.")] = False,
    source: Values = SOURCE,
    overwrite: Overwrite = False,
    recompute: Recompute = False,
    executor: ExecutorName = "local",
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Find where responses lose their chance to end right, by continuing their prefixes; no gold chain is needed."""
    from chainwright.cli._asking import asking_of
    from chainwright.diagnose.pivots.config import PivotConfig, parse_band
    from chainwright.diagnose.pivots.named import completer_for
    from chainwright.studies import Study
    from chainwright.studies.pivots import PivotsPlan

    chosen_band: Values = {} if band is None else {"band": parse_band(band)}
    config = PivotConfig(**{**search, **chosen_band})
    _check_completer(completer, completer_model, completer_api)
    asked_how = asking_of(asking)
    chosen = executor_for(executor, workers, source)
    loaded = load(model, source)
    found = _asked(loaded, model, task, hops, n, problems, traces, rendering, seed)
    if plan:
        _print_plan(loaded, found.asked, config)
        return
    study_plan = PivotsPlan(
        loaded.model,
        loaded.tokenizer,
        found.asked,
        config,
        {"model": model, **found.identity},
        completer=completer_for(
            loaded,
            completer,
            config,
            server_model=completer_model,
            api=completer_api,
        ),
        seed=seed,
        asking=asked_how,
        pool=found.pool,
    )
    if not quiet and not traces:
        say(_warning(config, loaded))
    study = Study.make(out_folder, study_plan, overwrite=overwrite)
    study.run(watch(quiet), recompute=recompute, executor=chosen)
    if not is_left_to_workers(study):
        _print_found(study)


class _Found(NamedTuple):
    """What is searched, what identifies it, and what demonstrations are chosen from."""

    asked: Sequence[Any]
    identity: dict[str, Any]
    pool: Sequence[Problem] = ()


def _asked(
    loaded: LoadedModel,
    model: str,
    task: str | None,
    hops: str | None,
    n: int | None,
    problems: Values,
    files: Sequence[str] | None,
    rendering: str,
    seed: int,
) -> _Found:
    """Return the problems or traces that the options name."""
    from chainwright.cli._decoding import Asked, choose

    if not files:
        chosen = choose(Asked(task, "clf", hops, n, 10, rendering, problems, {}), model, seed)
        return _Found(chosen.asked, chosen.identity, chosen.pool)
    return _of_files(loaded, task, hops, n, problems, files)


def _of_files(
    loaded: LoadedModel, task: str | None, hops: str | None, n: int | None, problems: Values, files: Sequence[str]
) -> _Found:
    from chainwright._errors import BadInput
    from chainwright.cli._problems import problem_source
    from chainwright.studies.asked import identity_of_set
    from chainwright.studies.records import sha256_of
    from chainwright.traces import read_traces

    if used := [flag for flag, value in (("--task", task), ("--hops", hops)) if value is not None]:
        raise BadInput(f"--traces and {used[0]} both say what is searched; pass only one of them.")
    source = problem_source(problems)
    known = None if source is None else source.load().problems
    missing = next((path for path in files if not Path(path).is_file()), None)
    if missing is not None:
        raise BadInput(f"There is no file {missing}; give traces that generate --out wrote, or of another engine.")
    traces: list[Trace] = read_traces(list(files), loaded.tokenizer, problems=known)
    traces = traces if n is None else traces[:n]
    if not any(trace.outcome == "wrong" for trace in traces):
        raise BadInput(
            f"None of the {len(traces)} traces is wrong, so no first error can be looked for; name the problems with "
            "--problems where the traces are not judged, or other traces."
        )
    identity: dict[str, Any] = {"traces": [sha256_of(Path(path)) for path in files], "n": len(traces)}
    identity |= {"files": list(files)} | ({} if source is None else identity_of_set(source))
    return _Found(traces, identity)


def _check_completer(name: str | None, model: str | None, api: str) -> None:
    from chainwright._errors import BadInput, unknown_name

    is_server = name is not None and name.startswith(("http://", "https://"))
    if is_server and model is None:
        raise BadInput("A server as --completer needs --completer-model, the name that it knows the model by.")
    if not is_server and model is not None:
        raise BadInput("--completer-model names the model of a server; pass the server's address as --completer.")
    if api not in ("completions", "chat"):
        raise unknown_name("way of asking a server (--completer-api)", api, ("completions", "chat"))


def _warning(config: PivotConfig, loaded: LoadedModel) -> str:
    """Return what is said before anything is spent."""
    from chainwright.diagnose.pivots.drawing import drawn_as

    low, high = config.band
    sampling = drawn_as(loaded.model, config)
    top_p = "" if sampling.top_p is None else f", top-p {sampling.top_p:g}"
    return (
        f"Continuations are drawn at temperature {sampling.temperature:g}{top_p}. Problems that are solved in less "
        f"than {low:.0%} or more than {high:.0%} of {config.n_samples} samples are not searched: what would be found "
        "there is not worth its cost (--band)."
    )


def _print_plan(loaded: LoadedModel, asked: Any, config: PivotConfig) -> None:
    from chainwright.diagnose.pivots.estimate import plan_pivots

    say(f"Pivots: {plan_pivots(loaded.model, loaded.tokenizer, asked, config=config)}.")


def _print_found(study: Any) -> None:
    from chainwright.report.study import write_study_report
    from chainwright.studies.pivots import TRACES, PivotsPlan

    for finding in PivotsPlan.findings(study):
        say(finding.summary())
    path = write_study_report(study.folder)
    err.print(f"Traces with their first errors: {study.results['found'] / TRACES}", highlight=False, soft_wrap=True)
    say(f"Report: {path}")
