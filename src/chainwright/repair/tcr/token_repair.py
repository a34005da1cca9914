"""Repairs that look at single tokens while decoding: a detector flags them, and their logits are replaced.

1. A forward hook on the causal language model sees each call of `generate`: the rows' tokens so far, the logits at the
   last position, and what the chosen layers put out there.
2. The detector says in which rows the coming token is doubtful.
3. For those rows the repair computes other logits, for which it may ask what the model would say without single heads.
4. They replace the model's; everything after that (sampling, streaming, stopping) is `generate`'s own.

`score` does the same for a whole trace at once, so that greedy tokens equal its argmax.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import lru_cache
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from chainwright._config import Positions
from chainwright._errors import BadInput, EditNeverFired
from chainwright.edits import Head
from chainwright.edits._passes import Row
from chainwright.edits.run import Run
from chainwright.models._probe import first_tensor
from chainwright.models.anatomy import Anatomy, anatomy
from chainwright.models.caches import is_appending, passed_cache, returned_cache
from chainwright.models.seam import widened
from chainwright.repair.base import Origin, Repair
from chainwright.repair.run import Cost, Decider, counted
from chainwright.repair.tcr._ablated_cache import Branches, Pair
from chainwright.repair.tcr._knockout_switch import Switch
from chainwright.repair.tcr._last_position import last_position_logits, whole_prefix_logits, windows_before
from chainwright.repair.tcr._seen import Seen as Seen
from chainwright.repair.tcr._teacher_forcing import trace_corrections
from chainwright.repair.tcr._two_best import TwoBest
from chainwright.scoring import Corrections
from chainwright.traces import Trace

_ROUNDING = 1e-3  # nats; far more than float32 may be off in an entropy
_HOW = "decode with greedy search or sampling and the default cache"
_MOVED = (
    "A repair cannot follow beam search or assisted decoding, in which rows change places and tokens are taken back; "
    f"{_HOW}."
)


def entropy_nats(logits: Tensor) -> Tensor:
    """Return the entropy of the distributions that logits `[..., V]` make, in nats."""
    entropy: Tensor = torch.special.entr(logits.softmax(-1)).sum(-1)
    return entropy


def is_certain(logits: Tensor, floor: float) -> bool:
    """Return whether the entropy of every row is below `floor`, by so much that rounding cannot matter.

    Most tokens are certain, and nothing else need be computed for them. The likeliest token's probability p bounds the
    entropy: with the rest spread evenly it is h(p) + (1 - p) log(V - 1), and no distribution has more.

    Args:
        logits: `[N, T, V]`, of which the last position counts.
        floor: Nats.
    """
    least = _certain_from(floor, logits.shape[-1])
    if logits.numel() == logits.shape[-1] and logits.dtype is torch.float32:  # a single row: two calls of torch
        return float(torch.softmax(logits, -1).max()) >= least  # not so if NaN, which an infinite logit gives
    return all(p >= least for p in logits[:, -1].softmax(-1, dtype=torch.float32).amax(-1).tolist())


@lru_cache
def _certain_from(floor: float, n_tokens: int) -> float:
    """Return the probability of the likeliest of `n_tokens` tokens from which on the entropy is below `floor` nats."""
    below = floor - _ROUNDING
    low, high = 1 / n_tokens, 1.0
    if below >= math.log(n_tokens):
        return 0.0
    if below <= 0:
        return math.inf
    for _ in range(40):
        p = (low + high) / 2
        most = -p * math.log(p) - (1 - p) * math.log((1 - p) / (n_tokens - 1))
        low, high = (low, p) if most < below else (p, high)
    return high


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
        lens_layers: The layers at which the detector reads the two likeliest tokens through the logit lens.
        positions: Where heads are silenced when it asks what the model says without them.
        scale: What they are multiplied by, 0 to silence them.
        end_ids: Tokens that end a response: rows that have written one are left alone.
        max_bytes: What the cached runs without single heads may take together.
        on_flags: Called with what was known of some tokens while decoding, and which of them were flagged.
        on_decisions: Called with the rows of flagged tokens, what was known of them, and the logits put in.
    """

    decides_tokens: ClassVar[bool] = True
    acts_by_row: ClassVar[bool] = True

    detector: Detector
    layers: tuple[int, ...]
    lens_layers: tuple[int, ...]
    positions: Positions
    scale: float
    end_ids: tuple[int, ...]
    max_bytes: int

    def __init__(self, origin: Origin | None = None):
        super().__init__(origin)
        self.on_flags: list[Callable[[Seen, Tensor], None]] = []
        self.on_decisions: list[Callable[[Sequence[Row], Seen, Tensor], None]] = []
        self.layers = ()
        self.lens_layers = ()
        self.positions = "all"
        self.scale = 0.0
        self.end_ids = ()
        self.max_bytes = 2**30

    def _not_pickled(self) -> frozenset[str]:
        return super()._not_pickled() | {"on_flags", "on_decisions"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what was pickled; nothing watches the copy."""
        self.__dict__ |= {**state, "on_flags": [], "on_decisions": []}

    @abstractmethod
    def corrected(self, parts: Anatomy, seen: Seen, without: Without) -> Tensor:
        """Return the logits `[N, V]` to put in place of `seen.logits`; a row may be left as it is."""

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[Cost]:
        """Decode with the repair inside this context.

        Raises:
            BadInput: The repair was made for another model; inside the context, a run that cannot be followed.
            EditNeverFired: The model only ran without a cache.
        """
        parts = anatomy(model)
        self.check_model(model)
        self.cost = cost = Cost(n_changed=0)
        deciding = _Deciding(parts, self, cost)
        with counted(parts, cost, deciding) as run, deciding.hooked(run):
            yield cost
        if deciding.n_uncached and not deciding.n_decided:
            raise EditNeverFired(
                f"A {self.kind} repair was attached, but the model only ran without a cache, where nothing is decoded "
                "token by token; generate with use_cache=True, or use chainwright.score for whole traces."
            )

    def scoring(self, model: nn.Module, traces: Sequence[Trace]) -> Any:
        """Return an empty context: what is decided otherwise is put in by `corrections`."""
        return nullcontext()

    def corrections(self, model: nn.Module, traces: Sequence[Trace]) -> list[Corrections]:
        """Return for each trace the logits that decoding would have seen at flagged tokens; used by `score`."""
        self.check_model(model)
        return trace_corrections(anatomy(model), self, traces)


class _Deciding(Decider):
    """The state of one attachment."""

    run: Run

    def __init__(self, parts: Anatomy, repair: CorrectingRepair, cost: Cost):
        self.parts, self.repair, self.cost = parts, repair, cost
        self.switch = Switch(parts)
        self._two_best = TwoBest(parts, repair.lens_layers) if repair.lens_layers else None
        self.n_uncached = self.n_decided = 0
        self.is_deciding = False  # whether the pass that runs now is one of decoding with a cache
        self._n_runs = -1
        self._owner: Hashable = None
        self._branches: Branches | None = None
        self._hidden: dict[int, Any] = {}  # what each read layer put out
        self._windows: dict[int, Any] = {}
        self._trail: Tensor | None = None
        self._is_moved = False
        self._followed: Any = None  # the latest cache that was looked at

    @contextmanager
    def hooked(self, run: Run) -> Iterator[None]:
        """Read the layers and be able to knock out heads inside the block."""
        self.run, self._owner = run, run.opening
        own_ends = frozenset(self.repair.end_ids)
        run.end_ids |= own_ends
        with ExitStack() as stack:
            stack.enter_context(self.switch.attached())
            for i in {i % self.parts.n_layers for i in (*self.repair.layers, *self.repair.lens_layers)}:
                block = self.parts.layers[i].block
                stack.callback(block.register_forward_hook(self._reader(i)).remove)
            try:
                yield
            finally:
                run.end_ids -= own_ends

    def _reader(self, layer: int) -> Callable[..., None]:
        def read(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            # what runs aside or without a cache is none of the passes that tokens are decided after
            if not self.run.is_aside and (self.is_deciding or self.run.is_step):
                self._hidden[layer] = output

        return read

    def before(self, kwargs: dict[str, Any]) -> None:
        """Keep what a pass will drop from the cache, and note whether rows have changed places in it."""
        if self._trail is not None or self.repair.positions == "last":
            cache = passed_cache(kwargs)
            # the pass pushes tokens out of sliding windows that a second look at the last position still needs
            self._windows = windows_before(cache) if self.repair.positions == "last" else {}
            trail = self._trail if self.run.n_runs == self._n_runs and cache is self._followed else None
            self._is_moved = trail is not None and not _is_trail(cache, trail)

    def begin(self, kwargs: dict[str, Any]) -> None:
        """Refuse a pass that cannot be followed."""
        input_ids, cache = kwargs.get("input_ids"), passed_cache(kwargs)
        self.is_deciding = kwargs.get("use_cache") is not False or cache is not None
        if not self.is_deciding:
            self.n_uncached += input_ids is None or input_ids.shape[1] > 1
            return
        self._check(input_ids, cache)
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() != 2:
            raise BadInput(f"A repair needs an attention mask of shape [rows, tokens]; got {list(mask.shape)}.")
        self._hidden = {}

    def _check(self, input_ids: Tensor | None, cache: Any) -> None:
        """Raise BadInput if a pass that is about to run is one in which tokens cannot be decided."""
        if input_ids is None:
            raise BadInput("A repair reads the tokens, but this model is being run on embeddings; pass input_ids.")
        if cache is None:
            return
        if cache is not self._followed:
            if not is_appending(cache):
                raise BadInput(f"A repair cannot follow a {type(cache).__name__}; {_HOW}.")
            self._followed = cache
        run, n_cached = self.run, int(cache.get_seq_length())
        if n_cached == 0:
            return
        if not run.rows:
            raise BadInput(
                f"The cache holds {n_cached} tokens from before the repair was attached; start with an empty cache."
            )
        is_taken_back = n_cached != run.n_slots or (run.is_decoding and input_ids.shape[1] > 1)
        if self._have_rows_moved() or is_taken_back or len(input_ids) != len(run.rows):
            raise BadInput(_MOVED)

    def _have_rows_moved(self) -> bool:
        # beams report themselves; rows that someone else moves show in what the cache keeps of the last token
        return self.run.is_reordered or self._is_moved

    def decide(self, kwargs: dict[str, Any], output: Any) -> Any:
        """Return the output with the repair's logits at flagged tokens."""
        if self.run.is_step:
            if self._have_rows_moved():
                raise BadInput(_MOVED)
        elif not self.is_deciding:
            return output
        cache = returned_cache(output)
        if cache is None:
            raise BadInput(
                "A repair needs the model's cache and its named outputs; leave return_dict and use_cache on."
            )
        if not self.run.rows:
            raise BadInput("Rows must be padded on the left: in some row a token stands before a masked position.")
        self.n_decided += 1
        if self.run.n_runs != self._n_runs and self._branches is not None:
            self._branches.keep({row.serial for row in (*self.run.rows, *self.run.held)})
        self._n_runs, self._trail = self.run.n_runs, _trail(cache)
        self._correct(output, cache)
        return output

    def _correct(self, output: Any, cache: Any) -> None:
        rows, floor = self.run.rows, self.repair.detector.min_entropy
        are_live = self.run.is_step or not any(row.is_done for row in rows)
        if floor >= 0 and are_live and is_certain(output.logits, floor):
            return
        # without end tokens of its own it cannot be sure that a row is finished
        over = {i for i, row in enumerate(rows) if row.is_done} if self.repair.end_ids else set()
        live = [i for i, row in enumerate(rows) if i not in over and row.acts(self._owner)]
        if self._branches is not None and over:
            self._branches.keep({row.serial for i, row in enumerate((*rows, *self.run.held)) if i not in over})
        if not live:
            return
        logits = widened(output.logits[:, -1])
        uncertain = self._uncertain(logits, live)
        if not uncertain:
            return
        seen = self._seen(logits).take(uncertain)
        flags = self.repair.detector.flags(seen)
        for notify in self.repair.on_flags:
            notify(seen, flags)
        flagged = flags.nonzero()[:, 0].tolist()
        if not flagged:
            return
        doubtful = seen.take(flagged)
        chosen = [uncertain[i] for i in flagged]
        new = self._corrected(doubtful, chosen, cache)
        # rows without certain end tokens are decided to the end, but what is fed to a finished row is no token
        is_live = [not rows[i].is_done for i in chosen]
        is_changed = (new.argmax(-1) != doubtful.logits.argmax(-1)).tolist()
        self.cost.n_flagged += sum(is_live)
        self.cost.n_changed = (self.cost.n_changed or 0) + sum(
            changed and counts for changed, counts in zip(is_changed, is_live, strict=True)
        )
        changed = output.logits.clone()  # the output may be a view into something that is used again
        changed[chosen, -1] = new.to(changed.dtype)
        output.logits = changed
        for watch in self.repair.on_decisions:
            watch([rows[i] for i in chosen], doubtful, new)

    def _uncertain(self, logits: Tensor, live: list[int]) -> list[int]:
        """Return the live rows that the detector might flag."""
        floor = self.repair.detector.min_entropy
        if floor < 0 or not live:
            return live
        is_uncertain = (entropy_nats(logits) > floor).tolist()
        return [i for i in live if is_uncertain[i]]

    def _seen(self, logits: Tensor) -> Seen:
        rows, two = self.run.rows, self._two_best
        lens = None if two is None else two.read(self._at_end(two.layers, logits), logits)
        contexts, prompts = [row.ids for row in rows], [row.ids[: row.n_prompt] for row in rows]
        return Seen(self._at_end(self.repair.layers, logits), logits, contexts, prompts, lens)

    def _at_end(self, layers: Sequence[int], logits: Tensor) -> Tensor:
        read = [self._hidden_at_end(i % self.parts.n_layers).to(logits.device) for i in layers]
        return torch.stack(read, dim=1) if read else logits.new_zeros(len(logits), 0, 0)

    def _hidden_at_end(self, layer: int) -> Tensor:
        given = first_tensor(self._hidden[layer])
        assert given is not None
        return widened(given.reshape(len(self.run.rows), -1, given.shape[-1])[:, -1])

    def _corrected(self, doubtful: Seen, rows: list[int], cache: Any) -> Tensor:
        def without(pairs: Sequence[Pair]) -> Tensor:
            return self._without([(rows[i], head) for i, head in pairs], cache)

        with self.run.aside(rows):  # also what the repair itself runs, such as a second unembedding
            return self.repair.corrected(self.parts, doubtful, without)

    def _without(self, pairs: list[tuple[int, Head]], cache: Any) -> Tensor:
        is_whole = [self._needs_whole(self.run.rows[row]) for row, _ in pairs]
        if len(set(is_whole)) < 2:
            return self._of_a_kind(pairs, cache, is_whole=is_whole[0])
        whole, others = ([pair for pair, kind in zip(pairs, is_whole, strict=True) if kind is k] for k in (True, False))
        both = [self._of_a_kind(whole, cache, is_whole=True), self._of_a_kind(others, cache, is_whole=False)]
        out = torch.empty(len(pairs), both[0].shape[1], device=both[0].device)
        chosen = torch.tensor(is_whole, device=out.device)
        out[chosen], out[~chosen] = both[0].float(), both[1].float()
        return out

    def _needs_whole(self, row: Row) -> bool:
        """Return whether edits on whole rows act in a row, such as those of StepFlow and back attention."""
        return any(row.acts(owner) for owner in self.run.whole_owners)

    def _of_a_kind(self, pairs: Sequence[Pair], cache: Any, *, is_whole: bool) -> Tensor:
        rows, repair = self.run.rows, self.repair
        contexts = [rows[row].ids for row, _ in pairs]
        if not is_whole and repair.positions == "all":
            if self._branches is None:
                last = self.parts.n_layers - 1
                n_hooks = int(last in {i % self.parts.n_layers for i in repair.layers})
                self._branches = Branches(
                    self.parts, self.switch, repair.scale, repair.max_bytes, self.cost, n_hooks=n_hooks
                )
            return self._branches.logits(pairs, contexts, cache, rows)
        for (row, _), ids in zip(pairs, contexts, strict=True):
            rows[row].n_extra_tokens += len(ids) if is_whole else 1
        if is_whole:
            return whole_prefix_logits(
                self.parts, self.switch, pairs, contexts, repair.positions, repair.scale, self.cost
            )
        return last_position_logits(
            self.parts, self.switch, pairs, contexts, cache, self._windows, repair.scale, self.cost
        )


def _is_trail(cache: Any, trail: Tensor) -> bool:
    now = _trail(cache)
    return now is None or torch.equal(now, trail)


def _trail(cache: Any) -> Tensor | None:
    """Return what the last layer keeps of each row's last token: another number when rows change places."""
    if len(cache.layers[-1].keys) == 1:
        return None
    return cache.layers[-1].keys[:, 0, -1].clone()  # type: ignore[no-any-return]
