"""The whole plan of a model on a device, and its words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from chainwright._errors import BadInput, unknown_name
from chainwright.models.load import empty_model
from chainwright.planning.choice import FLAGS, Planned, planned, too_large
from chainwright.planning.devices import GB, Device
from chainwright.planning.jobs import Asked
from chainwright.planning.parts import Setting
from chainwright.planning.shape import Shape, shape_of

_DTYPES = ("bfloat16", "float16", "float32")


class ModelPlan(NamedTuple):
    """What studying a model takes.

    Attributes:
        shape: The model.
        device: The device.
        asked: What is planned for.
        jobs: Every job with the cheapest setting that fits.
    """

    shape: Shape
    device: Device
    asked: Asked
    jobs: list[Planned]

    def table(self) -> Iterator[str]:
        """Yield the lines of a table: each job's memory, hours and cheapest setting, and what takes the time."""
        rows = [("job", "memory", "hours", "setting", "which are")]
        for job in self.jobs:
            rows.append(
                (
                    job.name,
                    f"{job.bytes / GB:.1f} GB" + ("" if job.fits else " (!)"),
                    f"{job.seconds / 3600:.2f}",
                    " ".join(options(job, self.shape, self.asked)) or "default",
                    ", ".join(f"{part.name} {part.seconds / 3600:.2f}" for part in job.parts),
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()

    def lines(self) -> Iterator[str]:
        """Yield what is assumed, a sentence each."""
        yield self.shape.sentence()
        yield f"Assumed of {self.device.assumptions()}"
        a = self.asked
        yield (
            f"Planned for {a.work.summary()}; heads at {a.diagnosis.max_types} error types per task in "
            f"{a.diagnosis.n_contexts} right and {a.diagnosis.n_contexts} wrong contexts; {a.n_pivots} responses "
            f"searched for pivots; {sum(cell.n for cell in a.work.fitting):,} problems to fit TCR on; "
            f"{2 * a.diagnosis.n_maps} step maps of {a.map_tokens:,} tokens. Memory includes the weights."
        )

    @property
    def warning(self) -> str | None:
        """What to do if a job does not fit, or traces are longer than the model's positions; None if all is well."""
        if 0 < self.shape.n_positions < self.asked.map_tokens:
            return (
                f"The model has positions for {self.shape.n_positions:,} tokens, fewer than the "
                f"{self.asked.map_tokens:,} of the step maps; pass --map-tokens."
            )
        return too_large(self.jobs, self.device)


def plan_model(shape: Shape, on: Device, asked: Asked, *, dtype: str | None = None) -> ModelPlan:
    """Return what studying a model takes.

    Args:
        shape: The model (`read_shape`).
        on: The device.
        asked: What is planned for (`usual_asked`).
        dtype: Number type of the model; None chooses.

    Raises:
        BadInput: An unknown number type.
    """
    if dtype is not None and dtype not in _DTYPES:
        raise unknown_name("number type", dtype, _DTYPES)
    return ModelPlan(shape, on, asked, planned(shape, asked, on, dtype))


def read_shape(name: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Shape:
    """Return the sizes of a model; only its config is read or downloaded.

    Args:
        name: As for `load_model`, or a config.json file.
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Run code that comes with the checkpoint.

    Raises:
        BadInput: The config cannot be read, or is not of a decoder.
    """
    try:
        return shape_of(name, empty_model(name, revision=revision, trust_remote_code=trust_remote_code))
    except BadInput as error:
        if "could not be loaded" not in str(error):
            raise
        raise BadInput(
            f"{error} A plan needs no more than the model's config.json: where the Hub cannot be reached, save that "
            "file from the model's page and pass its path as --model."
        ) from error


def options(job: Planned, shape: Shape, asked: Asked) -> list[str]:
    """Return the options that make a command run with a job's setting."""
    setting: Setting = job.setting
    batch, chunk = FLAGS[job.name]
    said = [] if setting.dtype == shape.dtype else [f"--dtype {setting.dtype}"]
    if setting.batch_size is not None and batch is not None:
        said.append(f"{batch}{'' if batch.endswith('=') else ' '}{setting.batch_size}")
    if job.name == "diagnosing" and setting.measured not in (1.0, asked.diagnosis.measured):
        said.append(f"--measured {setting.measured:g}")
    if setting.chunk is not None and chunk is not None:
        said.append(f"{chunk} {setting.chunk}")
    return said
