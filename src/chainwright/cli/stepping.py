"""Commands on steps: reproduce stepflow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chainwright.cli._shared import Device, Dtype, ModelName, Overwrite, Quiet, clear_errors, err, load, out


@clear_errors
def stepflow(
    model: ModelName = "reasoner",
    n: Annotated[int, typer.Option("-n", help="Problems a task and seed.")] = 15,
    out_folder: Annotated[Path, typer.Option("--out", "-o", help="Folder of the study.")] = Path(
        "runs/reproduce-stepflow"
    ),
    device: Device = None,
    dtype: Dtype = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Decode the same problems with StepFlow and with self-consistency; goes on where it stopped."""
    from chainwright import _choices
    from chainwright._files import atomic_file
    from chainwright.reproduce.stepflow import ReproduceStepFlow, ReproduceStepFlowConfig
    from chainwright.reproduce.stepflow_tables import study_lines
    from chainwright.studies import Study, Watch

    class Lines(Watch):
        def finished(self, title: str, seconds: float, skipped: str | None, left: float | None) -> None:
            rest = "" if left is None else f", about {left:.0f} s left"
            err.print(f"{title}: {skipped or f'{seconds:.0f} s'}{rest}", markup=False, highlight=False)

    config = ReproduceStepFlowConfig(model, n=n, rendering=_choices.rendering_for("auto", model))
    loaded = load(model, device, dtype, None, False)
    plan = ReproduceStepFlow(loaded.model, loaded.tokenizer, config)
    study = Study.make(out_folder, plan, overwrite=overwrite)
    done = study.run(None if quiet else Lines())
    lines = list(study_lines(plan, done))
    with atomic_file(out_folder / "tables.md") as draft:
        draft.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for line in lines:
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    out.print(f"Tables: {out_folder / 'tables.md'}", soft_wrap=True, highlight=False)
