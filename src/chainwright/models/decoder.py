"""The decoder inside a model: the module between the token ids and the unembedding, where every method enters.

No attribute is trusted to name it. Llama 4's `base_model` is the whole model, OPT calls the module inside its
`base_model`, and PEFT's prompt tuning puts tokens in front of what the module inside it sees. A method that
entered at such a place would measure another model without a word.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from transformers import PreTrainedModel

from chainwright._errors import BadInput, UnsupportedModel
from chainwright.models._probe import close, evaluating, first_tensor, fitted_factor, probe_ids
from chainwright.models.sharding import mark


class _Place(NamedTuple):
    """Where a model's decoder is, and whether the model's logits follow from it."""

    name: str
    module: weakref.ref[nn.Module]
    is_exact: bool


_FINDING = threading.RLock()
_DECODERS: weakref.WeakKeyDictionary[nn.Module, _Place] = weakref.WeakKeyDictionary()
_CHECKED: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """Return the Transformers model inside a compiled or PEFT-wrapped one.

    Raises:
        UnsupportedModel: `model` holds no Transformers model, or PEFT feeds it more than the tokens.
    """
    # hooks must go on the innermost model: wrappers call it with their own keywords
    inner: Any = model
    while not isinstance(inner, PreTrainedModel):
        if hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod
        elif hasattr(inner, "get_base_model"):
            _check_peft(inner)
            inner = inner.get_base_model()
        else:
            raise UnsupportedModel(
                f"{type(model).__name__} is not a Transformers model (tried: itself, torch.compile's original, PEFT's "
                "base model); load it with chainwright.load_model or AutoModelForCausalLM."
            )
    return inner


def _check_peft(wrapper: Any) -> None:
    """Refuse the kinds of PEFT whose wrapper gives the model inside it more than the tokens."""
    configs = getattr(wrapper, "peft_config", {})
    active: Any = getattr(wrapper, "active_adapters", None) or getattr(wrapper, "active_adapter", ())
    for name in [active] if isinstance(active, str) else active:
        config = configs.get(name)
        kind = getattr(getattr(config, "peft_type", None), "value", "")
        if getattr(config, "is_prompt_learning", False):
            raise UnsupportedModel(
                f"Adapter {name!r} of kind {kind} adds virtual tokens in PEFT's wrapper, which the model inside it "
                "does not see, so scores and knockouts would measure the base model; use an adapter inside the layers "
                "(such as LoRA), or pass model.get_base_model() to study the base model."
            )
        if getattr(config, "alora_invocation_tokens", None):
            raise UnsupportedModel(
                f"Adapter {name!r} is an activated LoRA, which PEFT's wrapper switches on at its invocation tokens and "
                "the model inside it does not, so scores and knockouts would measure the base model; use a plain LoRA."
            )


def unchecked_wrapper(model: nn.Module, inner: PreTrainedModel) -> nn.Module | None:
    """Return the PEFT wrapper around `inner` that `check_wrapper` has to run on; None where it has, or there is none.

    What torch.compile returns computes what it wraps, by definition, and is not run, since that would compile it.
    """
    outer: Any = model
    while hasattr(outer, "_orig_mod"):
        outer = outer._orig_mod
    return None if outer is inner or _CHECKED.get(outer) == _adapters(outer) else outer


def check_wrapper(wrapper: nn.Module, inner: PreTrainedModel) -> None:
    """Check that a PEFT wrapper gives the logits of the model inside it; once per wrapper and active adapters.

    The rule: for two rows of two tokens both give logits of one shape, whose difference has at most a thousandth of
    their norm (a twentieth in half precision).

    Raises:
        UnsupportedModel: The logits differ.
    """
    ids = probe_ids(inner)
    with evaluating(wrapper), torch.no_grad():
        seen, own = (each(input_ids=ids, use_cache=False).logits for each in (wrapper, inner))
    if seen.shape != own.shape or not close(seen, own):
        raise UnsupportedModel(
            f"{type(wrapper).__name__} and the {type(inner).__name__} inside it give different logits for the same "
            "tokens, so scores and knockouts, which run the inner one, would measure another model; merge the adapter "
            "into the weights (merge_and_unload), or pass the inner model."
        )
    _CHECKED[wrapper] = _adapters(wrapper)


def _adapters(wrapper: nn.Module) -> str:
    return repr((getattr(wrapper, "active_adapters", None), getattr(wrapper, "active_adapter", None)))


def decoder(model: nn.Module) -> nn.Module:
    """Return the decoder of a model, found once per model by watching it run.

    The rule, for two rows of two tokens:

    1. Candidates are the modules inside the model that hold a list of layers and are given the token ids.
    2. The outermost of them counts whose hidden states are what the unembedding is given, up to a constant factor, and
       which returns the same hidden states when it is called by itself on the same ids, so that the same logits follow
       from it as from the whole model. The tolerance is that of `check_wrapper`.
    3. If there is none, it is the outermost candidate, and `check_decoder` refuses the model.

    The result is kept for as long as the model lives, and looked for again when the module is exchanged.

    Raises:
        UnsupportedModel: The model has no unembedding, cannot be run on token ids alone, has no candidate, or is
            spread over several processes in another way than by tensor parallelism.
        BadInput: Its heads do not divide among the ranks.
    """
    return _place(causal_lm(model))[1]


def check_decoder(model: PreTrainedModel) -> None:
    """Raise UnsupportedModel unless the model's logits follow from what its decoder returns; see `decoder`."""
    place, module = _place(model)
    if not place.is_exact:
        raise UnsupportedModel(
            f"{type(module).__name__}, the decoder inside {type(model).__name__}, does not return what the unembedding "
            "is given, so scores and lenses, which read it, would not be those of the whole model."
        )


