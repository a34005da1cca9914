"""Sequences of iterative tasks: copy, parity and polynomial iteration, drawn on the fly, with some never trained on.

1. A task is a table of transitions: `s_t = table[s_(t-1), x_t]`, with `s_1 = x_1`. Copy ignores the state, parity adds
   modulo 2, the polynomial task evaluates any polynomial modulo any number over any alphabet of inputs.
2. A sequence is `[task] x_1..x_n [end of input] s_1..s_n [end]`; without a chain of thought only `s_n` is between
   both ends. Every recipe has the same words for the same modulus and alphabet, so that a model can be trained further
   on another task.
3. Whether a sequence is held out is decided by its inputs alone: a hash of them. For lengths with few sequences
   exactly the asked share is held out, rounded down, so length 1 of a binary task has none.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, Protocol

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from chainwright._errors import BadInput, unknown_name
from chainwright.lab.polynomials import parse_polynomial, transitions
from chainwright.tasks import Problem, Slot

TASKS = ("copy", "parity", "polynomial")
PAD, END, END_OF_INPUT = "<pad>", "<end>", "="
IGNORED = -100
_FIRST_VALUE = 3 + len(TASKS)
_ENUMERATED = 4096  # lengths with at most this many sequences are split exactly
_MULTIPLIER, _INCREMENT, _FINALIZER = 6364136223846793005, 1442695040888963407, -49064778989728563


class Rules(Protocol):
    """What decides the tasks and their sequences; `IterationConfig` has it."""

    @property
    def polynomial(self) -> str:
        """The polynomial in s and x."""

    @property
    def modulus(self) -> int:
        """Number of states of the polynomial task."""

    @property
    def alphabet(self) -> int:
        """Number of inputs of the polynomial task; 0 for as many as states."""

    @property
    def chain_of_thought(self) -> bool:
        """Whether every state is written, or the last alone."""

    @property
    def held_out_share(self) -> float:
        """Share of the sequences that is never trained on."""


@dataclass(frozen=True)
class IterationTask:
    """One task: `table[s, x]` is the state after state s and input x, `alphabet` the number of inputs."""

    name: str
    table: Tensor

    @property
    def alphabet(self) -> int:
        """Return the number of inputs."""
        return int(self.table.shape[1])

    def states(self, inputs: Tensor) -> Tensor:
        """Return s_1..s_n for inputs `[N, n]`; the first state is the first input, modulo the number of states."""
        found = [inputs[:, 0] % len(self.table)]
        for t in range(1, inputs.shape[1]):
            found.append(self.table[found[-1], inputs[:, t]])
        return torch.stack(found, dim=1)


class Sequences(NamedTuple):
    """Right-padded token ids and labels `[N, T]`, with each row's length and index into `TASKS`, `[N]`."""

    input_ids: Tensor
    labels: Tensor
    lengths: Tensor
    tasks: Tensor


def task_of(rules: Rules, name: str) -> IterationTask:
    """Return a task by name.

    Raises:
        BadInput: An unknown name, fewer than two states or inputs, or a polynomial that cannot be iterated.
    """
    if name == "copy":
        return IterationTask(name, torch.tensor([[0, 1], [0, 1]]))
    if name == "parity":
        return IterationTask(name, torch.tensor([[0, 1], [1, 0]]))
    if name != "polynomial":
        raise unknown_name("iteration task", name, TASKS)
    alphabet = n_inputs(rules)
    for what, size in (("modulus", rules.modulus), ("alphabet", alphabet)):
        if size < 2:
            raise BadInput(f"The {what} of the polynomial task must be at least 2; got {size}.")
    return IterationTask(name, torch.tensor(transitions(parse_polynomial(rules.polynomial), rules.modulus, alphabet)))


def n_inputs(rules: Rules) -> int:
    """Return the number of inputs of the polynomial task."""
    return rules.alphabet or rules.modulus


def vocabulary(rules: Rules) -> list[str]:
    """Return every word, in the order of the ids: the same for all tasks of a modulus and alphabet."""
    return [PAD, END, END_OF_INPUT, *TASKS, *(str(i) for i in range(max(2, rules.modulus, n_inputs(rules))))]


