"""The run of decoding that a model is in, followed through its forward passes: one object for all edits and repairs.

1. The first edit or repair that opens on a model makes the run, later ones share it, and the last one to close ends it.
2. Before each pass of the decoder the run works out what the pass adds: which tokens each row holds, how many
   columns of padding come before them, which of them are the prompt, and which rows are finished. A slot is a column of
   the padded batch. What it holds is known by its number, so a prompt, single tokens, several tokens and a whole trace
   are all handled alike, and tokens that assisted decoding takes back are forgotten when the next pass starts earlier.
3. A pass without a cache that repeats the one before and adds one token continues the run, as in `use_cache=False`.
4. The cache reports when beams change places.
5. Edits that act on segments and steps hang a `Reading` on the run, which keeps the place of every token.

A row is finished once it has written an end token: one that a repair names, else one of `model.generation_config`
(where `chainwright.generate` puts its own), unless something other than padding follows.

This is the tracking half. It is here, below repairs, because edits need it too; `repair/run.py` counts costs on top.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from chainwright._errors import BadInput
from chainwright.edits._generation import Generation
from chainwright.edits._passes import UNSEEN, Pass, Row
from chainwright.edits.reading import Reading
from chainwright.models.anatomy import Anatomy
from chainwright.models.caches import passed_cache
from chainwright.models.placement import input_device
from chainwright.models.seam import Handlers, attach

_RUN = "_chainwright_run"
_EMBEDDINGS = "This edit reads the tokens, but the model is being run on embeddings; pass input_ids."
_CONTINUED = (
    "The cache holds tokens that were read as a response, but generate would take them for the question; fill the "
    "cache in one pass, or start generate with an empty one."
)
_RIGHT_PADDED = "Rows must be padded on the left: in some row a token stands before a masked position."


class Run:
    """The run so far.

    Attributes:
        rows: The rows of the batch; empty where they cannot be followed (embeddings, padding on the right).
        latest: The pass that is running, or ran last.
        counted: Which new tokens of the latest pass count as touched, `[N, Tq]`: no padding, no finished rows, and
            none in a pass aside. None where all do.
        is_decoding: Whether the prompt is over.
        is_reordered: Whether beams have changed places in this run.
        is_step: Whether the latest pass of the run added one token to each row, and no row is finished.
        n_slots: Columns of the padded batch so far.
        n_runs: How many runs have begun.
        n_passes: How many passes have been followed.
        n_reopened: Rows that seemed finished before the latest pass and continued in it.
        whole_owners: The owner of each open edit that acts on whole rows, so that it cannot continue the cache of
            another run.
        end_ids: End tokens that a repair names; empty takes those of `model.generation_config`.
        readings: The segments and steps that open edits follow.
        on_top: What repairs count with; see `repair/run.py`.
        n_prefilled: How many of each row's prompt tokens, the last ones, are the beginning of its response; empty
            where the whole prompt is the question.
        opening: What edits and repairs that are opened now belong to; None for those that act in all rows.
        coming: Who acts in each row of the next run; empty where everything does. See `edits/batches.py`.
        held: Rows that wait while the prompts of others are read.
    """

    def __init__(self, model: PreTrainedModel | None = None):
        self.model = model
        self.rows: list[Row] = []
        self.latest = Pass()
        self.counted: Tensor | None = None
        self.is_decoding = self.is_reordered = self.is_step = False
        self.n_slots = self.n_runs = self.n_passes = self.n_reopened = 0
        self.end_ids: frozenset[int] = frozenset()
        self.readings: list[Reading] = []
        self.on_top: Any = None
        self.n_prefilled: list[int] = []
        self.whole_owners: list[Hashable] = []
        self.opening: Hashable = None
        self.coming: list[frozenset[Hashable]] = []
        self.held: list[Row] = []
        self._generation = Generation()
        self.n_users = 0
        self.closing = ExitStack()
        self._aside: list[int] | None = None
        self._n_kept: int | None = None  # `logits_to_keep` of the causal language model's pass
        self._cache: Any = None
        self._has_windows = False

    @property
    def is_aside(self) -> bool:
        """Return whether the passes that run now only ask what the model would say otherwise."""
        return self._aside is not None

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise BadInput("A model cannot be copied or pickled while it is being edited or read; do it outside the block.")

    def opened(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note how many logits the causal language model is asked for: it tells prompts and candidates apart."""
        if not torch.compiler.is_compiling():
            kept = kwargs.get("logits_to_keep")
            self._n_kept = kept if isinstance(kept, int) and kept > 0 else None

    def closed(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forget it, so that a pass of the decoder alone does not take it for its own."""
        if not torch.compiler.is_compiling():
            self._n_kept = None

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take in a pass of the decoder that is about to run.

        Raises:
            BadInput: A reading is open, and the model is run on embeddings, is padded on the right, or continues a
                cache that was filled before.
        """
        by_name = _by_name(module, args, kwargs)
        ids, cache = by_name.get("input_ids"), passed_cache(by_name)
        n_past = 0 if cache is None else int(cache.get_seq_length())
        is_read, is_continued = bool(self.readings), False
        if self._aside is None and ids is not None:
            # only readings care which call of generate a step belongs to, and finding out takes longer than the step
            is_continued = is_read and self._generation.enter() and n_past > 0
            if not is_continued and self._is_step(ids, cache, n_past):
                return
            is_continued = is_continued or (not is_read and self._generation.enter() and n_past > 0)
        self._take_in(by_name, n_past, is_continued=is_continued)

    def _take_in(self, by_name: dict[str, Any], n_past: int, *, is_continued: bool) -> None:
        """Take in a pass that is no plain step."""
        ids, cache, mask = by_name.get("input_ids"), passed_cache(by_name), by_name.get("attention_mask")
        if self._aside is None:
            self.is_step = False
            if self.on_top is not None:
                self.on_top.begin(by_name)
        if ids is None:
            embeddings = by_name.get("inputs_embeds")
            n_rows, n_new = (0, 0) if embeddings is None else embeddings.shape[:2]
            self._lose(_EMBEDDINGS, n_past, n_new, _shown(mask, n_rows, n_new, n_past))
            return
        n_new = ids.shape[1]  # the windows are read now, since the layers change the cache as they run
        if self._aside is None:
            now = Pass(n_past, n_new, self._n_candidates(n_new), windows=_windows(cache, n_new))
            self._follow(ids, mask, now, is_continued=is_continued)
            self.watch(cache)
        else:
            now = Pass(n_past, n_new, windows=_windows(cache, n_new), is_aside=True)
            self._look_aside(ids, mask, now, self._aside)

    def _is_step(self, ids: Tensor, cache: Any, n_past: int) -> bool:
        """Take in a pass that adds one token to each row, none of them an end; return False for any other.

        Most passes are of this kind, so it does what `_follow` would, and nothing that only other passes need; what a
        mask says of a single new token, `_follow` does not use either.
        """
        rows = self.rows
        is_next = cache is self._cache and n_past == self.n_slots and self.is_decoding
        if not is_next or ids.shape != (len(rows), 1):
            return False
        new, first, (ends, _) = ids.tolist(), self.latest.first, self._ends()
        for row, start, (token,) in zip(rows, first, new, strict=True):
            if row.is_done or token in ends or not row.n_checked == len(row.ids) == n_past - start:
                return False
        for row, (token,) in zip(rows, new, strict=True):
            row.ids.append(token)
            row.n_checked += 1
        now = Pass(n_past, 1, first=first, windows=_windows(cache, 1) if self._has_windows else {})
        self.n_passes += 1
        self.n_slots, self.n_reopened, self.latest, self.counted, self.is_step = n_past + 1, 0, now, None, True
        for reading in self.readings:
            reading.extend(now, new)
        return True

    def _n_candidates(self, n_new: int) -> int:
        """Return how many new tokens are candidates: assisted decoding keeps the logits of those and of one more."""
        return 0 if self._n_kept is None or self._n_kept > n_new else self._n_kept - 1

    def _lose(self, why: str, n_past: int, n_new: int, counted: Tensor | None = None) -> None:
        """Continue without rows, or raise if something reads them."""
        if self.readings:
            raise BadInput(why)
        self.n_passes += 1
        self.rows, self.counted, self.n_slots, self.n_reopened = [], counted, n_past + n_new, 0
        self.latest = Pass(n_past, n_new, last=None if counted is None else _last(counted))

    def _follow(self, ids: Tensor, mask: Any, now: Pass, *, is_continued: bool) -> None:
        n_rows, new = len(ids), ids.tolist()
        # generate continues a cache that was filled by hand: what is left of its prompt may be a single token
        if is_continued and any(reading.has_response for reading in self.readings):
            raise BadInput(_CONTINUED)
        if now.n_past > 0:
            shown = _shown(mask, n_rows, now.n_new, now.n_past)
            if len(self.rows) != n_rows or now.n_past > self.n_slots:
                self._lose(UNSEEN.format(now.n_past), now.n_past, now.n_new, shown)
                return
            if shown is not None and now.n_new > 1 and not _is_left_padded(shown):
                self._lose(_RIGHT_PADDED, now.n_past, now.n_new, shown)
                return
            now.first = list(self.latest.first)
        else:
            shown = _shown(mask, n_rows, now.n_new)
            if shown is not None and not _is_left_padded(shown):
                self._lose(_RIGHT_PADDED, 0, now.n_new, shown)
                return
            now.first = [0] * n_rows if shown is None else [int(n) for n in (~shown).sum(1)]
            self._begin_or_continue(new, now)
        self.n_passes += 1
        self._extend(new, now, is_continued=is_continued)

    def _begin_or_continue(self, new: list[list[int]], now: Pass) -> None:
        """Begin a run, unless each row is one of this run's with one more token: then it is decoded without a cache."""
        known = {(n, tuple(row.ids)): i for i, (n, row) in enumerate(zip(self.latest.first, self.rows, strict=True))}
        if known and len(new) == len(self.rows) and now.n_new == self.n_slots + 1:
            order = [known.get((n, tuple(ids[n:-1]))) for n, ids in zip(now.first, new, strict=True)]
            if None not in order:
                now.n_candidates = 0
                self._take([i for i in order if i is not None])
                return
        self.rows = [Row([], 0, acting=self.coming[i] if self.coming else None) for i in range(len(new))]
        self.n_runs += 1
        self.is_decoding = self.is_reordered = False
        self.n_slots = 0
        for reading in self.readings:
            reading.begin(len(new))

    def _take(self, order: Sequence[int]) -> None:
        """Put row `order[i]` in the place of row i."""
        self.rows = [self.rows[i].copy() for i in order]
        for reading in self.readings:
            reading.take(order)

    def _extend(self, new: list[list[int]], now: Pass, *, is_continued: bool = False) -> None:
        is_first = self.n_slots == 0
        n_confirmed_new = now.n_confirmed - (now.n_past or self.n_slots)
        self.is_decoding = self.is_decoding or (not is_first and n_confirmed_new == 1 and not is_continued)
        now.is_prompt = not is_first and not self.is_decoding and (self._n_kept is not None or is_continued)
        self.n_reopened = 0
        ends, pads = self._ends()
        for row, first, ids in zip(self.rows, now.first, new, strict=True):
            row.truncate(max(0, now.n_past - first))
            row.ids += ids[max(0, first - now.n_past) :]
            if not self.is_decoding:
                row.n_prompt = row.n_checked = now.n_confirmed - first
            self.n_reopened += row.check_end(now.n_confirmed - first, ends, pads)
        self.n_slots = now.n_past + now.n_new
        self.latest, self.counted = now, self._counted(now)
        for reading in self.readings:
            reading.extend(now, new)

    def _ends(self) -> tuple[frozenset[int], frozenset[int] | None]:
        """Return the end tokens, and what may follow them in a finished row (None: anything, the end is certain)."""
        if self.end_ids:
            return self.end_ids, None
        config = getattr(self.model, "generation_config", None)
        ends = _as_set(getattr(config, "eos_token_id", None))
        return ends, _as_set(getattr(config, "pad_token_id", None)) | ends

    def _counted(self, now: Pass) -> Tensor | None:
        is_padded = any(first > now.n_past for first in now.first)
        if not is_padded and not any(row.is_done for row in self.rows):
            return None
        device = None if self.model is None else input_device(self.model)
        slots = torch.arange(now.n_past, now.n_past + now.n_new, device=device)
        first = torch.tensor(now.first, device=device)
        is_live = torch.tensor([not row.is_done for row in self.rows], device=device)
        return (slots >= first[:, None]) & is_live[:, None]

    @contextmanager
    def aside(self, rows: Sequence[int]) -> Iterator[None]:
        """Run passes inside the block that do not belong to the run: they ask what the model would say otherwise.

        Each is a pass over some of the run's own rows, from their first token on (or, where nothing reads the rows,
        over a cache of its own). Edits act in it as they do in the run, and count nothing.

        Args:
            rows: The run's row that each row of such a pass is, or begins.
        """
        before = self.latest, self.counted, self._aside, [reading.places for reading in self.readings]
        self._aside = list(rows)
        try:
            yield
        finally:
            self.latest, self.counted, self._aside, places = before
            for reading, own in zip(self.readings, places, strict=True):
                reading.places = own

    def _look_aside(self, ids: Tensor, mask: Any, now: Pass, rows: Sequence[int]) -> None:
        shown = None if now.n_past else _shown(mask, len(ids), now.n_new)
        now.first = [0] * len(ids) if shown is None else [int(n) for n in (~shown).sum(1)]
        self.latest = now
        self.counted = torch.zeros(ids.shape, dtype=torch.bool, device=ids.device)
        for reading in self.readings:
            reading.look(now, rows)

    def watch(self, cache: Any) -> None:
        """Have the cache report when its rows change places."""
        if cache is None or cache is self._cache:
            return
        self._cache, own = cache, cache.reorder_cache
        # some caches make their layers as they are filled
        layers = getattr(cache, "layers", ())
        self._has_windows = not layers or any(getattr(layer, "is_sliding", False) for layer in layers)

        def reorder(beam_idx: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._cache is cache:
                self.reorder(beam_idx)
            return own(beam_idx, *args, **kwargs)

        cache.reorder_cache = reorder

    def reorder(self, order: Tensor) -> None:
        """Put row `order[i]` in the place of row i."""
        self.is_reordered = True
        if not self.rows:
            return
        chosen = order.tolist()
        self._take(chosen)
        self.latest.first = [self.latest.first[i] for i in chosen]


@contextmanager
def following(parts: Anatomy) -> Iterator[Run]:
    """Follow the run of a model inside the block; blocks share one run, and the last to close ends it."""
    base = parts.decoder
    # attached first, which refuses a second thread before it can touch the run of the first
    with attach(parts.model, Handlers({})):
        run = base.__dict__.get(_RUN)
        if run is None:
            run = base.__dict__[_RUN] = _opened(parts)
        run.n_users += 1
        try:
            yield run
        finally:
            run.n_users -= 1
            if run.n_users == 0:
                run.closing.close()
                del base.__dict__[_RUN]


def _opened(parts: Anatomy) -> Run:
    """Return a new run whose hooks are in place until its `closing` is closed."""
    run = Run(parts.model)
    run.closing.enter_context(attach(parts.model, Handlers({}, (run.before,))))
    opened = parts.model.register_forward_pre_hook(run.opened, with_kwargs=True, prepend=True)
    closed = parts.model.register_forward_hook(run.closed, always_call=True)
    run.closing.callback(opened.remove)
    run.closing.callback(closed.remove)
    return run


def current_run(parts: Anatomy) -> Run | None:
    """Return the run that is being followed on a model, or None if no edit or repair is open."""
    run: Run | None = parts.decoder.__dict__.get(_RUN)
    return run


@contextmanager
def aside(parts: Anatomy, rows: Sequence[int]) -> Iterator[None]:
    """Run passes aside of the run that is being followed, if there is one; see `Run.aside`."""
    run = current_run(parts)
    if run is None or not run.rows:
        yield
        return
    with run.aside(rows):
        yield


def _as_set(ids: int | Collection[int] | None) -> frozenset[int]:
    if ids is None:
        return frozenset()
    return frozenset([ids]) if isinstance(ids, int) else frozenset(int(i) for i in ids)


def _by_name(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a forward pass by their names."""
    if not args:
        return kwargs
    bound = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
    return {**bound.get("kwargs", {}), **bound}


def _windows(cache: Any, n_new: int) -> dict[int, int]:
    layers = enumerate(getattr(cache, "layers", ()))
    return {i: int(layer.get_mask_sizes(n_new)[1]) for i, layer in layers if getattr(layer, "is_sliding", False)}


def _shown(mask: Any, n_rows: int, n_new: int, n_past: int = 0) -> Tensor | None:
    """Return which new tokens of a pass are not padding, `[N, T]`; None where all are, or the mask does not say."""
    if isinstance(mask, dict):
        mask = next(iter(mask.values()))
    if not isinstance(mask, Tensor) or mask.shape[-1] < n_past + n_new:
        return None
    new = slice(n_past, n_past + n_new)
    if mask.dim() == 2:
        shown = mask[:, new].bool()
    else:  # a token sees itself, padding does not
        own = mask[:, 0, :, new].diagonal(dim1=1, dim2=2)
        shown = own if own.dtype == torch.bool else own > torch.finfo(own.dtype).min / 2
        shown = shown.expand(n_rows, -1)
    return None if bool(shown.all()) else shown


def _last(shown: Tensor) -> Tensor:
    """Return the index of the last token of each row of `shown`, -1 where there is none."""
    index = torch.arange(shown.shape[1], device=shown.device)
    return torch.where(shown, index, -1).amax(1)


def _is_left_padded(shown: Tensor) -> bool:
    return bool(shown[:, -1].all()) and not bool((shown.long().diff(dim=-1) < 0).any())
