"""The command `demo`."""

from __future__ import annotations

from pathlib import Path

from chainwright._registry import register
from chainwright.cli._command import ConfigOptions, Values
from chainwright.cli._options import Overwrite, ReportFolder
from chainwright.cli._studies import print_diagnosis, run_diagnosis

PROBLEMS = ConfigOptions("chainwright.studies.diagnosis.config:DiagnoseConfig", "n")


@register("command", "demo")
def demo(
    out_folder: ReportFolder = Path("runs/demo"), problems: Values = PROBLEMS, overwrite: Overwrite = False
) -> None:
    """Diagnose the bundled reasoner on all seven tasks, decode again with its repair, and write the report."""
    from chainwright.studies.diagnosis.config import DiagnoseConfig
    from chainwright.tasks.cells import choose_cells

    hops = choose_cells("all", None, "short")
    config = DiagnoseConfig(model="reasoner", hops=hops, repair="tcr-reasoner", **problems)
    run_diagnosis(config, out_folder, {"device": "cpu"}, overwrite=overwrite)
    print_diagnosis(out_folder)
