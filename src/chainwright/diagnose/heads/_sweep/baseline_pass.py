"""The baseline pass of a sweep: the model run once with every head in place, and what each layer was called with.

A single-head knockout shares most of its work with this pass. So it is recorded once: the arguments of each layer, the
head outputs (for knockouts at all positions) or the keys and values (for knockouts at the last position), and the
logits. `for_rows` then repeats a layer's call for some rows with new hidden states.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from chainwright.models.anatomy import Anatomy, Layer
from chainwright.models.capture import Reader, forward
from chainwright.models.layer_halves import has_halves, is_hooked
from chainwright.models.seam import STATE_KEY, Attend, AttentionCall, Handlers, attach, attached_handlers, widened

# largest total variation between the model and its layers run one by one that counts as rounding
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
# bfloat16 and float16: another batch size alone can change the kernel, and with it this much probability
_HALF_TOLERANCE = 0.25
# a shared beginning of fewer tokens saves less than the second call of each layer costs
FEWEST_SHARED = 16
# the shortest row of a group has at least this share of the longest row's tokens, so little is spent on padding
_SHORTEST = 0.9
# rows of so many tokens are not padded at all: padding takes a mask of every token against every other
LONG = 1024


class Contexts(NamedTuple):
    """Left-padded contexts `[N, T]`, their mask, and the tokens whose probability is tracked after them `[N, K]`."""

    input_ids: Tensor
    mask: Tensor
    tracked: Tensor


class VariantLogits(NamedTuple):
    """Logits at the last position `[R, V]`, and the (row, layer, head) of each `[R, 3]`; head -1 is no knockout."""

    where: Tensor
    logits: Tensor


class Group(NamedTuple):
    """Rows of similar length, without the padding that they share, and their indices among all rows."""

    rows: Tensor
    contexts: Contexts


@dataclass
class LayerCall:
    """One layer's call in the baseline pass, and the input and output of its attention.

    Attributes:
        args: Positional arguments. The hidden states, whether positional or a keyword, are those of the last position
            only if keys and values were recorded.
        kwargs: Keyword arguments.
        z: Head outputs before the output projection `[N, T, H, d]`.
        attn_output: What the attention module returned.
        attn_call: The call of the attention function, if keys and values were recorded.
        mid_readers: The linear modules that read the output of the norm in front of the MLP.
        is_positionwise: Whether everything per position among the arguments is read by the attention alone, so that
            the rest of the layer can be run for the last position only.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    z: Tensor = field(default_factory=lambda: torch.empty(0))
    attn_output: Any = None
    attn_call: AttentionCall | None = None
    mid_readers: list[nn.Module] = field(default_factory=list)
    is_positionwise: bool = False

    @property
    def hidden(self) -> Tensor:
        """Return the layer's input, `[N, T, D]`."""
        hidden: Tensor = self.args[0] if self.args else self.kwargs["hidden_states"]
        return hidden


class BaselinePass(NamedTuple):
    """Each layer's call in the baseline pass, and the logits at the last position `[N, V]`."""

    calls: list[LayerCall]
    logits: Tensor


def is_edited(parts: Anatomy) -> bool:
    """Return whether the caller has attached an edit to the model."""
    return bool(attached_handlers(parts.model).by_layer)


def groups(contexts: Contexts, max_tokens: int, *, by_start: bool = False) -> Iterator[Group]:
    """Yield rows of similar length, longest first, at most `max_tokens` tokens together (or one row).

    Args:
        contexts: The rows.
        max_tokens: Most tokens of a group.
        by_start: Rows of a group also share their first tokens, or none of them shares them with any other row.
    """
    lengths = contexts.mask.sum(-1).long().cpu()
    start = _starts(contexts, lengths) if by_start else torch.zeros_like(lengths)
    for common in sorted(set(start.tolist())):
        (rows,) = (start == common).nonzero(as_tuple=True)
        yield from _of_similar_length(contexts, rows, lengths, max_tokens)


