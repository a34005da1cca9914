"""Query components: what activated the neurons that write an answer, by layer and position.

1. A traced neuron has a coefficient (its activation, or its entry of z). With the norms held at their scales, it is a
   sum over what earlier layers wrote: `coefficient = sum u . c` with one vector u per position. For an attention neuron
   (h, j) at position p, `u_i = A[p, i] * W_V[h, j] * norm weight / rms` at every i <= p; for an FFN neuron at p, it is
   the gradient of its activation times norm weight / rms, at p alone.
2. Its weight (the log-probability that it adds) is distributed over the cells (position, layer, attention or FFN) in
   proportion to those terms.
3. The cells with most credit are decomposed into neurons, and these are traced in turn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from chainwright.diagnose.flow._read_pass import LayerRead, attn_write, with_hidden
from chainwright.models._probe import given_tensor
from chainwright.models.anatomy import Anatomy, evaluating
from chainwright.models.residual import norm_at_scale
from chainwright.models.seam import STATE_KEY, Attend, AttentionCall, Handlers
from chainwright.models.writers import (
    FeedForward,
    NeuronRun,
    attn_writes,
    mlp_writes,
    plain_experts,
    pull_back,
    run_neurons,
)

ATTN, FFN = 0, 1


class Neuron(NamedTuple):
    """An attention neuron (group = head) or an FFN neuron (group = number of its output matrix) at a position."""

    position: int
    layer: int
    kind: int
    group: int
    unit: int


@dataclass(frozen=True)
class Traced:
    """The result of tracing back.

    Attributes:
        flow: Credit of each cell at each step, `[S, T, L, 2]`, nats.
        neurons: The query neurons with their credit, highest first.
    """

    flow: Tensor
    neurons: list[tuple[Neuron, float]]


@dataclass
class Tracer:
    """Distributes the credit of neurons over the components that activated them."""

    parts: Anatomy
    ffs: tuple[FeedForward, ...]
    reads: list[LayerRead]
    n_cells: int
    n_per_cell: int

    def trace(self, value_neurons: Sequence[tuple[Neuron, float]], depth: int) -> Traced:
        """Return the flow after `depth` steps; step 0 holds the value neurons themselves."""
        shape = (self.reads[0].z.shape[0], self.parts.n_layers, 2)
        steps, credits = [torch.zeros(shape)], defaultdict[Neuron, float](float)
        for neuron, weight in value_neurons:
            steps[0][neuron.position, neuron.layer, neuron.kind] += weight
        frontier = list(value_neurons)
        for _ in range(depth):
            pulls = self._pulls(frontier)
            cells = self._cells(pulls)
            steps.append(cells.cpu().float())
            frontier = self._opened(cells, pulls)
            del pulls  # frees the memory before the next ones are allocated
            for neuron, credit in frontier:
                credits[neuron] += credit
        ranked = sorted(credits.items(), key=lambda item: -item[1])
        return Traced(torch.stack(steps), ranked)

    def _pulls(self, neurons: Sequence[tuple[Neuron, float]]) -> Tensor:
        """Return for each cell the vector whose inner product with the cell's write is its credit, `[L, 2, T, D]`."""
        first = self.reads[0].pre
        pulls = first.new_zeros(self.parts.n_layers, 2, *first.shape)
        for (layer, kind), members in _by_layer(neurons).items():
            if kind == ATTN:
                pulls[:layer] += self._attn_pull(layer, members)
            else:
                for position, pull in self._ffn_pulls(layer, members):
                    pulls[:layer, :, position] += pull
                    if self.parts.layers[layer].mid_reader is not None:
                        pulls[layer, ATTN, position] += pull
        return pulls

    def _attn_pull(self, layer: int, members: Sequence[tuple[Neuron, float]]) -> Tensor:
        """Return the sum of the vectors u of some attention neurons in one layer, `[T, D]`."""
        read = self.reads[layer]
        rows = _value_rows(self.parts, layer, read)
        patterns = {n.position: read.pattern(n.position) for n, _ in members}
        direction = torch.zeros_like(read.attn_given)
        for n, weight in members:
            ratio = weight / _nonzero(float(read.z[n.position, n.group, n.unit]))
            row = rows(n.group, n.unit)  # [T, D]
            direction += ratio * patterns[n.position][n.group, :, None].to(row.dtype) * row
        return pull_back(self.ffs[layer].attn_norm, read.pre, direction)

    @torch.enable_grad()
    def _ffn_pulls(self, layer: int, members: Sequence[tuple[Neuron, float]]) -> list[tuple[int, Tensor]]:
        """Return, for each position, the sum of the vectors u of some FFN neurons there, `[D]`."""
        read, out = self.reads[layer], []
        for position in sorted({n.position for n, _ in members}):
            run = self.neurons_at(layer, position)
            total = torch.zeros((), dtype=run.given.dtype, device=run.given.device)
            for n, weight in members:
                if n.position == position:
                    activation = run.groups[n.group].activation[n.unit]
                    total = total + activation * (weight / _nonzero(float(activation.detach())))
            (slope,) = torch.autograd.grad(total, run.given)
            stream = read.pre if self.parts.layers[layer].mid_reader is None else read.mid
            pull = pull_back(self.ffs[layer].mlp_norm, stream[position][None], slope[None])
            out.append((position, pull[0]))
        return out

    def neurons_at(self, layer: int, position: int) -> NeuronRun:
        """Return the neurons of a layer's MLP at one position, by running it there."""
        with plain_experts(self.parts):
            return run_neurons(self.parts, self.ffs[layer], self.reads[layer].mlp_given[position])

    def _cells(self, pulls: Tensor) -> Tensor:
        """Return the credit of each cell, `[T, L, 2]`."""
        # layer by layer, so that the writes of all layers are never in memory together
        cells = [
            torch.stack(
                [(pull[0] * attn_write(self.parts, i, r)).sum(-1), (pull[1] * (r.post - r.mid)).sum(-1)], dim=-1
            )
            for i, (pull, r) in enumerate(zip(pulls, self.reads, strict=True))
        ]
        return torch.stack(cells, dim=1)

    def _opened(self, cells: Tensor, pulls: Tensor) -> list[tuple[Neuron, float]]:
        """Return the top neurons of the top cells, with their credit."""
        best = cells.flatten().topk(min(self.n_cells, cells.numel()))
        out = []
        for credit, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            if credit > 0:
                position, layer, kind = (int(k) for k in torch.unravel_index(torch.tensor(index), cells.shape))
                out += self._in_cell(position, layer, kind, pulls[layer, kind, position])
        return out

    def _in_cell(self, position: int, layer: int, kind: int, pull: Tensor) -> list[tuple[Neuron, float]]:
        credits: list[tuple[Neuron, float]] = []
        if kind == ATTN:
            z = self.reads[layer].z[position]
            writes = attn_writes(self.parts.layers[layer], z, torch.arange(z.numel(), device=z.device))
            for credit, k in _best(writes @ pull, self.n_per_cell):
                credits.append((Neuron(position, layer, ATTN, *divmod(k, z.shape[1])), credit))
            return credits
        run = self.neurons_at(layer, position)
        for g, group in enumerate(run.groups):
            every = torch.arange(len(group.activation), device=pull.device)
            writes = mlp_writes(self.ffs[layer], group, run.out, every)
            for credit, k in _best(writes @ pull, self.n_per_cell):
                credits.append((Neuron(position, layer, FFN, g, k), credit))
        return sorted(credits, key=lambda item: -item[1])[: self.n_per_cell]


