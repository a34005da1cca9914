"""Time and memory of step maps, estimated before they are computed."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import nn

from chainwright.diagnose.steps._attention_maps import usual_block
from chainwright.diagnose.steps._backward import LOGITS_AT_ONCE, TOKENS_IN_REST
from chainwright.diagnose.steps._inputs import TOKENS_AT_ONCE, TraceLike, as_trace, job_of
from chainwright.models.anatomy import Anatomy, anatomy
from chainwright.models.decoder import causal_lm
from chainwright.models.load import check_device
from chainwright.models.placement import device_of
from chainwright.traces import Trace


class SaliencyPlan(NamedTuple):
    """The estimated cost of `step_saliency`.

    Attributes:
        n_tokens: Tokens of the longest trace.
        n_steps: Steps of the trace with the most.
        n_traces: Number of traces.
        mebibytes: Memory besides the model.
        seconds: Time for all traces, right within about a factor of two.
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
            f"{what} of up to {self.n_tokens} tokens in {self.n_steps} steps: about {self.mebibytes:.0f} MiB besides "
            f"the model and {self.seconds:.1f} s."
        )


class _Sizes(NamedTuple):
    """The sizes of a model that the estimate uses; `n_block` is the number of weights in one layer."""

    n_weights: int
    n_layers: int
    n_block: int


def plan_step_saliency(
    model: nn.Module,
    trace: TraceLike | list[TraceLike] | list[Trace],
    *,
    block_bytes: int | None = None,
    device: str | torch.device | None = None,
) -> SaliencyPlan:
    """Return the estimated time and memory of `step_saliency`, from the model's sizes and a timed matrix product.

    Args:
        model: The model, or one without weights (`models.load.empty_model`), whose sizes are read from its config.
        trace: As in `step_saliency`.
        block_bytes: As in `step_saliency`.
        device: Where it will run; None means the model's device, or for one without weights CUDA if available.

    Raises:
        BadTrace: As `step_saliency`.
    """
    is_empty = device_of(causal_lm(model)).type == "meta"
    parts = _of_config(model) if is_empty else anatomy(model)
    sizes = _sizes(parts)
    place = check_device(device) if is_empty or device is not None else parts.device
    jobs = [job_of(parts, as_trace(t), "sequence", None) for t in (trace if isinstance(trace, list) else [trace])]
    lengths = [len(job.trace) for job in jobs]
    flops = sum(sum(saliency_flops(sizes.n_weights, sizes.n_layers, parts.n_heads, parts.d_head, n)) for n in lengths)
    n_tokens, n_steps = max(lengths), max(len(job.trace.steps) for job in jobs)
    n_at_once = max(n_tokens, min(TOKENS_AT_ONCE, sum(lengths)))
    n_bytes = saliency_bytes(
        dtype_size=parts.model.dtype.itemsize,
        n_layers=sizes.n_layers,
        n_heads=parts.n_heads,
        d_head=parts.d_head,
        d_model=parts.d_model,
        d_vocab=parts.d_vocab,
        n_block=sizes.n_block,
        n_tokens=n_at_once,
        longest=n_tokens,
        n_steps=n_steps,
        block_bytes=block_bytes or usual_block(place),
    )
    return SaliencyPlan(n_tokens, n_steps, len(jobs), n_bytes / 2**20, flops / _flops_per_second(parts, place))


def _of_config(model: nn.Module) -> Anatomy:
    """Return an anatomy without layers, with the sizes in the config, for a model that has no weights to run."""
    inner = causal_lm(model)
    config = inner.config.get_text_config()
    n_heads = int(config.num_attention_heads)
    d_head = int(getattr(config, "head_dim", None) or config.hidden_size // n_heads)
    n_kv_heads = int(getattr(config, "num_key_value_heads", None) or n_heads)
    return Anatomy(inner, (), nn.Identity(), 1.0, n_heads, n_kv_heads, d_head, int(config.hidden_size))


def _sizes(parts: Anatomy) -> _Sizes:
    n_weights = sum(p.numel() for p in parts.model.parameters())
    if parts.layers:
        n_block = sum(p.numel() for p in parts.layers[-1].block.parameters())
        return _Sizes(n_weights, parts.n_layers, n_block)
    n_layers = int(parts.model.config.get_text_config().num_hidden_layers)
    tables: list[nn.Module | None] = [parts.model.get_input_embeddings(), parts.model.get_output_embeddings()]
    in_tables = {id(p): p.numel() for table in tables if table is not None for p in table.parameters()}
    return _Sizes(n_weights, n_layers, (n_weights - sum(in_tables.values())) // n_layers)


def saliency_flops(n_weights: float, n_layers: int, n_heads: int, d_head: int, n_tokens: int) -> tuple[float, float]:
    """Return the operations of two forward passes and one backward pass to the activations.

    Returns:
        Those with the weights, in the model's number type, and those of attention, of which the backward pass is in
        float32.
    """
    return 6.0 * n_weights * n_tokens, 7.0 * n_layers * n_heads * d_head * n_tokens * n_tokens


def saliency_bytes(
    *,
    dtype_size: int,
    n_layers: int,
    n_heads: int,
    d_head: int,
    d_model: int,
    d_vocab: int,
    n_block: int,
    n_tokens: int,
    longest: int,
    n_steps: int,
    block_bytes: int,
) -> float:
    """Return the bytes of all layers' inputs, one layer's activations, some logits, the buffers and the maps."""
    rest = min(n_tokens, TOKENS_IN_REST) * n_block / d_model
    activations = (n_tokens * 8 * d_model + rest) * 2 * dtype_size
    widened_heads = n_tokens * n_heads * d_head * 4 * 8
    inputs = n_tokens * d_model * dtype_size * (n_layers + 4)
    logits = 3 * 4 * min(LOGITS_AT_ONCE, n_tokens * d_vocab)
    buffers = 3 * min(block_bytes, 4 * n_heads * longest * longest)
    return float(inputs + activations + widened_heads + logits + buffers + 16 * n_layers * n_steps * n_steps)


def _flops_per_second(parts: Anatomy, device: torch.device) -> float:
    """Return the speed of matrix products of the model's width on a device, timed for about 50 ms."""
    width = max(64, parts.d_model)
    a = torch.ones(256, width, dtype=parts.model.dtype, device=device)
    b = torch.ones(width, width, dtype=parts.model.dtype, device=device)
    n, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < 0.05:
        float((a @ b)[0, 0])
        n += 1
    # about half of the time goes to operations other than matrix products
    return float(n * 256 * width * width / spent)
