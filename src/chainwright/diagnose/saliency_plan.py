"""What step maps will take, estimated before anything long is run."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import nn

from chainwright.diagnose._layer_by_layer import LOGITS_AT_ONCE
from chainwright.diagnose._saliency_jobs import TOKENS_AT_ONCE, TraceLike, as_trace, job_of
from chainwright.diagnose._step_maps import BLOCK_BYTES
from chainwright.models.anatomy import Anatomy, anatomy
from chainwright.traces import Trace


class SaliencyPlan(NamedTuple):
    """An estimate made before anything long is run.

    Attributes:
        n_tokens: Tokens of the longest trace.
        n_steps: Steps of the trace that has most.
        n_traces: Traces.
        mebibytes: Memory above the model's own.
        seconds: Time for all of them, good to a factor of two or so.
    """

    n_tokens: int
    n_steps: int
    n_traces: int
    mebibytes: float
    seconds: float

    def __str__(self) -> str:
        """Return the estimate as a sentence."""
        what = "1 trace" if self.n_traces == 1 else f"{self.n_traces} traces"
        return (
            f"{what} of up to {self.n_tokens} tokens in {self.n_steps} steps: about {self.mebibytes:.0f} MiB above the "
            f"model's own and {self.seconds:.1f} s."
        )


def plan_step_saliency(
    model: nn.Module, trace: TraceLike | list[TraceLike] | list[Trace], *, block_bytes: int = BLOCK_BYTES
) -> SaliencyPlan:
    """Return what `step_saliency` will need, from the model's sizes and a matrix product timed for an instant.

    Raises:
        BadTrace: As `step_saliency`.
    """
    parts = anatomy(model)
    given = list(trace) if isinstance(trace, list) else [trace]
    jobs = [job_of(parts, as_trace(one), "sequence", None) for one in given]
    lengths = [len(job.trace) for job in jobs]
    flops = sum(_flops(parts, n) for n in lengths)
    n_tokens, n_steps = max(lengths), max(len(job.trace.steps) for job in jobs)
    n_bytes = _bytes(parts, max(n_tokens, min(TOKENS_AT_ONCE, sum(lengths))), n_tokens, n_steps, block_bytes)
    return SaliencyPlan(n_tokens, n_steps, len(jobs), n_bytes / 2**20, flops / _flops_a_second(parts))


def _flops(parts: Anatomy, n_tokens: int) -> float:
    """Return the multiplications and additions of two forward passes and one backward pass to the activations."""
    n_weights = float(sum(p.numel() for p in parts.model.parameters()))
    attention = 7.0 * parts.n_layers * parts.n_heads * parts.d_head * n_tokens * n_tokens
    return 6.0 * n_weights * n_tokens + attention


def _bytes(parts: Anatomy, n_tokens: int, longest: int, n_steps: int, block_bytes: int) -> float:
    """Return the bytes of all layers' inputs, one layer's insides, some logits, the buffers and the maps."""
    size = parts.model.dtype.itemsize
    block_weights = sum(p.numel() for p in parts.layers[-1].block.parameters())
    insides = n_tokens * (block_weights / parts.d_model + 8 * parts.d_model) * 2 * size
    wide = n_tokens * parts.n_heads * parts.d_head * 4 * 8
    kept = n_tokens * parts.d_model * size * (parts.n_layers + 4)
    logits = 3 * 4 * min(LOGITS_AT_ONCE, n_tokens * parts.d_vocab)
    buffers = 3 * min(block_bytes, 4 * parts.n_heads * longest * longest)
    return float(kept + insides + wide + logits + buffers + 16 * parts.n_layers * n_steps * n_steps)


def _flops_a_second(parts: Anatomy) -> float:
    """Return how fast this device multiplies matrices of the model's width, timed for about 50 ms."""
    width = max(64, parts.d_model)
    a = torch.ones(256, width, dtype=parts.model.dtype, device=parts.model.device)
    b = torch.ones(width, width, dtype=parts.model.dtype, device=parts.model.device)
    n, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < 0.05:
        float((a @ b)[0, 0])
        n += 1
    # about half of the time goes to what is no matrix product
    return float(n * 256 * width * width / spent)
