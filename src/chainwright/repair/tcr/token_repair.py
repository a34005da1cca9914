"""Repairs that look at single tokens while decoding: a detector flags them, and their logits are put in anew.

1. A forward hook on the causal language model sees each call of `generate`: the rows' tokens so far, the logits at the
   last position, and what the chosen layers put out there.
2. The detector says in which rows the coming token is doubtful.
3. For those rows the repair computes other logits, for which it may ask what the model would say without single heads.
4. They replace the model's; everything after that (sampling, streaming, stopping) is `generate`'s own.

`score` does the same for a whole trace at once, so that greedy tokens equal its argmax.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from chainwright._errors import BadInput, EditNeverFired
from chainwright.decode import Corrections
from chainwright.edits import Head
from chainwright.models._probe import first_tensor
from chainwright.models.anatomy import Anatomy, anatomy
from chainwright.models.capture import Positions
from chainwright.models.seam import widened
from chainwright.repair.base import Cost, Origin, Repair
from chainwright.repair.tcr._ablated_cache import Branches, Pair
from chainwright.repair.tcr._following import Rows
from chainwright.repair.tcr._knockout_switch import Switch
from chainwright.repair.tcr._last_position import last_position_logits, windows_before
from chainwright.traces import Trace


class Seen(NamedTuple):
    """What is known of some tokens before they are chosen.

    Attributes:
        hidden: What the read layers put out at the last position, `[N, R, D]`; R = 0 where nothing reads them.
        logits: The model's own next-token logits `[N, V]`, float32.
        contexts: All tokens so far, one list a row.
        prompts: The first of them that are the prompt.
    """

    hidden: Tensor
    logits: Tensor
    contexts: Sequence[Sequence[int]]
    prompts: Sequence[Sequence[int]]

    def take(self, rows: Sequence[int]) -> Seen:
        """Return some of the tokens."""
        at = torch.tensor(list(rows), dtype=torch.long, device=self.logits.device)
        picked = [[group[i] for i in rows] for group in (self.contexts, self.prompts)]
        return Seen(self.hidden[at], self.logits[at], picked[0], picked[1])


def entropy_nats(logits: Tensor) -> Tensor:
    """Return the entropy of the distributions that logits `[..., V]` make, in nats."""
    entropy: Tensor = torch.special.entr(logits.softmax(-1)).sum(-1)
    return entropy


class Detector(Protocol):
    """Says which coming tokens are doubtful."""

    @property
    def min_entropy(self) -> float:
        """Tokens whose entropy (nats) is not above it are never flagged; below 0 it rules nothing out."""

    @property
    def reads_hidden(self) -> bool:
        """Whether it reads `Seen.hidden`."""

    def flags(self, seen: Seen) -> Tensor:
        """Return which tokens to look at again, bool `[N]`."""


Without = Callable[[Sequence[Pair]], Tensor]
"""Takes (row of a `Seen`, head) pairs; returns the next-token logits without that head, `[pairs, V]`."""


class CorrectingRepair(Repair):
    """A repair that puts in other logits for flagged tokens.

    Attributes:
        detector: What flags.
        layers: The layers whose output detector and repair read.
        positions: Where heads are silenced when it asks what the model says without them.
        scale: What they are multiplied by, 0 to silence them.
        end_ids: Tokens that end a response: rows that have written one are left alone.
        max_bytes: What the cached runs without single heads may take together.
    """

    detector: Detector
    layers: tuple[int, ...]
    positions: Positions
    scale: float
    end_ids: tuple[int, ...]
    max_bytes: int

    def __init__(self, origin: Origin | None = None):
        super().__init__(origin)
        self.layers = ()
        self.positions = "all"
        self.scale = 0.0
        self.end_ids = ()
        self.max_bytes = 2**30

    @abstractmethod
    def corrected(self, parts: Anatomy, seen: Seen, without: Without) -> Tensor:
        """Return the logits `[N, V]` to put in place of `seen.logits`; a row may be left as it is."""

    def attached(self, model: nn.Module) -> Any:
        """Return a context in which `model` decodes with the repair."""
        return self._attached(model)

    @contextmanager
    def _attached(self, model: nn.Module) -> Iterator[Cost]:
        parts = anatomy(model)
        self.check_model(model)
        self.cost = Cost()
        run = _Run(parts, self)
        with run.hooked():
            yield self.cost
        if run.n_uncached and not self.cost.n_forwards:
            raise EditNeverFired(
                f"A {self.kind} repair was attached, but the model only ran without a cache, where nothing is decoded "
                "token by token; generate with use_cache=True, or use chainwright.score for whole traces."
            )

    def corrections(self, model: nn.Module, traces: Sequence[Trace]) -> list[Corrections]:
        """Return for each trace the logits that decoding would have seen at flagged tokens; used by `score`."""
        from chainwright.repair.tcr._teacher_forcing import trace_corrections

        self.check_model(model)
        return trace_corrections(anatomy(model), self, traces)


class _Run:
    """The hooks of one attachment."""

    def __init__(self, parts: Anatomy, repair: CorrectingRepair):
        self.parts = parts
        self.repair = repair
        self.cost = repair.cost
        self.rows = Rows(repair.end_ids)
        self.switch = Switch(parts)
        self.is_own_pass = False
        self.n_uncached = 0
        self._branches: Branches | None = None
        self._hidden: dict[int, Any] = {}  # what each read layer put out
        self._windows: dict[int, Any] = {}
        self._call: tuple[Tensor, Any] | None = None
        self._started = 0.0

    @contextmanager
    def hooked(self) -> Iterator[None]:
        model = self.parts.model
        with ExitStack() as stack:
            stack.enter_context(self.switch.attached())
            stack.callback(model.register_forward_pre_hook(self.before, with_kwargs=True).remove)
            stack.callback(model.register_forward_hook(self.after, with_kwargs=True).remove)
            for i in {i % self.parts.n_layers for i in self.repair.layers}:
                block = self.parts.layers[i].block
                stack.callback(block.register_forward_hook(self._reader(i)).remove)
            yield

    def _reader(self, layer: int) -> Callable[..., None]:
        def read(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if not self.is_own_pass and self._call is not None:
                self._hidden[layer] = output

        return read

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.is_own_pass:
            return
        input_ids, cache = kwargs.get("input_ids", args[0] if args else None), kwargs.get("past_key_values")
        if kwargs.get("use_cache") is False and cache is None:
            self._call = None
            self.n_uncached += input_ids is None or input_ids.shape[1] > 1
            return
        self.rows.check(input_ids, cache)
        assert input_ids is not None
        self._call = (input_ids, kwargs.get("attention_mask"))
        self._hidden = {}
        self._windows = windows_before(cache) if self.repair.positions == "last" else {}
        self._started = time.perf_counter()

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if self.is_own_pass or self._call is None:
            return output
        self.cost.add_seconds(self._started, is_extra=False)
        (input_ids, mask), self._call = self._call, None
        cache = getattr(output, "past_key_values", None)
        if cache is None:
            raise BadInput(
                "A repair needs the model's cache and its named outputs; leave return_dict and use_cache on."
            )
        started = time.perf_counter()
        is_new = self.rows.follow(input_ids, mask, cache)
        if is_new and self._branches is not None:
            self._branches.forget()
        self.cost.n_forwards += 1
        self._correct(output, cache)
        self.cost.add_seconds(started, is_extra=True)
        return output

    def _correct(self, output: Any, cache: Any) -> None:
        live = [i for i, is_done in enumerate(self.rows.is_done) if not is_done]
        if self._branches is not None and len(live) < len(self.rows.ids):
            self._branches.forget({i for i, is_done in enumerate(self.rows.is_done) if is_done})
        self.cost.n_tokens += len(live)
        logits = widened(output.logits[:, -1])
        uncertain = self._uncertain(logits, live)
        if not uncertain:
            return
        seen = self._seen(logits).take(uncertain)
        flagged = self.repair.detector.flags(seen).nonzero()[:, 0].tolist()
        if not flagged:
            return
        doubtful = seen.take(flagged)
        rows = [uncertain[i] for i in flagged]
        new = self._in_own_pass(doubtful, rows, cache)
        self.cost.n_flagged += len(rows)
        self.cost.n_changed += int((new.argmax(-1) != doubtful.logits.argmax(-1)).sum())
        changed = output.logits.clone()
        changed[rows, -1] = new.to(changed.dtype)
        output.logits = changed

    def _uncertain(self, logits: Tensor, live: list[int]) -> list[int]:
        """Return the live rows that the detector might flag."""
        floor = self.repair.detector.min_entropy
        if floor < 0 or not live:
            return live
        is_uncertain = (entropy_nats(logits) > floor).tolist()
        return [i for i in live if is_uncertain[i]]

    def _seen(self, logits: Tensor) -> Seen:
        read = [self._hidden_at_end(i % self.parts.n_layers).to(logits.device) for i in self.repair.layers]
        hidden = torch.stack(read, dim=1) if read else logits.new_zeros(len(logits), 0, 0)
        return Seen(hidden, logits, self.rows.ids, self.rows.prompts)

    def _hidden_at_end(self, layer: int) -> Tensor:
        given = first_tensor(self._hidden[layer])
        assert given is not None
        return widened(given.reshape(len(self.rows.ids), -1, given.shape[-1])[:, -1])

    def _in_own_pass(self, doubtful: Seen, rows: list[int], cache: Any) -> Tensor:
        def without(pairs: Sequence[Pair]) -> Tensor:
            moved = [(rows[i], head) for i, head in pairs]
            return self._without(moved, cache)

        self.is_own_pass = True
        try:
            return self.repair.corrected(self.parts, doubtful, without)
        finally:
            self.is_own_pass = False

    def _without(self, pairs: list[tuple[int, Head]], cache: Any) -> Tensor:
        contexts = [self.rows.ids[row] for row, _ in pairs]
        if self.repair.positions == "last":
            return last_position_logits(
                self.parts, self.switch, pairs, contexts, cache, self._windows, self.repair.scale, self.cost
            )
        if self._branches is None:
            self._branches = Branches(self.parts, self.switch, self.repair.scale, self.repair.max_bytes, self.cost)
        return self._branches.logits(pairs, contexts)
