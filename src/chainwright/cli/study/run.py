"""The command `study run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from chainwright._registry import register
from chainwright.cli._options import Device, ExecutorName, Overwrite, Quiet, Recompute, RemoteCode, Workers
from chainwright.cli._studies import is_left_to_workers, print_finished, run_diagnosis, watch


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
    executor: ExecutorName = "local",
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Run a new study, or resume an interrupted one."""
    from chainwright._errors import BadInput
    from chainwright.studies import Study
    from chainwright.studies.diagnosis.plan import KIND, study_config
    from chainwright.studies.diagnosis.toml import read_study_file

    if what.is_dir():
        if out_folder is not None:
            raise BadInput(f"{what} is an existing study; it is resumed in place, so drop --out.")
        if Study.open(what).manifest.kind != KIND:
            if overwrite:
                raise BadInput(
                    f"--overwrite starts a study again, which only the command that made {what} can do; drop "
                    "--overwrite."
                )
            _resume_other(what, executor, workers, device, trust_remote_code, recompute=recompute, quiet=quiet)
            return
        config, folder = study_config(what), what
    else:
        config, folder = read_study_file(what), out_folder or Path("runs") / what.stem
    options: dict[str, Any] = {"overwrite": overwrite, "recompute": recompute, "quiet": quiet}
    spread = {"device": device, "trust_remote_code": trust_remote_code}
    if run_diagnosis(config, folder, spread, **options, executor=executor, workers=workers):
        print_finished(Study.open(folder))


def _resume_other(
    folder: Path,
    executor: str,
    workers: int | None,
    device: str | None,
    trust_remote_code: bool,
    *,
    recompute: bool,
    quiet: bool,
) -> None:
    """Resume a study that is not a diagnosis; its own file says how it was begun."""
    from chainwright.studies import Study
    from chainwright.studies.executors import made

    chosen = made(executor, workers=workers, device=device, trust_remote_code=trust_remote_code)
    study = Study.open(folder).with_plan(device=device, trust_remote_code=trust_remote_code)
    study.run(watch(quiet), recompute=recompute, executor=chosen)
    if not is_left_to_workers(study):
        print_finished(study)