def iteration_tokenizer(rules: Rules, max_tokens: int) -> PreTrainedTokenizerFast:
    """Return the tokenizer of these words, which are separated by spaces."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary(rules))}, unk_token=PAD))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.decoder = decoders.Sequence([decoders.Replace(Regex("$"), " "), decoders.Fuse(), decoders.Strip(" ", 0, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        padding_side="left",
        model_max_length=max_tokens,
        clean_up_tokenization_spaces=False,
    )


def n_tokens(length: int, *, chain_of_thought: bool) -> int:
    """Return how many tokens a sequence of `length` inputs has."""
    return length + 3 + (length if chain_of_thought else 1)


def training_batch(
    rules: Rules, weights: Mapping[str, float], lengths: tuple[int, int], size: int, key: str
) -> Sequences:
    """Return sequences to train on, a function of the arguments alone; none of them is held out.

    Args:
        rules: The tasks.
        weights: How often each task is drawn, relative to the others.
        lengths: Shortest and longest, uniform in between.
        size: Number of sequences.
        key: Any text; another one gives other sequences.
    """
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big"))
    tasks = {TASKS.index(name): task_of(rules, name) for name in weights}
    share = torch.tensor([float(weights.get(name, 0.0)) for name in TASKS])
    which = torch.multinomial(share, size, replacement=True, generator=generator)
    low, high = lengths
    length = torch.randint(low, high + 1, (size,), generator=generator)
    alphabet = torch.tensor([tasks[i].alphabet if i in tasks else 1 for i in range(len(TASKS))])[which]
    limits = torch.zeros(len(TASKS), high + 1, dtype=torch.double)
    for i, task in tasks.items():
        limits[i] = torch.tensor(
            [_limit(task.alphabet, n, rules.held_out_share) for n in range(high + 1)], dtype=torch.double
        )
    limit = limits[which, length]
    inputs = torch.zeros(size, high, dtype=torch.long)
    open_rows = torch.ones(size, dtype=torch.bool)
    while bool(open_rows.any()):
        drawn = (torch.rand(size, high, generator=generator, dtype=torch.double) * alphabet[:, None]).long()
        inputs = torch.where(open_rows[:, None], drawn, inputs)
        open_rows = _keys(inputs, length) < limit
    return _written(rules, tasks, which, length, inputs)


def held_out(rules: Rules, name: str, length: int, n: int, seed: int = 0) -> Sequences:
    """Return up to `n` different sequences of one task and length that are never trained on."""
    task = task_of(rules, name)
    inputs = _held_out_inputs(task.alphabet, length, n, rules.held_out_share, seed)
    which, lengths = (torch.full((len(inputs),), value) for value in (TASKS.index(name), length))
    return _written(rules, {TASKS.index(name): task}, which, lengths, inputs)


def is_held_out(rules: Rules, name: str, inputs: Sequence[int]) -> bool:
    """Say whether the sequence with these inputs is never trained on."""
    limit = _limit(task_of(rules, name).alphabet, len(inputs), rules.held_out_share)
    return float(_keys(torch.tensor([list(inputs)]), torch.tensor([len(inputs)]))[0]) < limit


def iteration_problems(rules: Rules, name: str, length: int, n: int, seed: int = 0) -> list[Problem]:
    """Return held-out sequences as problems with a slot for every state, for instruments that work on traces."""
    task = task_of(rules, name)
    inputs = _held_out_inputs(task.alphabet, length, n, rules.held_out_share, seed)
    states = task.states(inputs) if len(inputs) else inputs
    return [_problem(name, x, s) for x, s in zip(inputs.tolist(), states.tolist(), strict=True)]


def _problem(name: str, inputs: list[int], states: list[int]) -> Problem:
    slots, at = [], 0
    for hop, state in enumerate(states):
        slots.append(Slot(at, at + len(str(state)), "state", hop, str(state)))
        at += len(str(state)) + 1
    places, after = [], len(name) + 1
    for value in inputs:
        places.append([after, after + len(str(value))])
        after += len(str(value)) + 1
    return Problem(
        f"iteration {name}",
        len(inputs),
        f"{name} {' '.join(map(str, inputs))} {END_OF_INPUT}",
        " ".join(map(str, states)),
        str(states[-1]),
        tuple(slots),
        facts={"inputs": places},
    )


def _held_out_inputs(alphabet: int, length: int, n: int, share: float, seed: int) -> Tensor:
    """Return `[n or fewer, length]` different inputs that are held out."""
    limit = _limit(alphabet, length, share)
    generator = torch.Generator().manual_seed(seed)
    if alphabet**length <= _ENUMERATED:
        every = _every(alphabet, length)
        found = every[_key_of(every) < limit]
        return found[torch.randperm(len(found), generator=generator)[:n]]
    found = torch.zeros(0, length, dtype=torch.long)
    while len(found) < n and limit > 0:
        drawn = torch.randint(0, alphabet, (max(64, 4 * n), length), generator=generator)
        found = torch.cat([found, drawn[_key_of(drawn) < limit]])
        _, first = _unique_rows(found)
        found = found[first]
    return found[:n]


def _unique_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the different rows, and the index of each one's first appearance, in that order."""
    unique, which = torch.unique(rows, dim=0, return_inverse=True)
    first = torch.full((len(unique),), len(rows)).scatter_reduce(0, which, torch.arange(len(rows)), "amin")
    return unique, first.sort().values


