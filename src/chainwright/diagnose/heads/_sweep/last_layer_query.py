"""Head outputs of the last layer at the last position, without computing the other queries.

Only the last query of the last layer matters for the logits. So its attention gets the keys and values of all
positions but one query, and the linear modules that serve the queries alone run at the last position only. Which
modules those are is tested once on random input: a module qualifies if it may return the last position's output at
every position without changing the last query's z.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from chainwright.diagnose.heads._sweep.segments import Join, Keys
from chainwright.models.anatomy import Layer
from chainwright.models.layer_halves import returning
from chainwright.models.seam import STATE_KEY, Attend, AttentionCall, Handler, Handlers


class _Enough(Exception):
    """Raised to leave a layer early, with what was read in it."""

    def __init__(self, *read: Tensor):
        super().__init__()
        self.read = read


class LastQuery:
    """Runs the attention of the last layer for the last query only."""

    def __init__(self, layer: Layer):
        self.layer = layer
        self.makes_queries: list[nn.Module] | None = None
        self.n_short = 0  # how often a module ran at the last position only

    def z(self, args: tuple[Any, ...], kwargs: dict[str, Any], join: Join | None = None) -> Tensor:
        """Return the head outputs at the last position, `[R, 1, H, d]`; the rest of the layer does not run.

        Args:
            args: The layer's arguments.
            kwargs: Its keywords.
            join: Adds keys and values that precede those of the arguments, if there are some.
        """
        if self.makes_queries is None:
            self.makes_queries = self._query_modules(args, kwargs, join)
        return self._shortened(self.makes_queries, args, kwargs, join)

    def keys(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Keys:
        """Return the keys and values that the layer attends over; it does not attend, and nothing after it runs."""

        def read(call: AttentionCall, attend: Attend) -> Tensor:
            raise _Enough(call.k, call.v)

        return Keys(*self._left_early(args, kwargs, read))

    def _query_modules(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], join: Join | None = None
    ) -> list[nn.Module]:
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        if hidden.shape[1] < 2:
            return []
        noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0)).to(hidden)
        args, kwargs = ((noise, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": noise})
        want = self._shortened([], args, kwargs, join)
        linear = [m for m in self.layer.attention.modules() if type(m) is nn.Linear and m is not self.layer.out_proj]
        close = 1e-5 * want.abs().max()
        query_modules: list[nn.Module] = []
        for module in linear:
            self.n_short = 0
            if "forward" not in module.__dict__:
                off = (self._shortened([module], args, kwargs, join) - want).abs().max()
                query_modules += [module] if self.n_short and bool(off <= close) else []
        return query_modules

    def _shortened(
        self, modules: list[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any], join: Join | None
    ) -> Tensor:
        """Return z of the last query, with some modules run at the last position only."""

        def attend_once(call: AttentionCall, attend: Attend) -> Tensor:
            call = call if join is None else join(call)
            mask = call.mask if call.mask is None else call.mask[:, :, -1:]
            raise _Enough(attend(replace(call, q=call.q[:, :, -1:], mask=mask)))

        with ExitStack() as stack:
            for module in modules:
                stack.enter_context(returning(module, self._last_everywhere(module)))
            (z,) = self._left_early(args, kwargs, attend_once)
        return z

    def _left_early(self, args: tuple[Any, ...], kwargs: dict[str, Any], handler: Handler) -> tuple[Tensor, ...]:
        """Return what the handler raises `_Enough` with."""
        handlers = Handlers({int(self.layer.attention.layer_idx): (handler,)})  # type: ignore[arg-type]
        try:
            self.layer.block(*args, **{**kwargs, STATE_KEY: handlers})
        except _Enough as enough:
            return enough.read
        raise AssertionError("the layer did not call the seam")

    def _last_everywhere(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        forward = module.forward

        def last(given: Tensor) -> Tensor:
            if given.dim() != 3:  # another layout: the second axis need not be the positions
                return forward(given)  # type: ignore[no-any-return]
            self.n_short += 1
            out: Tensor = forward(given[:, -1:])
            return out.expand(-1, given.shape[1], -1)

        return last
