"""The command `study run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chainwright._registry import register
from chainwright.cli._options import Device, Overwrite, Quiet, Recompute, RemoteCode
from chainwright.cli._shared import say
from chainwright.cli._studies import print_diagnosis, print_findings, print_study, run_diagnosis, watch


@register("command", "study.run")
def run(
    what: Annotated[Path, typer.Argument(help="A study file (TOML), or the folder of a study to resume.")],
    out_folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the study (default: runs/ and the file's name).")
    ] = None,
    device: Device = None,
    trust_remote_code: RemoteCode = False,
    overwrite: Overwrite = False,
    recompute: Recompute = False,
    quiet: Quiet = False,
) -> None:
    """Run a new study, or resume an interrupted one."""
    from chainwright._errors import BadInput
    from chainwright.studies import Study
    from chainwright.studies.diagnosis import run as study
    from chainwright.studies.diagnosis.plan import KIND
    from chainwright.studies.diagnosis.toml import read_study_file

    if what.is_dir():
        if out_folder is not None:
            raise BadInput(f"{what} is an existing study; it is resumed in place, so drop --out.")
        if Study.open(what).manifest.kind != KIND:
            _resume_other(what, device, trust_remote_code, overwrite=overwrite, recompute=recompute, quiet=quiet)
            return
        config, folder = study.study_config(what), what
    else:
        config, folder = read_study_file(what), out_folder or Path("runs") / what.stem
    spread = {"device": device, "trust_remote_code": trust_remote_code}
    run_diagnosis(config, folder, spread, overwrite=overwrite, recompute=recompute, quiet=quiet)
    if study.has_report(config):
        print_diagnosis(folder)
        say(f"More: chainwright study show {folder}")
    else:
        print_study(folder)


def _resume_other(
    folder: Path, device: str | None, trust_remote_code: bool, *, overwrite: bool, recompute: bool, quiet: bool
) -> None:
    """Resume a study that is not a diagnosis; its own file says how it was begun."""
    from chainwright._errors import BadInput
    from chainwright.studies import Study

    if overwrite:
        raise BadInput(
            f"--overwrite starts a study again, which only the command that made {folder} can do; drop --overwrite."
        )
    study = Study.open(folder).with_plan(device=device, trust_remote_code=trust_remote_code)
    study.run(watch(quiet), recompute=recompute)
    print_findings(study)
