"""The `chainwright` command: reads arguments, calls the package, prints. No logic of its own.

Exit codes: 0 done, 2 bad input (one sentence says what to do), 130 interrupted.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from chainwright import tasks
from chainwright._errors import ChainwrightError

if TYPE_CHECKING:
    from chainwright.evaluation import Accuracy
    from chainwright.models import LoadedModel
    from chainwright.study import DiagnoseConfig, Diagnosis
    from chainwright.traces import JsonlTraces

app = typer.Typer(
    name="chainwright",
    help="Find out why an open language model's chain of thought breaks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
train_app = typer.Typer(help="Train the small models that come with Chainwright.", no_args_is_help=True)
app.add_typer(train_app, name="train")
out = Console()
err = Console(stderr=True)

Command = TypeVar("Command", bound=Callable[..., None])

ModelName = Annotated[str, typer.Option("--model", "-m", help="A bundled name, a folder, or a Hub id.")]
TaskNames = Annotated[str, typer.Option("--task", "-t", help="A task, several with commas, or 'all'.")]
HopCounts = Annotated[
    str | None, typer.Option("--hops", help="Hop counts: '12', '4,8,12', '4-10'. Left out: the task's usual ones.")
]
NProblems = Annotated[int, typer.Option("-n", help="Problems a task and hop count.")]
Seed = Annotated[int, typer.Option(help="Decides problems and sampling.")]
RenderingName = Annotated[
    str, typer.Option("--rendering", help="'short', 'natural', or 'auto': short for models trained by Chainwright.")
]
Device = Annotated[str | None, typer.Option(help="'cpu', 'cuda', ...; left out: CUDA if there is some.")]
Dtype = Annotated[str | None, typer.Option(help="'float32', 'bfloat16', ...; left out: as in the checkpoint.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")]
RemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint.")]
BatchSize = Annotated[int | None, typer.Option(help="Rows decoded together; left out: chosen by length.")]
MaxNewTokens = Annotated[int | None, typer.Option(help="Longest response; left out: 1.5 gold chains and 16.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only results.")]


def _clear_errors(command: Command) -> Command:
    """Print a user's mistake as one sentence with exit code 2, and an interruption as one with 130."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except ChainwrightError as error:
            err.print(f"[bold red]error:[/] {_plain(str(error))}", highlight=False, soft_wrap=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            err.print("Interrupted. What was finished is on disk; the same command goes on from there.")
            raise typer.Exit(130) from error

    return run  # type: ignore[return-value]


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def _load(name: str, device: str | None, dtype: str | None, revision: str | None, remote_code: bool) -> LoadedModel:
    from chainwright.models import load_model

    return load_model(name, device=device, dtype=dtype, revision=revision, trust_remote_code=remote_code)


@app.command()
@_clear_errors
def models(name: Annotated[str | None, typer.Argument(help="A model to look into.")] = None) -> None:
    """List the bundled models, or show the anatomy of one model."""
    from chainwright.models import anatomy, bundled_models, load_model

    if name is None:
        table = Table("name", "layers", "heads", "d_model", "parameters", title="Bundled models")
        for known in bundled_models():
            parts = anatomy(load_model(known, device="cpu").model)
            n = sum(p.numel() for p in parts.model.parameters())
            table.add_row(known, str(parts.n_layers), str(parts.n_heads), str(parts.d_model), f"{n:,}")
        out.print(table)
        return
    parts = anatomy(load_model(name).model)
    table = Table("part", "found", title=name)
    for label, found in parts.describe().items():
        table.add_row(label, found)
    out.print(table)


@app.command(name="tasks")
@_clear_errors
def tasks_command(
    task: Annotated[str | None, typer.Argument(help="A task to see an example of.")] = None,
    hops: Annotated[int, typer.Option(help="Hops of the example.")] = 3,
    seed: Seed = 0,
    rendering: Annotated[str, typer.Option(help="'short' or 'natural'.")] = "short",
) -> None:
    """List the tasks, or show a problem of one with its gold chain and slots."""
    if task is None:
        table = Table("name", "title", "error types", title="Tasks")
        for name in tasks.names():
            table.add_row(name, tasks.title(name), ", ".join(tasks.error_types(name)))
        out.print(table)
        return
    (problem,) = tasks.sample(task, hops, 1, seed, rendering=rendering)  # type: ignore[arg-type]
    out.rule("prompt")
    out.print(problem.prompt, markup=False, highlight=False)
    out.rule("gold chain")
    out.print(problem.chain, markup=False, highlight=False)
    table = Table("hop", "slot", "a wrong value is", title="Slots")
    for slot in problem.slots:
        table.add_row(str(slot.hop), slot.value, slot.error_type)
    out.print(table)


@app.command()
@_clear_errors
def generate(
    model: ModelName = "reasoner",
    task: TaskNames = "parity",
    hops: HopCounts = None,
    n: NProblems = 10,
    prompt: Annotated[str | None, typer.Option(help="Ask this instead of a task's problems.")] = None,
    out_file: Annotated[Path | None, typer.Option("--out", "-o", help="Write the traces here (Parquet).")] = None,
    seed: Seed = 0,
    rendering: RenderingName = "auto",
    temperature: Temperature = 0.0,
    max_new_tokens: MaxNewTokens = None,
    batch_size: BatchSize = None,
    device: Device = None,
    dtype: Dtype = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Generate traces, print the first one and the accuracy, and write them if asked."""
    from chainwright import _choices, decode
    from chainwright.evaluation import evaluate
    from chainwright.traces import write_traces

    chosen = _choices.rendering_for(rendering, model)
    cells = _choices.choose_cells(task, hops, chosen)
    asked = [prompt] if prompt is not None else _choices.sample_cells(cells, n, seed, chosen)
    _choices.check_free(out_file, overwrite)
    loaded = _load(model, device, dtype, revision, trust_remote_code)
    traces = decode.generate(
        loaded.model,
        loaded.tokenizer,
        asked,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        temperature=temperature,
        seed=seed,
        progress=not quiet,
    )
    out.rule("first trace")
    for text in (traces[0].prompt or "", traces[0].response or ""):
        out.print(text, markup=False, highlight=False)
    if prompt is None:
        _print_accuracy(evaluate(traces))
    if out_file is not None:
        write_traces(out_file, traces, overwrite=overwrite)
        out.print(f"Wrote {len(traces)} traces to {out_file}", soft_wrap=True)


@app.command()
@_clear_errors
def evaluate(
    model: ModelName = "reasoner",
    task: TaskNames = "all",
    hops: HopCounts = None,
    n: NProblems = 100,
    traces: Annotated[
        Path | None, typer.Option(help="Evaluate these traces (Parquet, or JSONL of question and response) instead.")
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave broken lines of a JSONL file out.")] = False,
    seed: Seed = 0,
    rendering: RenderingName = "auto",
    temperature: Temperature = 0.0,
    max_new_tokens: MaxNewTokens = None,
    batch_size: BatchSize = None,
    device: Device = None,
    dtype: Dtype = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    quiet: Quiet = False,
) -> None:
    """Print accuracy by task and hops, with Wilson intervals, and the types of first errors."""
    from chainwright import _choices, decode, diagnose, evaluation

    chosen = _choices.rendering_for(rendering, model)
    cells = {} if traces is not None else _choices.choose_cells(task, hops, chosen)
    asked = _choices.sample_cells(cells, n, seed, chosen)
    loaded = _load(model, device, dtype, revision, trust_remote_code)
    if traces is not None:
        read = _choices.read_file(traces, loaded.tokenizer, skip_bad=skip_bad)
        _print_read(read)
        found = read.traces
    else:
        found = decode.generate(
            loaded.model,
            loaded.tokenizer,
            asked,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            temperature=temperature,
            seed=seed,
            progress=not quiet,
        )
    if _choices.are_judged(found):
        _print_accuracy(evaluation.evaluate(found))
        out.print(diagnose.first_errors(found).summary(), highlight=False)


@app.command()
@_clear_errors
def diagnose(
    model: ModelName = "reasoner",
    task: TaskNames = "all",
    hops: HopCounts = None,
    n: NProblems = 40,
    out_folder: Annotated[Path, typer.Option("--out", "-o", help="Folder for traces, findings and report.")] = Path(
        "runs/diagnosis"
    ),
    seed: Seed = 0,
    rendering: RenderingName = "auto",
    n_contexts: Annotated[int, typer.Option(help="Contexts of each kind that heads are located on.")] = 16,
    temperature: Temperature = 0.0,
    max_new_tokens: MaxNewTokens = None,
    batch_size: BatchSize = None,
    device: Device = None,
    dtype: Dtype = None,
    revision: Revision = None,
    trust_remote_code: RemoteCode = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Find where a model's chains break, of which kind the errors are, and which heads push the wrong token."""
    from chainwright import _choices, study

    chosen = _choices.rendering_for(rendering, model)
    config = study.DiagnoseConfig(
        model=model,
        hops=_choices.choose_cells(task, hops, chosen),
        n=n,
        seed=seed,
        rendering=chosen,
        n_contexts=n_contexts,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    loaded = _load(model, device, dtype, revision, trust_remote_code)
    _diagnose(loaded, config, out_folder, overwrite, quiet)


def _diagnose(loaded: LoadedModel, config: DiagnoseConfig, folder: Path, overwrite: bool, quiet: bool) -> None:
    from chainwright import study
    from chainwright.report import write_report

    found = study.run_diagnosis(
        loaded.model,
        loaded.tokenizer,
        config,
        folder,
        overwrite=overwrite,
        progress=not quiet,
        say=(lambda line: None) if quiet else (lambda line: err.print(line, markup=False, highlight=False)),
    )
    path = write_report(found, folder / "report.html")
    _print_summary(found, path)


@app.command()
@_clear_errors
def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished diagnosis.")],
    out_file: Annotated[Path | None, typer.Option("--out", "-o", help="Left out: in the folder.")] = None,
) -> None:
    """Write the HTML report of a finished diagnosis again."""
    from chainwright import study
    from chainwright.report import write_report

    found = study.open_diagnosis(folder)
    _print_summary(found, write_report(found, out_file or folder / "report.html"))


@app.command()
@_clear_errors
def demo(
    out_folder: Annotated[Path, typer.Option("--out", "-o", help="Folder for traces, findings and report.")] = Path(
        "runs/demo"
    ),
    n: NProblems = 40,
    overwrite: Overwrite = False,
) -> None:
    """Diagnose the bundled reasoner on all seven tasks and write the report."""
    from chainwright import _choices, study

    config = study.DiagnoseConfig(model="reasoner", hops=_choices.REASONER_HOPS, n=n)
    _diagnose(_load("reasoner", "cpu", None, None, False), config, out_folder, overwrite, quiet=False)


@train_app.command()
@_clear_errors
def reasoner(
    out_folder: Annotated[Path, typer.Option("--out", "-o", help="Folder for the checkpoint.")] = Path("runs/reasoner"),
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the recipe, such as n_tokens=4000000; may be given several times."),
    ] = None,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="'cpu' or 'cuda'.")] = "cpu",
    n_workers: Annotated[int, typer.Option("--workers", help="Processes that draw samples.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a training that was stopped.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train the bundled reasoner from scratch: 24 million tokens, about 45 minutes on two free cores."""
    from chainwright import _choices
    from chainwright.lab import ReasonerConfig, train_reasoner

    config = _choices.changed(ReasonerConfig(seed=seed), changes or [])
    start = time.monotonic()
    folder = train_reasoner(config, out_folder, device=device, resume=resume, n_workers=n_workers, progress=not quiet)
    out.print(f"Wrote the reasoner to {folder} after {time.monotonic() - start:.0f} seconds", soft_wrap=True)
    out.print(f"See how good it is: chainwright evaluate --model {folder}", soft_wrap=True)


def _print_accuracy(accuracy: Accuracy) -> None:
    columns = ("task", "hops", "n", "answers right", "95% interval", "chains right", "95% interval")
    table = Table(*columns, title="Accuracy")
    for row in accuracy.rows:
        table.add_row(
            tasks.title(row["task"]),
            str(row["hops"]),
            str(row["n"]),
            f"{row['accuracy']:.2f}",
            f"{row['low']:.2f}-{row['high']:.2f}",
            f"{row['exact']:.2f}",
            f"{row['exact_low']:.2f}-{row['exact_high']:.2f}",
        )
    out.print(table)


def _print_read(read: JsonlTraces) -> None:
    judged = [t for t in read.traces if t.is_correct is not None]
    right = sum(bool(t.is_correct) for t in judged)
    out.print(f"Read {len(read.traces)} traces; skipped {len(read.bad_lines)} broken lines.", highlight=False)
    for line in read.bad_lines:
        out.print(f"  line {line.number}: {_plain(line.reason)}", highlight=False)
    if judged:
        out.print(f"Right: {right} of the {len(judged)} that say whether they are.", highlight=False)


def _print_summary(found: Diagnosis, path: Path) -> None:
    out.print()
    for line in found.summary():
        out.print(_plain(line), highlight=False, soft_wrap=True)
    out.print(f"\nReport: {path}", soft_wrap=True, highlight=False)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    sys.exit(main())  # type: ignore[func-returns-value]
