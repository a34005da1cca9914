"""The command `reproduce back-attention-real`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chainwright._registry import register
from chainwright.cli import _parse
from chainwright.cli._command import ConfigOptions, Values
from chainwright.cli._options import Changes, Overwrite, Quiet, Recompute, StudyFolder
from chainwright.cli._results import Finished, ResultsFolder, claim_row, command_line, write_result
from chainwright.cli._shared import print_table, say, uncollected
from chainwright.cli._studies import watch

if TYPE_CHECKING:
    pass

_CONFIG = "chainwright.reproduce.back_real.config:ReproduceBackRealConfig"
OPTIONS = ConfigOptions(_CONFIG, "model", "kind", "source", "n", flags={"model": "--model/-m", "n": "-n"})
Files = Annotated[
    list[Path] | None, typer.Option("--file", help="With --kind word-problems: file of problems; may be repeated.")
]


@register("command", "reproduce.back-attention-real")
def back_attention_real(
    out_folder: StudyFolder = Path("runs/reproduce-back-attention-real"),
    options: Values = OPTIONS,
    files: Files = None,
    changes: Changes = None,
    cost_repeats: Annotated[
        int, typer.Option("--cost-repeats", min=0, help="Times that the cost of a token is measured at the end.")
    ] = 0,
    ship_to: Annotated[
        Path | None,
        typer.Option("--ship", help="Also save the back attention of the first seed here, with its figures."),
    ] = None,
    is_finished: Finished = False,
    results: ResultsFolder = None,
    overwrite: Overwrite = False,
    recompute: Recompute = False,
    quiet: Quiet = False,
) -> None:
    """Fit back attention beside a frozen pretrained model on problems answered at once, and compare its controls."""
    with uncollected():
        from chainwright.reproduce.back_real.config import ReproduceBackRealConfig
        from chainwright.reproduce.back_real.study import run_back_real, ship

    config = _parse.changed(
        ReproduceBackRealConfig(**options, files=[str(file) for file in files or ()]), changes or []
    )
    tables = run_back_real(
        config, out_folder, overwrite=overwrite, recompute=recompute, watch=watch(quiet), cost_repeats=cost_repeats,
        only_finished=is_finished,
    )  # fmt: skip
    print_table("Held-out problems answered right", tables["ways"])
    print_table("Published findings", [claim_row(claim) for claim in tables["claims"]])
    say(f"Fitted modules: {out_folder}/way/*/seed-*/repair")
    if ship_to is not None:
        say(f"Repair: {ship(out_folder, config, ship_to, overwrite=overwrite)}")
    for claim in tables["claims"]:
        write_result(results, model=Path(config.model).name, command=command_line(), **claim)