def _starts(contexts: Contexts, lengths: Tensor) -> Tensor:
    """Return a number per row, the same for rows that begin alike; 0 for those that begin like no other."""
    n_columns = contexts.input_ids.shape[1]
    ids = contexts.input_ids.cpu()
    firsts = [tuple(row[n_columns - int(n) :][:FEWEST_SHARED].tolist()) for row, n in zip(ids, lengths, strict=True)]
    counts = Counter(firsts)
    numbers = {first: i for i, first in enumerate((f for f, n in counts.items() if n > 1), start=1)}
    return torch.tensor([numbers.get(first, 0) for first in firsts])


def _of_similar_length(contexts: Contexts, rows: Tensor, lengths: Tensor, max_tokens: int) -> Iterator[Group]:
    order = rows[lengths[rows].argsort(descending=True, stable=True)].tolist()
    n_tokens = contexts.input_ids.shape[1]
    while order:
        longest = int(lengths[order[0]])
        n = max(1, max_tokens // longest)
        least = longest if longest >= LONG else _SHORTEST * longest
        taken = [row for row in order[:n] if int(lengths[row]) >= least]
        order = order[len(taken) :]
        index = torch.tensor(sorted(taken))
        on_device = index.to(contexts.input_ids.device)
        start = n_tokens - longest  # rows are left-padded: columns before this are padding in the whole group
        yield Group(index, Contexts(*(part[on_device] for part in _from_column(contexts, start))))


def record(
    parts: Anatomy, contexts: Contexts, outside: Handlers, *, keys: bool = False, reader: Reader | None = None
) -> BaselinePass:
    """Run the model once and record each layer's call, with its head outputs or with its keys and values.

    Args:
        parts: Anatomy of the model.
        contexts: Rows to run.
        outside: The handlers that the caller had attached before the sweep; they are in force when a layer is rerun.
        keys: Record keys and values, for knockouts at the last position, instead of head outputs.
        reader: Reads the same pass.
    """
    calls: list[LayerCall] = []
    options: dict[int, dict[str, Any]] = {}

    def copied(hidden: Tensor) -> Tensor:
        # a copy, since some layers add to the residual stream in place
        return (hidden[:, -1:] if keys else hidden).detach().clone()

    def read_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # hidden states are the first argument: positional in most models, a keyword in some
        own = {name: copied(value) for name, value in kwargs.items() if name == "hidden_states"}
        calls.append(LayerCall((*(copied(value) for value in args[:1]), *args[1:]), {**kwargs, **own}))

    def read_heads(call: AttentionCall, attend: Attend) -> Tensor:
        z = attend(call)
        options[call.layer] = call.options
        if keys:
            k, v = call.k.detach(), call.v.detach()
            # queries are dropped: each variant brings its own
            calls[-1].attn_call = replace(call, q=call.q[:, :, :0].detach(), k=k, v=v)
        else:
            calls[-1].z = z.detach().clone()
        return z

    def read_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        calls[-1].attn_output = _detached(output)

    with ExitStack() as stack:
        stack.enter_context(attach(parts.model, Handlers({i: (read_heads,) for i in range(parts.n_layers)})))
        for layer in parts.layers:
            stack.callback(layer.block.register_forward_pre_hook(read_call, with_kwargs=True).remove)
            if not keys:
                # before other hooks, which will run again in every replay and must not be counted twice
                stack.callback(layer.attention.register_forward_hook(read_output, prepend=True).remove)
                stack.enter_context(_recording_readers(layer, calls))
        if reader is not None:
            stack.enter_context(reader.reading())
        logits = forward(parts, contexts.input_ids, contexts.mask, last_only=True)
    for i, call in enumerate(calls):
        # the recorded keywords hold this pass's own readers; a replay must run the caller's handlers alone
        call.kwargs[STATE_KEY] = outside
        call.is_positionwise = not outside.by_layer and _is_positionwise(parts, i, call, options[i])
    return BaselinePass(calls, widened(logits[:, -1]))


def _from_column(contexts: Contexts, start: int) -> tuple[Tensor, Tensor, Tensor]:
    return contexts.input_ids[:, start:], contexts.mask[:, start:], contexts.tracked


@contextmanager
def _recording_readers(layer: Layer, calls: list[LayerCall]) -> Iterator[None]:
    """Record in the current call which linear modules read the output of the norm in front of the MLP."""
    # a module with a forward of its own (weights moved between devices, an adapter) need not be linear
    linear = [m for m in layer.block.modules() if type(m) in (nn.Linear, Conv1D) and "forward" not in m.__dict__]
    if layer.mid_reader is None or is_hooked(layer.block, but=2):
        yield
        return
    normed: list[Tensor] = []

    def read_norm(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        normed[:] = [output] if isinstance(output, Tensor) else []

    def compare(module: nn.Module, args: tuple[Any, ...]) -> None:
        # recognised by its memory, not its numbers; `normed` keeps that memory from being reused meanwhile
        read = args[0] if args else None
        if normed and isinstance(read, Tensor) and _is_view(read, normed[0]):
            calls[-1].mid_readers.append(module)

    def forget(*_: Any) -> None:
        normed.clear()

    with ExitStack() as stack:
        stack.callback(layer.mid_reader.register_forward_hook(read_norm).remove)
        stack.callback(layer.block.register_forward_hook(forget).remove)
        for module in linear:
            stack.callback(module.register_forward_pre_hook(compare).remove)
        yield


def _detached(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.detach()
    return type(output)(_detached(item) for item in output) if type(output) in (tuple, list) else output


def _is_view(tensor: Tensor, of: Tensor) -> bool:
    return (
        tensor.data_ptr() == of.data_ptr()
        and tensor.numel() == of.numel()
        and tensor.shape[-1] == of.shape[-1]
        and tensor.is_contiguous() == of.is_contiguous()
    )


def _is_positionwise(parts: Anatomy, layer: int, call: LayerCall, options: dict[str, Any]) -> bool:
    per_query = any(isinstance(value, Tensor) and value.dim() > 2 for value in options.values())
    return not per_query and has_halves(parts.layers[layer], call.args, call.kwargs)


def total_variation(logits: Tensor, plain: Tensor) -> float:
    """Return the total variation distance to the baseline pass, 0 to 1, in the worst row."""
    return float((logits.softmax(-1) - plain.softmax(-1)).abs().sum(-1).max()) / 2


def rounding_tolerance(parts: Anatomy) -> float:
    """Return the largest total variation that counts as rounding, for the model's dtype."""
    return _TOLERANCE.get(parts.model.dtype, _HALF_TOLERANCE)


def for_rows(
    call: LayerCall, rows: Tensor, n_rows: int, hidden: Tensor | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a layer's arguments for some rows of the recorded batch.

    Args:
        call: The layer's call in the baseline pass.
        rows: Row of each variant `[R]`; a row may come several times.
        n_rows: Rows of the baseline pass.
        hidden: New hidden states `[R, T, D]` (or `[1, T, D]` for all); None takes the recorded ones.
    """
    is_whole = len(rows) == n_rows and bool((rows == torch.arange(n_rows)).all())

    def pick(value: Any, name: str = "") -> Any:
        if isinstance(value, tuple):
            return tuple(pick(v) for v in value)
        # the length of the first axis alone does not prove that it is the batch: a rotary table may have as many rows
        per_row = isinstance(value, Tensor) and n_rows > 1 and len(value) == n_rows and not is_whole
        if per_row and (value.dim() > 2 or name in ("position_ids", "attention_mask")):
            return value[rows.to(value.device)]
        return value

    own = pick(call.hidden, "hidden_states") if hidden is None else hidden
    own = own.repeat(len(rows), 1, 1) if len(own) == 1 else own
    kwargs = {name: pick(value, name) for name, value in call.kwargs.items() if name != "hidden_states"}
    if call.args:
        return (own, *(pick(value) for value in call.args[1:])), kwargs
    return (), {**kwargs, "hidden_states": own}