@cache
def _limit(alphabet: int, length: int, share: float) -> float:
    """Return the number below which the key of a held-out sequence lies."""
    if length < 1 or alphabet**length > _ENUMERATED:
        return share
    keys = _key_of(_every(alphabet, length)).sort().values
    n_held_out = int(share * len(keys))
    return float(keys[n_held_out]) if n_held_out < len(keys) else 1.0


def _every(alphabet: int, length: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(alphabet), repeat=length)))


def _key_of(inputs: Tensor) -> Tensor:
    return _keys(inputs, torch.full((len(inputs),), inputs.shape[1]))


def _keys(inputs: Tensor, lengths: Tensor) -> Tensor:
    """Return a number in [0, 1) for each row, `[N]`, from its first `lengths` inputs; the same everywhere."""
    key = lengths.clone()
    for t in range(inputs.shape[1]):  # int64 arithmetic wraps around, which is what a hash wants
        key = torch.where(t < lengths, key * _MULTIPLIER + inputs[:, t] + _INCREMENT, key)
    for _ in range(2):
        key = (key ^ (key >> 33)) * _FINALIZER
    return ((key >> 11) & (2**53 - 1)).double() / 2**53


def _written(
    rules: Rules, tasks: Mapping[int, IterationTask], which: Tensor, lengths: Tensor, inputs: Tensor
) -> Sequences:
    """Return the tokens and labels of rows of inputs."""
    states = torch.zeros_like(inputs)
    for i, task in tasks.items():
        states[which == i] = task.states(inputs[which == i])
    n, at = lengths[:, None], torch.arange(n_tokens(inputs.shape[1], chain_of_thought=rules.chain_of_thought))[None]
    n_written = n if rules.chain_of_thought else torch.ones_like(n)
    state_at = (at - n - 2) + (n - n_written)
    ids = torch.zeros(len(inputs), at.shape[1], dtype=torch.long)
    if not len(inputs):
        return Sequences(ids, ids, lengths, which)
    value = _FIRST_VALUE + inputs.gather(1, (at - 1).clamp(0, inputs.shape[1] - 1).expand(len(inputs), -1))
    ids = torch.where((at >= 1) & (at <= n), value, ids)
    ids = torch.where(at == 0, 3 + which[:, None], ids)
    ids = torch.where(at == n + 1, 2, ids)
    value = _FIRST_VALUE + states.gather(1, state_at.clamp(0, states.shape[1] - 1))
    is_state = (at >= n + 2) & (at < n + 2 + n_written)
    ids = torch.where(is_state, value, ids)
    is_end = at == n + 2 + n_written
    ids = torch.where(is_end, 1, ids)
    return Sequences(ids, torch.where(is_state | is_end, ids, IGNORED), lengths, which)
