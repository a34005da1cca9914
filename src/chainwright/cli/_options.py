"""The options that several commands share, each written once: the type of a parameter, with its flags and its help.

Defaults are not here: they are in the config classes (`BY_FIELD` serves their fields) or with the command itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

ModelName = Annotated[
    str,
    typer.Option("--model", "-m", help="Model: a name from `chainwright models`, a folder, a GGUF file, or a Hub id."),
]
Adapter = Annotated[
    str | None, typer.Option("--adapter", help="Folder of a PEFT adapter, merged into the model's weights.")
]
TaskNames = Annotated[str, typer.Option("--task", "-t", help="A task, several separated by commas, or 'all'.")]
HopCounts = Annotated[
    str | None,
    typer.Option(
        "--hops",
        help="Hop counts, such as '12', '4,8,12', '4-10' or 'parity=8;mdm=2,3' (default: the usual of each task).",
    ),
]
NProblems = Annotated[int, typer.Option("-n", help="Problems per task and hop count.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the problems and of sampling.")]
RenderingName = Annotated[
    str,
    typer.Option(
        "--rendering",
        metavar="auto|short|natural",
        help="Wording of the problems; 'auto' is 'short' for models trained by Chainwright, else 'natural'.",
    ),
]
Raw = Annotated[bool, typer.Option("--raw", help="Ask with the prompt as it is, without the chat template.")]
Markers = Annotated[
    tuple[str, str] | None,
    typer.Option(
        "--think-markers",
        metavar="OPEN CLOSE",
        help="The markers around the thinking (default: the usual ones are known).",
    ),
]
Device = Annotated[str | None, typer.Option("--device", help="'cpu', 'cuda', ... (default: CUDA if available).")]
Dtype = Annotated[
    str | None, typer.Option("--dtype", help="'float32', 'bfloat16', ... (default: that of the checkpoint).")
]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit on the Hub.")]
RemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint.")]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        metavar="auto",
        help="Spread the model over all devices of this machine, and offload what has no room.",
    ),
]
Ranks = Annotated[
    int | None,
    typer.Option("--tp", metavar="N", help="Share the model among N processes, a device each (tensor parallelism)."),
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", help="Rows decoded together (default: chosen by their length).")
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        help="Maximum new tokens (default: 1.5 x the gold chain's length + 16, or 32,768 for models that think).",
    ),
]
Temperature = Annotated[float, typer.Option("--temperature", help="Sampling temperature; 0 is greedy.")]
RepairName = Annotated[
    str | None, typer.Option("--repair", help="Decode with this repair: a bundled name, a folder, or a Hub id.")
]
RepairNames = Annotated[
    list[str] | None,
    typer.Option(
        "--repair",
        help="Decode with this repair: a bundled name, a folder, or a Hub id; may be repeated to combine some.",
    ),
]
TraceFile = Annotated[
    Path | None, typer.Option("--out", "-o", help="Write traces to this Parquet file. An interrupted run resumes.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")]
Recompute = Annotated[bool, typer.Option("--recompute", help="Recompute units whose files are missing or damaged.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results only, no progress.")]
ExecutorName = Annotated[
    str,
    typer.Option(
        "--executor",
        metavar="local|ray|folder",
        help="Where units are computed: in this process, by Ray, or later by processes of `chainwright study work`.",
    ),
]
Workers = Annotated[int | None, typer.Option("--workers", help="With --executor ray: units computed at the same time.")]
StudyFolder = Annotated[
    Path, typer.Option("--out", "-o", help="Folder of the study. An interrupted study in it is resumed.")
]
ReportFolder = Annotated[Path, typer.Option("--out", "-o", help="Folder for traces, findings and report.")]
RepairFolder = Annotated[Path, typer.Option("--out", "-o", help="Folder for the repair.")]
CheckpointFolder = Annotated[Path, typer.Option("--out", "-o", help="Folder for the checkpoint.")]
Seeds = Annotated[str, typer.Option("--seeds", help="Seeds of the test problems, separated by commas.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Change a setting, such as n_steps=100; may be repeated."),
]
TrainingSeed = Annotated[int, typer.Option("--seed", help="Seed of the starting weights and the training data.")]
TrainingDevice = Annotated[str, typer.Option("--device", help="Device to train on: 'cpu' or 'cuda'.")]
Resume = Annotated[bool, typer.Option("--resume", help="Resume an interrupted training run.")]
Folder = Annotated[Path, typer.Argument(help="Folder of a study.")]

BY_FIELD: Mapping[str, Any] = {
    "task": TaskNames,
    "n": NProblems,
    "seeds": Seeds,
    "seed": Seed,
    "repair": RepairName,
    "temperature": Temperature,
    "max_new_tokens": MaxNewTokens,
    "batch_size": BatchSize,
    "adapter": Adapter,
    "device": Device,
    "dtype": Dtype,
    "revision": Revision,
    "trust_remote_code": RemoteCode,
    "device_map": DeviceMap,
    "tp": Ranks,
}
