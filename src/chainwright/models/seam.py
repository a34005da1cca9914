"""The one place where Chainwright enters a forward pass: a registered attention function and mask function.

1. Two attention functions are registered with Transformers, one that delegates to the library's `sdpa` and one that
   delegates to the model's own `eager`, each with the mask function of its delegate: without the mask function,
   left-padded batches and sliding windows would silently give wrong results.
2. `attach` switches a model to the one that fits it, on private copies of its configs (two models built from one
   config object would otherwise switch together), and puts a forward pre-hook on the decoder.
3. The hook passes the `Handlers` down to every layer as a keyword argument. A keyword survives left padding,
   gradient checkpointing, static caches and torch.compile, where a context variable does not.
4. At each layer the attention function runs that layer's handlers, innermost context last; a layer without handlers
   calls the delegate directly.
5. Where the heads of a layer are spread over ranks, its handlers see all of them by their global numbers: what they
   ask for is gathered, and of what they return each rank takes its own heads. Handlers that treat every head by itself
   say so (`Handlers(per_head=True)`) and run on the heads of the rank alone, which `AttentionCall.shards` names.

This module knows nothing of edits, tokens or tasks. Nothing inside Transformers is patched. Attention weights are
computed in `attention_weights`.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import eager_mask, sdpa_mask

from chainwright._errors import BadInput, UnsupportedModel, see
from chainwright.models._probe import widened as widened
from chainwright.models.attention_call import Attend as Attend
from chainwright.models.attention_call import AttentionCall as AttentionCall
from chainwright.models.attention_call import Handler as Handler
from chainwright.models.attention_call import attend_whole, of_all_ranks
from chainwright.models.decoder import causal_lm as causal_lm
from chainwright.models.decoder import decoder
from chainwright.models.sharding import Shards, mark, shards_in

STATE_KEY = "chainwright_handlers"
_OPENING = threading.RLock()  # two threads that open a model at once must see each other
_NAME = {"sdpa": "chainwright_sdpa", "eager": "chainwright_eager"}


Before = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]
"""Called before each forward pass of the decoder, with the decoder, its arguments and its keywords."""


Delegate = Callable[..., tuple[Tensor, Tensor | None]]
"""An attention function of Transformers."""


class Handlers:
    """The handlers of each layer, in the order in which they wrap the delegate.

    Attributes:
        by_layer: Layer index to handlers; a layer that is not in it costs one dictionary look-up.
        before: What is called before each forward pass.
        reads_state: Whether a handler reads Python state that changes with every token, so that it cannot be compiled.
        whole: The layers in which some handler needs all heads of a layer whose heads are spread over ranks.
        delegates: The model's own attention function by the class of the attention module.
    """

    def __init__(
        self,
        by_layer: Mapping[int, tuple[Handler, ...]],
        before: tuple[Before, ...] = (),
        *,
        reads_state: bool = False,
        per_head: bool = False,
    ):
        """Take handlers by layer; `per_head` says that they treat every head by itself, and need none of the others."""
        self.by_layer = dict(by_layer)
        self.before = before
        self.reads_state = reads_state
        self.whole = frozenset() if per_head else frozenset(self.by_layer)
        self.delegates: dict[type[nn.Module], Delegate] = {}

    def joined(self, inner: Handlers) -> Handlers:
        """Return these handlers with those of a later context (`inner`) wrapped around them."""
        layers = sorted({*self.by_layer, *inner.by_layer})
        by_layer = {i: self.by_layer.get(i, ()) + inner.by_layer.get(i, ()) for i in layers}
        reads_state = self.reads_state or inner.reads_state
        joined = Handlers(by_layer, self.before + inner.before, reads_state=reads_state)
        joined.whole = self.whole | inner.whole
        return joined


def _delegate_function(kind: str, module: nn.Module) -> Delegate:
    """Return the attention function that the model would have used, from its own modelling file."""
    eager = _modelling_attribute(module, "eager_attention_forward")
    if kind == "eager":
        if eager is None:
            raise UnsupportedModel(
                f"{type(module).__name__} has no eager attention function to delegate to; load the model with "
                "attn_implementation='sdpa'."
            )
        delegate: Delegate = eager
        return delegate
    interface = _modelling_attribute(module, "ALL_ATTENTION_FUNCTIONS")
    if interface is None:
        interface = AttentionInterface()
    chosen: Delegate = interface.get_interface(kind, eager)
    return chosen


def _modelling_attribute(module: nn.Module, name: str) -> Any:
    # a subclass made elsewhere (parametrisation, FSDP) still needs the functions of the class it derives from
    for cls in type(module).__mro__:
        source = sys.modules.get(cls.__module__)
        if hasattr(source, name):
            return getattr(source, name)
    return None


def _delegate(function: Delegate, call: AttentionCall) -> Tensor:
    z, weights = function(call.module, call.q, call.k, call.v, call.mask, **call.options)
    if call.weights is not None and weights is not None:
        call.weights.append(weights)
    return z


def _seam_attention(
    kind: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    handlers: Handlers | None = options.pop(STATE_KEY, None)
    # a layer that is called outside the decoder's forward (a replay of one block) has no handlers in its keywords
    # and the attention of an image encoder may not be counted as a layer
    layer: int = getattr(module, "layer_idx", -1)
    chain = () if handlers is None else handlers.by_layer.get(layer, ())
    function = None if handlers is None else handlers.delegates.get(type(module))
    function = function or _delegate_function(kind, module)
    # the compiler would start again at each token (see _call_before_uncompiled)
    is_stateful = bool(chain) and handlers is not None and handlers.reads_state
    is_uncompiled = is_stateful and torch.compiler.is_compiling()
    if is_stateful and not is_uncompiled:
        chain = tuple([handler for handler in chain if not _is_idle(handler)])
    if not chain:
        return function(module, query, key, value, attention_mask, **options)
    # Transformers skips a layer without weights when it collects them, which would shift those of all later layers
    weights: list[Tensor] | None = [] if kind == "eager" else None
    shards = shards_in(module, query.shape[1])
    call = AttentionCall(module, layer, query, key, value, attention_mask, options, weights, shards)
    attend: Attend = partial(_delegate, function)
    is_whole = shards is not None and handlers is not None and layer in handlers.whole
    attend = partial(attend_whole, attend) if is_whole else attend
    for handler in chain:
        attend = partial(_wrapped, handler, attend)
    attend = partial(of_all_ranks, attend) if is_whole else attend
    if is_uncompiled:
        attend = torch.compiler.disable(attend)  # type: ignore[no-untyped-call]
    z = attend(call)
    return z, weights[-1] if weights else None


def _is_idle(handler: Handler) -> bool:
    is_idle: Callable[[], bool] | None = getattr(handler, "is_idle", None)
    return is_idle is not None and is_idle()


def _wrapped(handler: Handler, attend: Attend, call: AttentionCall) -> Tensor:
    return handler(call, attend)


def is_plain(attend: Attend) -> bool:
    """Return whether `attend` is the model's own attention, with no handler in between."""
    # then a handler may compute z itself, which saves a second attention
    return isinstance(attend, partial) and attend.func is _delegate