def _best(credits: Tensor, n: int) -> list[tuple[float, int]]:
    top = credits.topk(min(n, len(credits)))
    return [(c, k) for c, k in zip(top.values.tolist(), top.indices.tolist(), strict=True) if c > 0]


def _by_layer(neurons: Sequence[tuple[Neuron, float]]) -> dict[tuple[int, int], list[tuple[Neuron, float]]]:
    groups = defaultdict[tuple[int, int], list[tuple[Neuron, float]]](list)
    for neuron, weight in neurons:
        groups[neuron.layer, neuron.kind].append((neuron, weight))
    return groups


def _nonzero(value: float) -> float:
    return value if abs(value) > 1e-12 else 1e-12


class _Enough(Exception):
    """Raised to leave an attention module once its values are known."""


@contextmanager
def _norms_held(attention: nn.Module) -> Iterator[None]:
    """Hold the norms inside an attention module (such as that of a compressed key/value) at their current scales."""
    busy: list[nn.Module] = []

    def hold(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if busy or not args or not isinstance(output, Tensor) or output.shape != args[0].shape:
            return None
        busy.append(module)
        try:
            return norm_at_scale(module, args[0], args[0].detach())
        finally:
            busy.pop()

    with ExitStack() as stack:
        for module in attention.modules():
            sizes = [weight.dim() for weight in module.parameters()]
            if sizes and max(sizes) == 1:
                stack.callback(module.register_forward_hook(hold).remove)
        yield


def _value_rows(parts: Anatomy, layer: int, read: LayerRead) -> Callable[[int, int], Tensor]:
    """Return a function (head, index) -> gradient of that entry of the values with respect to the attention's input."""
    seen: list[AttentionCall] = []
    leaf = read.attn_given.detach()[None].clone().requires_grad_(True)

    def stop(call: AttentionCall, attend: Attend) -> Tensor:
        seen.append(call)
        raise _Enough

    def put(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = given_tensor(args, kwargs)
        assert given is not None
        return with_hidden(args, kwargs, leaf.reshape(given.shape))

    attention = parts.layers[layer].attention
    handlers = Handlers({int(attention.layer_idx): (stop,)})  # type: ignore[arg-type]
    with ExitStack() as stack:
        stack.callback(attention.register_forward_pre_hook(put, with_kwargs=True).remove)
        stack.enter_context(_norms_held(attention))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(evaluating(parts.layers[layer].block))
        stack.enter_context(suppress(_Enough))
        parts.layers[layer].block(*read.args, **{**read.kwargs, STATE_KEY: handlers})
    n_rep = seen[0].q.shape[1] // seen[0].v.shape[1]
    known: dict[tuple[int, int], Tensor] = {}

    @torch.enable_grad()
    def rows(head: int, index: int) -> Tensor:
        key = (head // n_rep, index)  # query heads of one group share their values
        if key not in known:
            (slope,) = torch.autograd.grad(seen[0].v[0, key[0], :, index].sum(), leaf, retain_graph=True)
            known[key] = slope[0]
        return known[key]

    return rows
