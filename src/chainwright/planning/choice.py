"""The cheapest setting of each job that fits the memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from chainwright.planning.devices import GB, Device
from chainwright.planning.jobs import JOBS, Asked
from chainwright.planning.parts import Part, Setting, is_screened
from chainwright.planning.shape import Shape
from chainwright.planning.work import Passes

_BATCHES = (None, 128, 64, 32, 16, 8, 4, 2, 1)
_CHUNKS = (None, 2**32, 2**30, 2**28, 2**26)
_SHARES = (0.2, 0.1, 0.05)
_ROOM = 0.9  # of the memory; the rest is for the allocator, buffers inside kernels and the driver

FLAGS = {
    "diagnosing": ("--batch-size", "--sweep-bytes"),
    "pivots": ("--batch-size", None),
    "fitting TCR": (None, "--sweep-bytes"),
    "step maps": (None, "--sweep-bytes"),
    "StepFlow": ("--batch-size", None),
    "back attention": ("--set batch_size=", None),
}
"""The options that set a job's batch and its chunk; None where it has none."""


class Planned(NamedTuple):
    """A job with its setting.

    Attributes:
        name: The job.
        parts: What it takes, part by part.
        weights: Memory of the model.
        setting: The setting.
        fits: Whether it fits the memory; if not, the setting is the smallest.
    """

    name: str
    parts: list[Part]
    weights: float
    setting: Setting
    fits: bool

    @property
    def seconds(self) -> float:
        """Return how long the job takes."""
        return sum(part.seconds for part in self.parts)

    @property
    def bytes(self) -> float:
        """Return what must fit at once."""
        return self.weights + max(part.bytes for part in self.parts)


def planned(shape: Shape, asked: Asked, on: Device, dtype: str | None = None) -> list[Planned]:
    """Return every job with the setting that takes least time of those that fit.

    Args:
        shape: The model.
        asked: What the jobs are planned for.
        on: The device.
        dtype: Number type of the model; None takes the checkpoint's, or bfloat16 where that fits or is faster on a GPU.
    """
    return [_cheapest(name, shape, asked, on, dtype) for name in JOBS]


def _cheapest(name: str, shape: Shape, asked: Asked, on: Device, dtype: str | None) -> Planned:
    """Return the cheapest setting; fewer heads, or on a processor another number type, only where nothing else fits."""
    dtypes = [dtype] if dtype is not None else list(dict.fromkeys([shape.dtype, "bfloat16"]))
    if dtype is None and shape.dtype == "float16":
        dtypes = ["float16"]
    waves = [dtypes[:1], dtypes[1:]] if on.waits else [dtypes]
    last: Planned | None = None
    for share in _shares(shape, asked):
        for some in filter(None, waves):
            options = [_at(name, shape, asked, on, setting) for setting in _settings(name, some, share)]
            fitting = [option for option in options if option.fits]
            if fitting:
                return min(fitting, key=_cost)
            last = min(options, key=lambda option: option.bytes)
    assert last is not None
    return last


def _cost(option: Planned) -> tuple[float, int]:
    """Return what settings are ranked by: time, to two digits, then how many of them are changed."""
    changed = sum(value is not None for value in (option.setting.batch_size, option.setting.chunk))
    return float(f"{option.seconds:.2g}"), changed


def _shares(shape: Shape, asked: Asked) -> Sequence[float]:
    if not is_screened(Passes(shape, shape.dtype)):
        return (1.0,)
    usual = asked.diagnosis.measured
    return (usual, *(share for share in _SHARES if share < usual))


def _settings(name: str, dtypes: Sequence[str], share: float) -> Iterator[Setting]:
    batch, chunk = FLAGS[name]
    for dtype in dtypes:
        for size in _BATCHES if batch else (None,):
            for n_bytes in _CHUNKS if chunk else (None,):
                yield Setting(dtype, size, share, n_bytes)


def _at(name: str, shape: Shape, asked: Asked, on: Device, setting: Setting) -> Planned:
    passes = Passes(shape, setting.dtype)
    found = Planned(name, JOBS[name](passes, asked, on, setting), passes.weight_bytes, setting, True)
    return found._replace(fits=found.bytes <= _ROOM * on.memory)


def too_large(plans: Sequence[Planned], on: Device) -> str | None:
    """Return a sentence on what to do if the weights alone leave no room on the device; None if every job fits."""
    if all(plan.fits for plan in plans):
        return None
    worst = max((plan for plan in plans if not plan.fits), key=lambda plan: plan.bytes)
    return (
        f"What is marked (!) does not fit: {worst.name} takes {worst.bytes / GB:.1f} GB at the least, of them "
        f"{worst.weights / GB:.1f} for the weights, and {_ROOM:.0%} of {on.memory / GB:.0f} GB can be counted on; take "
        "a device with more memory, or spread the model over several."
    )
