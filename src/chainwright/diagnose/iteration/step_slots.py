"""The steps of a chain of thought as token positions: each step's input, its result, and the positions that emit it.

1. A step is a line of the gold chain (or a hop, where a line has several) that ends with a result. Lines before the
   first step that have a single value, such as a start, are not steps, but the first step continues from their value.
2. A step's input is in the question. Most chains restate it first: those leading recall slots, taken column by column,
   are searched for in the question in order, so that a name that occurs twice is found at the right place. A problem
   whose chain does not restate its inputs gives their places in `facts["inputs"]`: a list of [start, end] characters
   of the prompt, one per hop.
3. The position that emits a token is the one before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from chainwright import tasks
from chainwright._errors import BadInput
from chainwright.tasks import Problem
from chainwright.traces import Trace
from chainwright.traces.offsets import Tokenizer, TokenOffsets, token_offsets
from chainwright.traces.segments import Span

_QUESTION = "Problem:\n"


@dataclass(frozen=True)
class Step:
    """One step of a trace; all tuples are token positions.

    Attributes:
        hop: Its hop, from 0.
        result: The tokens of its result.
        restated: The tokens that restate its input; empty where the chain does not.
        inputs: The tokens of its input in the question.
        previous: The tokens of the result before it; empty for a first step without a start value.
    """

    hop: int
    result: tuple[int, ...]
    restated: tuple[int, ...]
    inputs: tuple[int, ...]
    previous: tuple[int, ...]

    @property
    def emits_result(self) -> tuple[int, ...]:
        """Return the positions whose next token is part of the result."""
        return tuple(i - 1 for i in self.result)

    @property
    def emits_restated(self) -> tuple[int, ...]:
        """Return the positions whose next token is part of the restated input."""
        return tuple(i - 1 for i in self.restated)


@dataclass(frozen=True)
class _Group:
    """The slots of one line and hop, as indices into `problem.slots`."""

    hop: int
    slots: tuple[int, ...]


def trace_steps(tokenizer: Tokenizer, trace: Trace) -> list[Step]:
    """Return the steps of a trace up to its first error.

    Raises:
        BadInput: The trace has no slot map, or its question is not in its tokens.
    """
    groups, inputs = _located(tokenizer, trace)
    return _steps(trace, groups, inputs)


@dataclass(frozen=True)
class SlotMarks:
    """The inputs of a slot's step, as token positions.

    Attributes:
        hop: The slot's hop, from 0.
        inputs: The tokens of the step's input in the question.
        previous: The tokens of the result before the step; empty for a first step without a start value.
        is_result: Whether the slot is the step's result.
    """

    hop: int
    inputs: tuple[int, ...]
    previous: tuple[int, ...]
    is_result: bool


def slot_marks(tokenizer: Tokenizer, trace: Trace) -> dict[int, SlotMarks]:
    """Return the marks of each slot of a trace, by its index in `problem.slots`, up to and with the first wrong one.

    Slots of lines that are not steps are omitted.

    Raises:
        BadInput: As `trace_steps`.
    """
    groups, inputs = _located(tokenizer, trace)
    tokens = {s.slot: tuple(range(s.start, s.end)) for s in trace.slots if s.is_right}
    marks: dict[int, SlotMarks] = {}
    previous: tuple[int, ...] = ()
    for group, parts in zip(groups, inputs, strict=True):
        of_step = tuple(i for part in parts for i in part)
        if of_step:
            marks |= {slot: SlotMarks(group.hop, of_step, previous, slot == group.slots[-1]) for slot in group.slots}
        previous = tokens.get(group.slots[-1], ())
        if not previous:
            break
    return marks


def _located(tokenizer: Tokenizer, trace: Trace) -> tuple[list[_Group], list[list[tuple[int, ...]]]]:
    """Return the groups of slots of a trace's problem, and the tokens of each group's inputs in the question."""
    problem = trace.problem
    if problem is None or not problem.slots:
        raise BadInput(
            "This trace has no slot map, so its steps are unknown; make it with a problem "
            "(generate(model, tokenizer, problems), or Trace.from_text(..., problem=problem))."
        )
    groups = _groups(problem)
    inputs = _inputs(problem, groups)
    question = token_offsets(tokenizer, trace.input_ids[: trace.response_start].tolist(), keep_markers=True)
    base = question.text.rfind(problem.prompt.strip())
    if base < 0:
        raise BadInput(
            f"The question of a {problem.task} trace is not in its first {trace.response_start} tokens; was the trace "
            "made with another tokenizer?"
        )
    base -= len(problem.prompt) - len(problem.prompt.lstrip())
    return groups, [[_tokens(question, base, span) for span in spans] for spans in inputs]


def _steps(trace: Trace, groups: Sequence[_Group], inputs: Sequence[list[tuple[int, ...]]]) -> list[Step]:
    """Return a step for each group with a known input, up to the first group without a right result."""
    tokens = {s.slot: tuple(range(s.start, s.end)) for s in trace.slots if s.is_right}
    steps, previous = [], tuple[int, ...]()
    for group, parts in zip(groups, inputs, strict=True):
        result = tokens.get(group.slots[-1], ())
        if not result:
            break
        if parts:
            restated = tuple(i for slot in _leading(trace.problem, group) for i in tokens.get(slot, ()))
            of_step = tuple(i for part in parts for i in part)
            steps.append(Step(group.hop, result, restated, of_step, previous))
        previous = result
    return steps


def _groups(problem: Problem) -> list[_Group]:
    """Return the slots of each line and hop before the closing lines."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, slot in enumerate(problem.slots):
        if slot.hop < problem.hops:
            groups.setdefault((problem.chain.count("\n", 0, slot.start), slot.hop), []).append(i)
    return [_Group(hop, tuple(slots)) for (_, hop), slots in groups.items()]