def _register() -> None:
    # a name without a mask function of its own would get no mask at all, neither for padding nor for a window
    for kind, mask in (("sdpa", sdpa_mask), ("eager", eager_mask)):
        AttentionInterface.register(_NAME[kind], partial(_seam_attention, kind))
        AttentionMaskInterface.register(_NAME[kind], mask)


_register()


def _call_before(before: tuple[Before, ...], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for callback in before:
        callback(module, args, kwargs)


# a run's state holds Python values that differ at every token; inside a compiled graph each would be a recompilation
_call_before_uncompiled = torch.compiler.disable(_call_before)  # type: ignore[no-untyped-call]


class SeamHook:
    """The pre-hook of the decoder while at least one context is open.

    Attributes:
        stack: The handlers of the open contexts, outermost first.
        handlers: All of them joined, as passed to the layers.
        delegates: The same as `Handlers.delegates`; kept here since `handlers` is rebuilt with every context.
        closing: Restores the model. It runs when the last context is left, in whatever order they are left.
        thread: The thread that opened the first context; others are refused, since they would see its handlers.
        shards: How the model is spread over ranks, which must then run the same tokens.
    """

    def __init__(self, shards: Shards | None = None) -> None:
        self.thread, self.shards = threading.get_ident(), shards
        self.stack: list[Handlers] = []
        self.handlers = Handlers({})
        self.delegates: dict[type[nn.Module], Delegate] = {}
        self.closing = ExitStack()

    def check_thread(self) -> None:
        """Raise BadInput in any thread but the one that the open contexts belong to."""
        if threading.get_ident() != self.thread:
            raise BadInput(
                "This model is being edited, repaired or read in another thread, whose changes would reach this one; "
                "wait until that block is left, open it in the thread that runs the model, or load the model again."
            )

    def push(self, handlers: Handlers, *, innermost: bool = False) -> None:
        """Wrap `handlers` around what is already attached, or put them inside it."""
        self.set_stack([handlers, *self.stack] if innermost else [*self.stack, handlers])

    def remove(self, handlers: Handlers) -> None:
        """Remove `handlers` from wherever in the stack they are; removing the last ones closes the seam."""
        self.set_stack([other for other in self.stack if other is not handlers])
        if not self.stack:
            self.closing.close()

    def exchange(self, old: Handlers, new: Handlers) -> None:
        """Replace `old` by `new`, at the same place in the stack."""
        self.set_stack([new if handlers is old else handlers for handlers in self.stack])

    def set_stack(self, stack: list[Handlers]) -> None:
        """Attach exactly these handlers, outermost first."""
        # a list that is replaced, not changed: `suspended` puts the old one back
        self.stack = stack
        # joined now rather than in each layer of each pass
        self.handlers = Handlers({})
        for handlers in stack:
            self.handlers = self.handlers.joined(handlers)
        self.handlers.delegates = self.delegates

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Add the handlers to the keywords of the decoder's forward pass."""
        before = self.handlers.before
        if torch.compiler.is_compiling():
            if before:
                _call_before_uncompiled(before, module, args, kwargs)
        else:
            self.check_thread()
            ids = kwargs.get("input_ids", args[0] if args else None)
            if self.shards is not None and isinstance(ids, Tensor):
                self.shards.check_same(ids)
            _call_before(before, module, args, kwargs)
        return args, {**kwargs, STATE_KEY: self.handlers}

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise BadInput("A model cannot be copied or pickled while it is being edited or read; do it outside the block.")


def attached_handlers(model: nn.Module) -> Handlers:
    """Return the handlers that are attached to a model now, of all open contexts together."""
    hook = _open_hook(decoder(model))
    return Handlers({}) if hook is None else hook.handlers


def seam_kind(model: PreTrainedModel) -> str:
    """Return the implementation that the seam delegates to for this model, "sdpa" or "eager"."""
    now = seam_name(model) if model.config._attn_implementation not in _NAME.values() else None
    name = now or model.config._attn_implementation
    return next(kind for kind, registered in _NAME.items() if registered == name)


def _open_hook(base: nn.Module) -> SeamHook | None:
    return next((hook for hook in base._forward_pre_hooks.values() if isinstance(hook, SeamHook)), None)


@contextmanager
def _private_configs(model: PreTrainedModel) -> Iterator[None]:
    """Give every module of `model` a copy of the config it refers to, and the original back at the end."""
    # one memo for all modules, so that modules which share a config share its copy too
    memo: dict[int, Any] = {}
    owners = [m for m in model.modules() if isinstance(getattr(m, "config", None), PretrainedConfig)]
    originals = [m.config for m in owners]
    try:
        for module in owners:
            module.config = copy.deepcopy(module.config, memo)
        yield
    finally:
        for module, config in zip(owners, originals, strict=True):
            module.config = config


def seam_name(model: PreTrainedModel) -> str:
    """Return the registered name of the seam function for the attention implementation that the model uses now.

    Flash and flex attention use other kinds of mask; a model that uses them runs through `sdpa` where it supports
    that, otherwise through `eager`, as long as a context is open.
    """
    now = model.config._attn_implementation
    if now in _NAME:
        return _NAME[now]
    return _NAME["sdpa" if model._supports_sdpa else "eager"]


@contextmanager
def attach(model: nn.Module, handlers: Handlers, *, innermost: bool = False) -> Iterator[None]:
    """Run `handlers` in every forward pass of `model` inside this context.

    Contexts nest: a later one wraps the earlier ones and so reads what they changed. When the last one is left, also
    by an exception, the hook, the attention implementation and the configs are restored. All contexts of a model
    belong to one thread at a time; different models may be used in different threads.

    Args:
        model: A Transformers decoder.
        handlers: What to run at each layer.
        innermost: Put them inside the handlers that are already attached, next to the delegate, instead of around them.

    Raises:
        UnsupportedModel: The model's attention implementation cannot be chosen.
        BadInput: A context of another thread is open on the model.

    Note:
        Under gradient checkpointing the backward pass runs the layers again, so call it inside the context too.
    """
    inner = causal_lm(model)
    with _OPENING:
        hook = _open_hook(decoder(inner)) or _opened(inner)
        hook.check_thread()
        hook.push(handlers, innermost=innermost)
    try:
        yield
    finally:
        with _OPENING:
            hook.remove(handlers)


def _opened(model: PreTrainedModel) -> SeamHook:
    """Switch `model` to the seam and return its hook; if that fails, the model is unchanged."""
    if not model._can_set_attn_implementation():
        raise UnsupportedModel(
            f"{model.config.model_type} models do not dispatch their attention through Transformers' attention "
            "interface, so their heads cannot be read or edited; use a model type that does (llama, qwen2, qwen3, "
            "phi3, mistral, gemma2, gemma3, gpt_oss, gpt2, gpt_neox, deepseek_v3 and most others do) "
            f"{see('unsupported-models')}."
        )
    hook = SeamHook(mark(model))
    with ExitStack() as undo:
        undo.enter_context(_private_configs(model))
        kind = seam_kind(model)
        model.set_attn_implementation(_NAME[kind])
        # looked up once here: the search through modelling files would otherwise run in every layer of every pass
        hook.delegates = {
            type(module): _delegate_function(kind, module)
            for module in model.modules()
            if hasattr(module, "layer_idx") and _modelling_attribute(module, "eager_attention_forward") is not None
        }
        # first among the pre-hooks, so that hooks which record arguments see the handlers in them
        handle = decoder(model).register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
        undo.callback(handle.remove)
        hook.closing = undo.pop_all()
    return hook


@contextmanager
def exchanged(model: nn.Module, attached: Handlers, handlers: Handlers) -> Iterator[None]:
    """Replace attached handlers by `handlers` inside this context, which is much cheaper than attaching them."""
    hook = _open_hook(decoder(model))
    assert hook is not None and any(handlers is attached for handlers in hook.stack)
    hook.exchange(attached, handlers)
    try:
        yield
    finally:
        hook.exchange(handlers, attached)


@contextmanager
def suspended(model: nn.Module) -> Iterator[None]:
    """Run `model` as if nothing were attached inside this context, for passes that only measure something."""
    hook = _open_hook(decoder(model))
    if hook is None:
        yield
        return
    stack = hook.stack
    hook.set_stack([Handlers({})])  # not an empty list, which would mean that every context has been left
    try:
        yield
    finally:
        hook.set_stack(stack)
