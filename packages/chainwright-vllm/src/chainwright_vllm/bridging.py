"""StepFlow beside vLLM's attention kernel on a CPU (experimental): its output is changed where a repair asks for it.

The kernel packs keys in its own way and gives out no log-sum-exps, so the keys and values of requests with a StepFlow
are kept a second time, in the layers in which it acts. They must be complete: such requests read nothing from the
prefix cache, and one that was preempted starts over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chainwright_vllm.patching import wrap
from chainwright_vllm.stepflow import StepFlow, averaged, bounds, bridged, reader

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_WEIGHTS_AT_ONCE = 2**22


def install() -> None:
    """Wrap the attention of vLLM's CPU backend, where it is the one that runs."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

    wrap(CPUAttentionBackendImpl, "forward", _forward)


class Flowing(NamedTuple):
    """Tokens of a request with a StepFlow in a pass.

    Attributes:
        req_id: The request.
        start: Its first token in the pass.
        end: One past its last.
        n_computed: Tokens that were computed in earlier passes.
        places: Chainwright's places of its tokens in the pass.
        flow: What it asks for.
    """

    req_id: str
    start: int
    end: int
    n_computed: int
    places: Sequence[Any]
    flow: StepFlow


class Flows:
    """The StepFlows of one model runner.

    Attributes:
        refusal: Why this runner cannot have any; None if it can.
    """

    def __init__(self, runner: Any):
        self.refusal: str | None = None
        self._runner = runner
        self._now: list[Flowing] = []
        self._rows: dict[str, Any] = {}  # chainwright's rows of live requests
        self._kept: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
        self._fired: set[tuple[str, int]] = set()
        self._lost: set[str] = set()
        found = 0
        for name, module in runner.compilation_config.static_forward_context.items():
            place, impl = _LAYER.search(name), getattr(module, "impl", None)
            if place is not None and impl is not None and (why := _unfit(impl)) is None:
                impl.chainwright = self, int(place[1])
                found += 1
            elif place is not None and impl is not None:
                self.refusal = f"Chainwright's StepFlow cannot follow the attention of layer {place[1]}: {why}."
        if not hasattr(runner, "requests"):
            self.refusal = "Chainwright's StepFlow runs with vLLM's first model runner only."
        elif found != runner.model_config.get_total_num_hidden_layers() and self.refusal is None:
            self.refusal = f"Chainwright's StepFlow found the attention of {found} layers only."

    def forget(self, req_ids: Iterable[str]) -> None:
        """Drop what is kept of finished requests."""
        for req_id in req_ids:
            self._rows.pop(req_id, None)
            self._kept.pop(req_id, None)

    def flowing(self, row: Any, n_prompt: int, flow: StepFlow) -> Flowing:
        """Return the places of a request's tokens in the coming pass."""
        state, n_known = self._runner.requests[row.req_id], row.n_computed + row.end - row.start
        if row.req_id not in self._rows:
            config = self._runner.model_config
            how = reader(config.model, config.tokenizer, flow.style, flow.min_chars)
            self._rows[row.req_id] = how.row(n_prompt)
        live = self._rows[row.req_id]
        ids = [*state.prompt_token_ids, *state.output_token_ids]
        live.extend(ids[len(live.ids) : n_known])
        return Flowing(row.req_id, row.start, row.end, row.n_computed, live.places[row.n_computed : n_known], flow)

    def begin(self, flowing: Sequence[Flowing]) -> None:
        """Say what the coming pass holds."""
        self._now, self._fired, self._lost = list(flowing), set(), set()

    def unfired(self, req_id: str, flow: StepFlow) -> list[int]:
        """Return the layers in which a request's StepFlow has not acted in this pass, or lacked keys."""
        return [layer for layer in sorted(flow.layers) if (req_id, layer) not in self._fired or req_id in self._lost]

    def act(self, layer: int, impl: Any, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> None:
        """Change a layer's output `[tokens, heads * d]` in place."""
        z = output.view(len(output), impl.num_heads, -1)
        for one in self._now:
            if layer not in one.flow.layers:
                continue
            here = slice(one.start, one.end)
            keys, values = self._extended(one, layer, key[here], value[here])
            if layer in one.flow.floors:
                floors = torch.tensor(one.flow.floors[layer])
                _bridge(one, impl, query[here], keys, values, floors, z[here])
            if layer in one.flow.momentum:
                _inject(one, values, z[here])
            self._fired.add((one.req_id, layer))

    def _extended(self, one: Flowing, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return all keys and values `[positions, kv heads, d]` of a request so far."""
        kept = self._kept.setdefault(one.req_id, {})
        if one.n_computed:
            old = kept.get(layer)
            if old is None or len(old[0]) < one.n_computed:
                self._lost.add(one.req_id)
                return key, value
            key, value = (torch.cat([a[: one.n_computed], b]) for a, b in zip(old, (key, value), strict=True))
        else:
            key, value = key.clone(), value.clone()
        kept[layer] = key, value
        return key, value


def _bridge(one: Flowing, impl: Any, query: Tensor, keys: Tensor, values: Tensor, floors: Tensor, z: Tensor) -> None:
    if len(keys) != one.n_computed + len(query):
        return  # keys are missing, which is reported
    n_rep = query.shape[1] // keys.shape[1]
    at = [bounds(place, one.n_computed + i) for i, place in enumerate(one.places)]
    asking = [i for i, where in enumerate(at) if where.end]
    size = max(1, _WEIGHTS_AT_ONCE // (len(keys) * query.shape[1]))
    for part in (asking[i : i + size] for i in range(0, len(asking), size)):
        k, v = (t.float().repeat_interleave(n_rep, 1) for t in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", query[part].float(), k) * impl.scale
        last = torch.tensor(part) + one.n_computed
        is_ahead = torch.arange(len(keys)) > last[:, None]
        weights = scores.masked_fill(is_ahead, float("-inf")).softmax(-1)
        added = bridged(weights, [at[i] for i in part], floors)
        z[part] += torch.einsum("hqk,khd->qhd", added, v).to(z.dtype)


def _inject(one: Flowing, values: Tensor, z: Tensor) -> None:
    for i, place in enumerate(one.places):
        if (span := averaged(place, one.flow)) and span.stop <= len(values):
            mean = values[span.start : span.stop].float().mean(0)  # (kv head, d)
            z[i] += (one.flow.alpha * mean).repeat_interleave(z.shape[1] // len(mean), dim=0).to(z.dtype)


def _unfit(impl: Any) -> str | None:
    if type(impl).__name__ != "CPUAttentionBackendImpl":
        return f"it is a {type(impl).__name__}, and only that of the CPU backend is known"
    if impl.sliding_window != -1 or impl.sinks is not None:
        return "it has a sliding window or sinks"
    if impl.alibi_slopes is not None or impl.logits_soft_cap:
        return "its scores have a bias or a cap"
    if impl.is_fp8_kv_cache or impl.kv_sharing_target_layer_name is not None:
        return "its keys are rounded, or those of another layer"
    return None


def _forward(own: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, layer: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = own(self, layer, query, key, value, *args, **kwargs)
        flows, index = getattr(self, "chainwright", (None, 0))
        if flows is not None:
            flows.act(index, self, query, key, value, out)
        return out

    return forward
