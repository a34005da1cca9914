"""What a device is taken to do: memory, arithmetic and bandwidth, from data sheets or measured here.

The peaks of GPUs are those of their public data sheets, dense (without sparsity), with sums in float32. What
Transformers reaches of them is assumed, as a share. No data sheet says what a core of a processor does, so this machine
is measured: products of the model's width with few and with many rows, one pass through memory, and one decoding step
of a very small model.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf, log

import torch

from chainwright._errors import BadInput, unknown_name
from chainwright.planning.calibration import layer_seconds, text_seconds
from chainwright.planning.clock import Clock, usual_seconds

GB = 1e9
_SHARE_OF_PEAK, _SHARE_OF_BANDWIDTH = 0.5, 0.7
_SECONDS_A_LAYER = 0.8e-3  # to start the kernels of one layer from Python, uncompiled
_CPU = "cpu"
_ROWS = (1, 8, 64, 256)  # of the products that are timed
_MOST_WEIGHTS = 2**25  # 128 MB in float32, more than caches hold


@dataclass(frozen=True)
class Device:
    """A device and what it is taken to reach.

    Attributes:
        name: Its name.
        memory: Bytes.
        half: Operations per second in bfloat16 or float16 at the peak.
        single: In float32, without TF32.
        bandwidth: Bytes per second at the peak.
        share_of_peak: What passes over many tokens reach of the arithmetic.
        share_of_bandwidth: What reading weights and caches reaches of the bandwidth.
        seconds_a_layer: To start one layer's work.
        seconds_a_text: Of Python per token and row, where a repair reads the text while it is written.
        waits: Whether work begins only when it has been started (a processor), or is started ahead (a GPU).
        source: Where the figures come from.
        by_rows: Rows of a product, and the share of the arithmetic that is reached with so many, rising; empty where
            weights are read fast enough for any.
    """

    name: str
    memory: float
    half: float
    single: float
    bandwidth: float
    share_of_peak: float = _SHARE_OF_PEAK
    share_of_bandwidth: float = _SHARE_OF_BANDWIDTH
    seconds_a_layer: float = _SECONDS_A_LAYER
    seconds_a_text: float = 0.1e-3
    waits: bool = False
    source: str = "data sheet"
    by_rows: tuple[tuple[int, float], ...] = ()

    def rate(self, dtype: str, rows: float = inf) -> float:
        """Return the operations per second that products in a number type are taken to reach, by their rows."""
        peak = self.half if dtype in ("bfloat16", "float16") else self.single
        return self.share_of_peak * peak * self._reached(rows)

    def _reached(self, rows: float) -> float:
        """Return the share that is reached with so many rows, between those that were measured."""
        if not self.by_rows or rows >= self.by_rows[-1][0]:
            return 1.0
        for (low, at_low), (high, at_high) in pairwise(self.by_rows):
            if rows <= high:
                part = max(0.0, log(max(rows, low) / low) / log(high / low))
                return float(at_low * (at_high / at_low) ** part)
        raise AssertionError("rows below the last entry lie between two of them")

    @property
    def bytes_per_second(self) -> float:
        """Return the bandwidth that is taken to be reached."""
        return self.share_of_bandwidth * self.bandwidth

    def assumptions(self) -> str:
        """Return in a sentence what is assumed of the device."""
        what = (
            f"{self.memory / GB:.0f} GB, {self.half / 1e12:.3g} TFLOP/s in bfloat16 and {self.single / 1e12:.3g} in "
            f"float32, {self.bandwidth / GB:.4g} GB/s"
        )
        if self.waits:
            return f"{self.name}: {what}, {1000 * self.seconds_a_layer:.2g} ms to start a layer ({self.source})."
        return (
            f"{self.name}: {what} ({self.source}), of which {self.share_of_peak:.0%} and {self.share_of_bandwidth:.0%} "
            f"are reached, and {1000 * self.seconds_a_layer:.2g} ms to start a layer (assumed)."
        )


def _gpu(name: str, memory: float, half: float, single: float, bandwidth: float) -> Device:
    return Device(name, memory * GB, half * 1e12, single * 1e12, bandwidth * GB)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("h200", 141, 989, 67, 4800),
        _gpu("h100", 80, 989, 67, 3350),
        _gpu("h100-pcie", 80, 756, 51, 2000),
        _gpu("a100-80", 80, 312, 19.5, 2039),
        _gpu("a100-40", 40, 312, 19.5, 1555),
        _gpu("l40s", 48, 362, 91.6, 864),
        _gpu("l4", 24, 121, 30.3, 300),
        _gpu("rtx4090", 24, 165, 82.6, 1008),
        _gpu("rtx3090", 24, 71, 35.6, 936),
    )
}
NAMES = (*GPUS, _CPU)


def device(
    name: str,
    memory: float | None = None,
    *,
    width: int = 1024,
    n_weights: int = 2**25,
    clock: Clock = time.perf_counter,
) -> Device:
    """Return a device by its name; "cpu" is this machine, which is measured for about two seconds.

    Args:
        name: One of `NAMES`.
        memory: Bytes to count on instead of all that it has.
        width: Width of the products that this machine is measured by: the model's.
        n_weights: Weights of the model's layers; few of them stay in a processor's caches.
        clock: What this machine is measured by.

    Raises:
        BadInput: An unknown name, or memory that is not positive.
    """
    check_device(name, memory)
    found = GPUS[name] if name != _CPU else measured_cpu(width, n_weights, clock)
    return found if memory is None else replace(found, memory=memory)


def check_device(name: str, memory: float | None) -> None:
    """Raise BadInput for an unknown device, or memory that is not positive; nothing is measured."""
    if name not in NAMES:
        raise unknown_name("device", name, NAMES)
    if memory is not None and not memory > 0:
        raise BadInput(f"The memory must be a positive number of GB; got {memory / GB:g}.")


def measured_cpu(width: int, n_weights: int, clock: Clock = time.perf_counter) -> Device:
    """Return this machine, as busy as it is now, with the threads that PyTorch uses now."""
    rates = {rows: _product_rate(torch.float32, rows, width, n_weights, clock) for rows in _ROWS}
    single = rates[_ROWS[-1]]
    half = _product_rate(torch.bfloat16, _ROWS[-1], width, n_weights, clock)
    return Device(
        _CPU,
        memory=_memory(),
        half=half,
        single=single,
        bandwidth=_bandwidth(clock),
        share_of_peak=1.0,
        share_of_bandwidth=1.0,
        seconds_a_layer=layer_seconds(clock),
        seconds_a_text=text_seconds(clock),
        waits=True,
        source=f"measured on this machine just now, {torch.get_num_threads()} threads",
        by_rows=tuple((rows, min(1.0, rate / single)) for rows, rate in rates.items()),
    )


def _product_rate(dtype: torch.dtype, rows: int, width: int, n_weights: int, clock: Clock) -> float:
    n_out = max(1, min(_MOST_WEIGHTS, n_weights) // width)
    a, b = torch.ones(rows, width, dtype=dtype), torch.ones(n_out, width, dtype=dtype)
    return 2 * rows * width * n_out / usual_seconds(lambda: torch.nn.functional.linear(a, b), clock)


def _bandwidth(clock: Clock) -> float:
    n = 2**25  # 128 MB, more than a processor's caches hold
    values, vector = torch.ones(2**13, n // 2**13), torch.ones(n // 2**13)
    return 4 * n / usual_seconds(lambda: values @ vector, clock)


def _memory() -> float:
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError) as error:
        raise BadInput("This system does not say how much memory it has; name it with --memory.") from error
