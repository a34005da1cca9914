"""What a model would predict next, had one head been ablated all along: cached beside a decoding run.

1. For each (row, head) that was asked for, keys and values of the row's tokens without the head are kept: a branch.
2. When the pair is asked for again, only the tokens since then are run, several pairs in one pass. Branches of unequal
   length stand side by side as [padding | cached | padding | new], the padding masked; where a layer looks at a window
   of slots, only pairs of equal lengths are joined.
3. Where nothing forbids it, the row itself runs along up to the layers of its silenced heads, whose branches then hold
   only what is above those layers, and take the rest from the row's own cache (`_grown_pass`).
4. The branches together stay below a number of bytes: the one that was asked for longest ago goes first, and starts
   from its first token when it is asked for again. The results do not depend on it.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from chainwright._errors import BadInput
from chainwright.diagnose.heads._sweep.baseline_pass import rounding_tolerance, total_variation
from chainwright.edits import Head, KnockOut
from chainwright.edits._passes import Row
from chainwright.edits.run import aside
from chainwright.models.anatomy import Anatomy
from chainwright.models.caches import is_appending, with_cache
from chainwright.models.seam import widened
from chainwright.repair.run import Cost
from chainwright.repair.tcr._grown_pass import Variant, can_grow, cut_layer, grown_pass
from chainwright.repair.tcr._knockout_switch import Switch

Pair = tuple[int, Head]  # row, head
_Key = tuple[int, Head]  # serial number of the row, head
# new tokens up to which a pass is bound by its fixed cost, so that padding costs nothing
_SHORT = 32
_N_COMPARED = 8  # tokens on which a model's first grown pass is compared with a plain one
_GROWS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether grown passes give what plain ones do, by the decoder that was tried."""


@dataclass
class _Branch:
    """Cache layers of one row by index, `[1, G, t, d]` each, and how many tokens they have seen."""

    layers: dict[int, Any]
    n_tokens: int
    n_bytes: int


class _Job(NamedTuple):
    """A pair, what its branch is kept under, and its tokens, of which `n_cached` are in the branch."""

    pair: Pair
    key: _Key
    ids: Sequence[int]
    n_cached: int

    @property
    def n_new(self) -> int:
        return len(self.ids) - self.n_cached


def new_cache(parts: Anatomy) -> Any:
    """Return an empty cache of the kind that `generate` makes for the model."""
    cache = DynamicCache(config=parts.model.config.get_text_config(decoder=True))
    if not is_appending(cache):
        kinds = sorted({type(layer).__name__ for layer in cache.layers})
        raise BadInput(
            f"This {parts.model.config.model_type} model caches more than keys and values ({', '.join(kinds)}), so "
            "single heads cannot be ablated in its past; use positions='last', or another model."
        )
    return cache