def _leading(problem: Problem | None, group: _Group) -> tuple[int, ...]:
    """Return the first slots of a group, those that restate its input."""
    assert problem is not None
    if len(group.slots) < 2:
        return ()
    types = {i: problem.slots[i].error_type for i in group.slots[:-1]}
    if problem.task == "mdm":  # the multiplicand is the same at every step, so the digit alone is the step's input
        return tuple(i for i, error_type in types.items() if error_type == "digit")[:1]
    return tuple(takewhile(lambda i: tasks.family(problem.task, types[i]) == "recall", types))


def _inputs(problem: Problem, groups: Sequence[_Group]) -> list[list[Span]]:
    """Return the spans of each group's input in the prompt; an empty list for groups that are not steps."""
    if "inputs" in problem.facts:
        by_hop = [Span(*pair) for pair in problem.facts["inputs"]]
        return [[by_hop[group.hop]] for group in groups]
    if problem.task == "mdm":
        return [[span] for span in _digits_from_the_end(problem, len(groups))]
    start = problem.prompt.rfind(_QUESTION) + len(_QUESTION) if _QUESTION in problem.prompt else 0
    end = problem.prompt.find("\n\nSolution", start)
    end = len(problem.prompt) if end < 0 else end
    # a question may begin with a program, which has none of this problem's inputs
    start = max(start, problem.prompt.rfind("\n\n", start, end) + 2)
    cursors: dict[int, int] = {}
    return [_columns(problem, group, cursors, start, end) for group in groups]


def _digits_from_the_end(problem: Problem, n: int) -> list[Span]:
    """Return the spans of the multiplier's digits, ones first."""
    digits = [match.start() for match in re.finditer(r"\d", problem.prompt)]
    return [Span(i, i + 1) for i in reversed(digits[-n:])]


def _columns(problem: Problem, group: _Group, cursors: dict[int, int], start: int, end: int) -> list[Span]:
    """Return the spans of a group's restated values in the question, and advance each column's cursor past them."""
    spans, after = [], start
    for column, i in enumerate(_leading(problem, group)):
        value = re.escape(problem.slots[i].value)
        pattern = re.compile(rf"(?<![\w.]){value}(?![\w/])")
        match = pattern.search(problem.prompt, max(cursors.get(column, start), after), end)
        if match is not None:
            spans.append(Span(match.start(), match.end()))
            cursors[column] = after = match.end()
    return spans


def _tokens(question: TokenOffsets, base: int, span: Span) -> tuple[int, ...]:
    """Return the tokens that contain some character of a span of the prompt."""
    start, end = base + span.start, base + span.end
    return tuple(i for i, offset in enumerate(question.offsets) if offset.start < end and offset.end > start)
