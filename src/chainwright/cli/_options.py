"""The options that several commands have, each written once: a type of a parameter, with its flags and its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
RepairName = Annotated[
    str | None, typer.Option("--repair", help="Decode with this repair: a bundled name, a folder, or a Hub id.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Recompute = Annotated[bool, typer.Option("--recompute", help="Compute units again whose files are missing or damaged.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only results.")]
StudyFolder = Annotated[Path, typer.Option("--out", "-o", help="Folder of the study.")]
ReportFolder = Annotated[Path, typer.Option("--out", "-o", help="Folder for traces, findings and report.")]
CheckpointFolder = Annotated[Path, typer.Option("--out", "-o", help="Folder for the checkpoint.")]
TestSeeds = Annotated[str, typer.Option(help="Seeds of the test problems, with commas.")]
TrainingDevice = Annotated[str, typer.Option(help="'cpu' or 'cuda'.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a training that was stopped.")]