class Branches:
    """The branches of one decoding run.

    Attributes:
        n_hooks: How many hooks on the last layer do nothing in the passes of the branches.
    """

    def __init__(self, parts: Anatomy, switch: Switch, scale: float, max_bytes: int, cost: Cost, *, n_hooks: int = 0):
        self.parts = parts
        self.switch = switch
        self.scale = scale
        self.max_bytes = max_bytes
        self.cost = cost
        self.n_hooks = n_hooks
        self.has_windows = any(getattr(layer, "is_sliding", False) for layer in new_cache(parts).layers)
        self.n_bytes = 0
        self._kept: OrderedDict[_Key, _Branch] = OrderedDict()

    def keep(self, rows: Collection[int]) -> None:
        """Drop the branches of all but some rows, which are named by their serial numbers."""
        for key in [key for key in self._kept if key[0] not in rows]:
            self._drop(key)

    def _drop(self, key: _Key) -> None:
        branch = self._kept.pop(key, None)
        self.n_bytes -= 0 if branch is None else branch.n_bytes

    def logits(
        self,
        pairs: Sequence[Pair],
        contexts: Sequence[Sequence[int]],
        cache: Any = None,
        rows: Sequence[Row] | None = None,
    ) -> Tensor:
        """Return the next-token logits `[len(pairs), V]` of each pair.

        Args:
            pairs: Rows and heads.
            contexts: All tokens of each pair's row.
            cache: The keys and values of the rows themselves, the last token's included; None does without.
            rows: The rows of the run, where they may change places: branches are kept by their serial numbers, and
                extra tokens are counted in them. None takes the numbers in `pairs`.
        """
        grows = self._can_grow(pairs[0], contexts[0], cache)
        keys = [(i if rows is None else rows[i].serial, head) for i, head in pairs]
        jobs = [self._job(*job, grows=grows) for job in zip(pairs, keys, contexts, strict=True)]
        for job in jobs:
            if rows is not None:
                rows[job.pair[0]].n_extra_tokens += job.n_new
        found: dict[Pair, Tensor] = {}
        for group in self._groups(jobs, in_rows=grows):
            found.update(self._grown(group, cache, len(group[0].ids)) if grows else self._run(group))
            self._evict()
        return torch.stack([found[pair] for pair in pairs])

    def _job(self, pair: Pair, key: _Key, ids: Sequence[int], *, grows: bool = False) -> _Job:
        branch = self._kept.get(key)
        if branch is not None and not grows and len(branch.layers) < self.parts.n_layers:
            self._drop(key)
            branch = None
        # the last token is always run: its logits are what is asked for
        is_ahead = branch is not None and branch.n_tokens >= len(ids)
        if is_ahead:
            self._drop(key)
        if grows and pair[1][0] == self.parts.n_layers - 1:  # nothing reads what the head wrote at earlier positions
            return _Job(pair, key, ids, len(ids) - 1)
        return _Job(pair, key, ids, 0 if branch is None or is_ahead else branch.n_tokens)

    def _groups(self, jobs: list[_Job], *, in_rows: bool) -> Iterator[list[_Job]]:
        """Yield jobs that fit into one pass: of equal lengths, or of about as many new tokens; within the memory.

        Args:
            jobs: The jobs.
            in_rows: Those of a pass belong to one row.
        """
        waiting: dict[tuple[int, ...], list[_Job]] = {}
        for job in jobs:
            size = 0 if job.n_new <= _SHORT else job.n_new.bit_length()
            key = (job.n_cached, job.n_new) if self.has_windows else (size, job.pair[0]) if in_rows else (size,)
            waiting.setdefault(key, []).append(job)
        for group in waiting.values():
            longest = max(len(job.ids) for job in group)
            at_once = max(1, self.max_bytes // (longest * self._bytes_per_token()))
            yield from (group[i : i + at_once] for i in range(0, len(group), at_once))

    def _bytes_per_token(self) -> int:
        parts = self.parts
        n_numbers = 2 * parts.n_layers * parts.n_kv_heads * parts.d_head
        return n_numbers * int(parts.model.dtype.itemsize)

    def _run(self, jobs: list[_Job]) -> dict[Pair, Tensor]:
        # jobs of one call may have evicted each other's branches since they were counted
        jobs = [self._job(job.pair, job.key, job.ids) for job in jobs]
        n_cached, n_new = max(j.n_cached for j in jobs), max(j.n_new for j in jobs)
        device = self.parts.device
        ids = torch.zeros(len(jobs), n_new, dtype=torch.long)
        positions = torch.zeros(len(jobs), n_new, dtype=torch.long)
        mask = torch.zeros(len(jobs), n_cached + n_new, dtype=torch.long)
        for i, job in enumerate(jobs):
            ids[i, n_new - job.n_new :] = torch.tensor(job.ids[job.n_cached :])
            positions[i, n_new - job.n_new :] = torch.arange(job.n_cached, len(job.ids))
            mask[i, n_cached - job.n_cached : n_cached] = 1
            mask[i, n_cached + n_new - job.n_new :] = 1
        cache = self._joined(jobs, n_cached)
        heads = KnockOut([{job.pair[1]} for job in jobs], scale=self.scale)
        with aside(self.parts, [job.pair[0] for job in jobs]), self.switch.on(heads), torch.no_grad():
            output = self.parts.model(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                position_ids=positions.to(device),
                **with_cache(self.parts.model, cache),
                use_cache=True,
                logits_to_keep=1,
            )
        self.cost.n_extra_forwards += 1
        self.cost.n_extra_tokens += ids.numel()
        for i, job in enumerate(jobs):
            self._keep(job, i, cache, n_cached)
        logits = widened(output.logits[:, -1])
        return {job.pair: logits[i] for i, job in enumerate(jobs)}

    def _joined(self, jobs: list[_Job], n_cached: int) -> Any:
        """Return a cache in which the jobs' branches are rows, the shorter ones padded in front."""
        cache = new_cache(self.parts)
        if n_cached == 0:
            return cache
        branches = [self._kept.get(job.key) for job in jobs]
        model = next(branch for branch in branches if branch is not None)
        cache.layers = [copy.copy(layer) for layer in model.layers.values()]
        if len(jobs) > 1:
            for at, layer in enumerate(cache.layers):
                own = [None if branch is None else branch.layers[at] for branch in branches]
                layer.keys = _padded([one and one.keys for one in own], layer.keys, self._slots(n_cached))
                layer.values = _padded([one and one.values for one in own], layer.values, self._slots(n_cached))
        return cache

    def _slots(self, n_cached: int) -> int | None:
        """Return how long the joined keys are; None: as long as each branch's, which then are all alike."""
        return None if self.has_windows else n_cached

    def _keep(self, job: _Job, row: int, cache: Any, n_cached: int) -> None:
        layers: dict[int, Any] = {}
        for index, layer in enumerate(cache.layers):
            one = copy.copy(layer)
            if self.has_windows:
                one.keys, one.values = (t[row : row + 1].clone() for t in (layer.keys, layer.values))
            else:
                one.keys, one.values = (_own_slots(t[row : row + 1], job, n_cached) for t in (layer.keys, layer.values))
            layers[index] = one
        self._put(job, layers)

    def _put(self, job: _Job, layers: dict[int, Any]) -> None:
        self._drop(job.key)
        n_bytes = sum(t.numel() * t.element_size() for one in layers.values() for t in (one.keys, one.values))
        self._kept[job.key] = _Branch(layers, len(job.ids), n_bytes)
        self.n_bytes += n_bytes

    def _grown(self, jobs: list[_Job], cache: Any, n_tokens: int) -> dict[Pair, Tensor]:
        """Run jobs of one row, and the row itself along with them; see `_grown_pass`.

        Args:
            jobs: The jobs.
            cache: Keys and values of the rows themselves.
            n_tokens: How many of those are the row's, without padding.
        """
        # jobs of one call may have evicted each other's branches since they were counted
        jobs = sorted((self._job(job.pair, job.key, job.ids, grows=True) for job in jobs), key=lambda job: job.pair[1])
        row, ids, n_known = jobs[0].pair[0], jobs[0].ids, min(job.n_cached for job in jobs)
        branches = [self._kept.get(job.key) for job in jobs]
        variants = [
            Variant(job.pair[1], {} if branch is None else branch.layers)
            for job, branch in zip(jobs, branches, strict=True)
        ]
        own = new_cache(self.parts)
        if n_known:
            first = int(cache.get_seq_length()) - n_tokens
            own.layers = [cut_layer(layer, row, slice(first, first + n_known)) for layer in cache.layers]
        with aside(self.parts, [row]), torch.no_grad():
            grown = grown_pass(self.parts, self.switch.put, ids, n_known, variants, own, self.scale, self.n_hooks)
        self.cost.n_extra_forwards += 1
        self.cost.n_extra_tokens += (len(ids) - n_known) * (len(jobs) + (jobs[-1].pair[1][0] > 0))
        for job, layers in zip(jobs, grown.layers, strict=True):
            self._put(job, layers)
        logits = widened(grown.logits)
        return {job.pair: logits[i] for i, job in enumerate(jobs)}

    def _can_grow(self, pair: Pair, context: Sequence[int], cache: Any) -> bool:
        """Return whether grown passes give what plain ones do, tried once for each model on some tokens of a row."""
        if cache is None or self.has_windows or not can_grow(self.parts):
            return False
        if self.parts.decoder not in _GROWS:
            _GROWS[self.parts.decoder] = self._grows(pair[0], context, cache)
        return _GROWS[self.parts.decoder]

    def _grows(self, row: int, context: Sequence[int], cache: Any) -> bool:
        plain, grown = (
            Branches(self.parts, self.switch, 0.0, self.max_bytes, Cost(), n_hooks=self.n_hooks) for _ in range(2)
        )
        pairs = [(row, (layer, 0)) for layer in sorted({0, self.parts.n_layers // 2, self.parts.n_layers - 1})]
        off = []
        for n in sorted({max(1, min(len(context), _N_COMPARED) - 2), min(len(context), _N_COMPARED)}):
            jobs = [plain._job(pair, pair, context[:n]) for pair in pairs]
            want = plain._run(jobs)
            try:
                trial = [grown._job(pair, pair, context[:n], grows=True) for pair in pairs]
                got = grown._grown(trial, cache, len(context))
            except RuntimeError:  # a decoder that checks how many rows come out of its layers
                return False
            off += [total_variation(got[pair][None], want[pair][None]) for pair in pairs]
        return max(off) <= rounding_tolerance(self.parts)

    def _evict(self) -> None:
        """Drop the branches that were asked for longest ago until the rest fits."""
        while self.n_bytes > self.max_bytes and self._kept:
            self._drop(next(iter(self._kept)))


def _padded(tensors: list[Tensor | None], like: Tensor, n_slots: int | None) -> Tensor:
    n_slots = like.shape[-2] if n_slots is None else n_slots
    out = like.new_zeros(len(tensors), like.shape[1], n_slots, like.shape[3])
    for i, tensor in enumerate(tensors):
        if tensor is not None:
            out[i, :, n_slots - tensor.shape[-2] :] = tensor[0]
    return out


def _own_slots(row: Tensor, job: _Job, n_cached: int) -> Tensor:
    """Return a row's keys or values without its padding, in memory of its own."""
    end = row.shape[-2]
    cached = row[:, :, n_cached - job.n_cached : n_cached]
    return torch.cat([cached, row[:, :, end - job.n_new :]], dim=-2)