def _place(model: PreTrainedModel) -> tuple[_Place, nn.Module]:
    with _FINDING:
        place = _DECODERS.get(model)
        module = None if place is None else place.module()
        if place is None or module is None or _submodule(model, place.name) is not module:
            place, module = _find(model)
            _DECODERS[model] = place
    return place, module


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def hidden_states(output: Any) -> Tensor | None:
    """Return the hidden states `[N, T, D]` in what a decoder returned."""
    named = getattr(output, "last_hidden_state", None)
    if isinstance(named, Tensor):
        return named
    return first_tensor(tuple(output.values()) if isinstance(output, dict) else output)


def check_transformers() -> None:
    """Raise BadInput for a Transformers release in which edits might miss the cache of a run, as they did in 5.24."""
    if Version(transformers.__version__) >= Version("5.25.dev0"):
        raise BadInput(
            f"Transformers {transformers.__version__} is installed; edits and repairs rely on how it hands a model its "
            "cache, which was tested up to 5.24; run pip install 'transformers>=5.23,<5.25'."
        )


@torch.no_grad()
def _find(model: PreTrainedModel) -> tuple[_Place, nn.Module]:
    check_transformers()
    mark(model)
    if model.get_output_embeddings() is None:
        raise UnsupportedModel(f"{type(model).__name__} has no unembedding; load it as a causal language model.")
    ids = probe_ids(model)
    with evaluating(model):
        with _watched(model, ids) as (candidates, returned, unembedded):
            _run(model, ids)
        if not candidates:
            raise UnsupportedModel(
                f"No module of {type(model).__name__} that holds its layers is given the token ids, so there is no "
                "place at which it could be read or edited."
            )
        exact = (name for name in candidates if _is_exact(model, name, ids, returned.get(name), unembedded))
        name = next(exact, None)
    module = model.get_submodule(name or candidates[0])
    return _Place(name or candidates[0], weakref.ref(module), name is not None), module


def _is_exact(model: PreTrainedModel, name: str, ids: Tensor, hidden: Tensor | None, unembedded: list[Tensor]) -> bool:
    if hidden is None or not unembedded or fitted_factor(unembedded[0], hidden) is None:
        return False
    alone = _run_alone(model.get_submodule(name), ids)
    return alone is not None and alone.shape == hidden.shape and close(alone, hidden)


def _run(model: PreTrainedModel, ids: Tensor) -> None:
    try:
        model(input_ids=ids, use_cache=False)
    except torch.OutOfMemoryError:
        raise
    # nothing is attached in this pass, so whatever stops it lies in the model, and its kinds are without number
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".: ")
        raise UnsupportedModel(
            f"This {model.config.model_type} model does not run on token ids alone ({type(error).__name__}: {first}), "
            "so it cannot be read as a decoder."
        ) from error


def _run_alone(module: nn.Module, ids: Tensor) -> Tensor | None:
    try:
        return hidden_states(module(input_ids=ids, use_cache=False))
    except TypeError:  # it takes other arguments, so no method could run it
        return None


@contextmanager
def _watched(model: PreTrainedModel, ids: Tensor) -> Iterator[tuple[list[str], dict[str, Tensor], list[Tensor]]]:
    """Yield the names of modules given the ids, outermost first, their hidden states, and the unembedding's input."""
    candidates: list[str] = []
    returned: dict[str, Tensor] = {}
    unembedded: list[Tensor] = []

    def watch(name: str, module: nn.Module, stack: ExitStack) -> None:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = (v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.shape == ids.shape)
            if name not in candidates and any(torch.equal(v.to(ids), ids) for v in given if v.dtype == ids.dtype):
                candidates.append(name)

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            hidden = hidden_states(output)
            if name in candidates and hidden is not None:
                returned.setdefault(name, hidden.clone())

        stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(module.register_forward_hook(after).remove)

    def reached(module: nn.Module, args: tuple[Any, ...]) -> None:
        unembedded.append(args[0].clone())

    with ExitStack() as stack:
        for name in _holders(model):
            watch(name, model.get_submodule(name), stack)
        stack.callback(model.get_output_embeddings().register_forward_pre_hook(reached).remove)
        yield candidates, returned, unembedded


def _holders(model: nn.Module) -> list[str]:
    """Return the names of the modules inside a model that hold a list of modules, at whatever depth."""
    lists = [name.split(".") for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    return sorted({".".join(path[:depth]) for path in lists for depth in range(1, len(path))})
