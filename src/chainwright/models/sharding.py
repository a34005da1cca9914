"""Models whose weights are spread over several processes (tensor parallelism), and what their ranks exchange.

Under Transformers' tensor parallelism (`tp_plan="auto"`) every rank runs the same program. The residual stream, the
norms and the logits are the same in all of them; a rank computes some of the heads and some of the MLP's neurons, and
the outputs of both are summed over the ranks. So whatever is read or changed at the residual stream needs nothing,
and what is read or changed at the heads needs to know which of them this rank has: `Shards`.

Gradients follow Megatron-LM's pair of operations: `whole` gathers and its gradient is cut, `own` cuts and its gradient
is gathered. Both hold because everything between the two is computed alike in every rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from chainwright._errors import BadInput, UnsupportedModel

# linear modules that make queries, keys or values; spread "colwise", each rank has whole heads of its own
_HEAD_MAKERS = ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "q_b_proj", "kv_b_proj")
_OWN = "_chainwright_shards"


@dataclass(frozen=True)
class Shards:
    """How something with one entry per head (or neuron) is spread over ranks: evenly, in the order of the ranks.

    Attributes:
        group: The ranks.
        rank: This rank's number among them.
        n_ranks: How many there are.
    """

    group: Any
    rank: int
    n_ranks: int

    def slice_of(self, n_whole: int) -> slice:
        """Return which of `n_whole` entries this rank has."""
        n_own = n_whole // self.n_ranks
        return slice(self.rank * n_own, (self.rank + 1) * n_own)

    def whole(self, part: Tensor, dim: int) -> Tensor:
        """Return the parts of all ranks side by side; every rank must call it."""
        if torch.is_grad_enabled() and part.requires_grad:
            return _Whole.apply(part, dim, self)  # type: ignore[no-any-return, no-untyped-call]
        return self.gather(part, dim)

    def own(self, whole: Tensor, dim: int) -> Tensor:
        """Return this rank's part of a tensor that is the same in every rank."""
        if torch.is_grad_enabled() and whole.requires_grad:
            return _Own.apply(whole, dim, self)  # type: ignore[no-any-return, no-untyped-call]
        return self.cut(whole, dim)

    def total(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks; every rank must call it."""
        total = value.clone()
        dist.all_reduce(total, group=self.group)
        return total

    def check_same(self, ids: Tensor) -> None:
        """Raise BadInput in every rank unless all of them run the same tokens."""
        flat = ids.detach().reshape(-1).long()
        # odd factors, so that no exchange of tokens leaves the sum as it is; it may wrap around
        factors = 2 * torch.arange(len(flat), device=flat.device) + 0x9E3779B1
        mine = torch.stack([flat.new_tensor(ids.shape[-1]), (flat * factors).sum()])
        every = [torch.empty_like(mine) for _ in range(self.n_ranks)]
        dist.all_gather(every, mine, group=self.group)
        if any(not torch.equal(one, every[0]) for one in every):
            raise BadInput(
                f"The {self.n_ranks} ranks that share this model run different tokens, so that none would get the "
                "results of one process; make the same calls in every rank, with the same inputs and seeds, on "
                "processors of one kind."
            )

    def gather(self, part: Tensor, dim: int) -> Tensor:
        """Return what `whole` returns, without a gradient."""
        part = part.detach().contiguous()
        parts = [torch.empty_like(part) for _ in range(self.n_ranks)]
        dist.all_gather(parts, part, group=self.group)
        return torch.cat(parts, dim)

    def cut(self, whole: Tensor, dim: int) -> Tensor:
        """Return what `own` returns, without a gradient of its own."""
        here = self.slice_of(whole.shape[dim])
        return whole.narrow(dim, here.start, here.stop - here.start).contiguous()

    def __deepcopy__(self, memo: Any) -> Shards:
        """Return itself: a group of processes has no copy."""
        return self


class _Whole(torch.autograd.Function):
    """Gathers forwards, cuts backwards."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, dim: int, shards: Shards) -> Tensor:
        ctx.dim, ctx.shards = dim, shards
        return shards.gather(part, dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.shards.cut(gradient, ctx.dim), None, None


class _Own(torch.autograd.Function):
    """Cuts forwards, gathers backwards."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, dim: int, shards: Shards) -> Tensor:
        ctx.dim, ctx.shards = dim, shards
        return shards.cut(whole, dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.shards.gather(gradient, ctx.dim), None, None


def is_spread(tensor: Tensor) -> bool:
    """Return whether a tensor lies in parts in several processes."""
    if not dist.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def present(tensor: Tensor) -> Tensor:
    """Return a tensor with the parts of all ranks, itself if it is not spread; every rank must call it."""
    whole: Tensor = tensor.full_tensor() if is_spread(tensor) else tensor  # type: ignore[attr-defined]
    return whole


@contextmanager
def whole_weights(module: nn.Module) -> Iterator[None]:
    """Give a module all of its weights inside this context, and let every rank compute all of it; every rank calls it.

    It takes the memory of the module's weights on one device; a module that is not spread is left as it is.
    """
    spread = [(m, [n for n, w in m.named_parameters(recurse=False) if is_spread(w)]) for m in module.modules()]
    if not any(names for _, names in spread):
        yield
        return
    before: list[tuple[nn.Module, str, nn.Parameter]] = []
    forwards = {m: m.__dict__.pop("forward") for m in module.modules() if "forward" in m.__dict__}
    try:
        for part, names in spread:
            for name in names:
                weight = part._parameters[name]
                assert weight is not None
                before.append((part, name, weight))
                part._parameters[name] = nn.Parameter(present(weight.detach()), requires_grad=weight.requires_grad)
        yield
    finally:
        for part, name, weight in before:
            part._parameters[name] = weight
        for part, forward in forwards.items():
            part.__dict__["forward"] = forward


def is_sharded(model: nn.Module) -> bool:
    """Return whether a weight of the model lies in parts in several processes."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    return any(is_spread(weight) for weight in model.parameters())


def shards_of(model: PreTrainedModel) -> Shards | None:
    """Return how a model is spread over ranks by tensor parallelism; None if it is not.

    Raises:
        UnsupportedModel: It is spread in another way (FSDP, pipeline or expert parallelism, by hand).
        BadInput: Its heads do not divide among the ranks.
    """
    if not is_sharded(model):
        return None
    n_ranks = int(getattr(model, "_tp_size", None) or 1)
    if n_ranks != dist.get_world_size() or n_ranks == 1 or _has_expert_plan(model):
        raise UnsupportedModel(
            f"This {type(model).__name__} is spread over {dist.get_world_size()} processes, and not by tensor "
            "parallelism over all of them (FSDP, pipeline or expert parallelism, or by hand), so that its heads "
            "cannot be named; load it with tp_plan='auto', or in one process."
        )
    check_heads(model.config, model.tp_plan, n_ranks)
    return Shards(None, dist.get_rank(), n_ranks)


def _has_expert_plan(model: PreTrainedModel) -> bool:
    return int(getattr(getattr(model.config, "distributed_config", None), "ep_size", None) or 1) > 1


def check_heads(config: Any, plan: dict[str, str], n_ranks: int) -> None:
    """Raise BadInput unless the heads that a plan spreads divide among the ranks.

    Transformers itself would fail in the first pass, or cut a head in two.
    """
    if not _spreads_heads(plan):
        return
    text = config.get_text_config()
    n_heads = int(text.num_attention_heads)
    kinds = {"heads": n_heads, "key/value heads": int(getattr(text, "num_key_value_heads", None) or n_heads)}
    for kind, n in kinds.items():
        if n_ranks > n:
            raise BadInput(
                f"{n_ranks} ranks are more than the {n} {kind} of this {config.model_type} model, and each rank needs "
                f"at least one; use at most {max(_allowed(kinds))} ranks."
            )
        if n % n_ranks:
            raise BadInput(
                f"The {n} {kind} of this {config.model_type} model do not divide among {n_ranks} ranks; use "
                f"{' or '.join(map(str, _allowed(kinds)))}."
            )


def _spreads_heads(plan: dict[str, str]) -> bool:
    return any(style == "colwise" and name.rsplit(".", 1)[-1] in _HEAD_MAKERS for name, style in plan.items())


def _allowed(kinds: dict[str, int]) -> list[int]:
    """Return the numbers of ranks among which heads of all kinds divide."""
    return [n for n in range(1, min(kinds.values()) + 1) if all(total % n == 0 for total in kinds.values())]


def mark(model: PreTrainedModel) -> Shards | None:
    """Note in each attention module how its heads are spread, for `shards_in`; return how the model is spread."""
    shards = shards_of(model)
    if shards is not None and not hasattr(model, _OWN):
        for module in model.modules():
            if hasattr(module, "layer_idx"):
                module.__dict__[_OWN] = (shards, int(model.config.get_text_config().num_attention_heads))
        model.__dict__[_OWN] = shards
    return shards


@contextmanager
def sinks_of_all_ranks(module: nn.Module, n_heads: int) -> Iterator[None]:
    """Give an attention module the sinks of all `n_heads` heads inside this context, where ranks have their own.

    Some attention functions read them from the module (granite_swa) rather than from their arguments.
    """
    shards, _ = module.__dict__[_OWN]
    sinks = module._parameters.get("sinks")
    own = None if sinks is None else sinks.to_local() if is_spread(sinks) else sinks  # type: ignore[attr-defined]
    if own is None or own.numel() == n_heads:
        yield
        return
    module._parameters["sinks"] = nn.Parameter(shards.gather(own, 0), requires_grad=False)
    try:
        yield
    finally:
        module._parameters["sinks"] = sinks


def shards_in(module: nn.Module, n_heads: int) -> Shards | None:
    """Return how the heads of an attention module are spread, of which `n_heads` arrived; None if they all did.

    Some plans compute all heads in every rank (phi3, olmo2), whatever is spread otherwise.
    """
    shards, n_whole = module.__dict__.get(_OWN, (None, 0))
    if shards is None or n_heads == n_whole:
        return None
    if n_heads * shards.n_ranks != n_whole:
        raise UnsupportedModel(
            f"{type(module).__name__} attends with {n_heads} heads in each of {shards.n_ranks} ranks, which are not "
            f"the {n_whole} of its config, so its heads cannot be named; load the model in one process."
        )
    return shards  # type: ignore[no-any-return]
