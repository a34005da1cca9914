"""What `chainwright flow` measures: a prompt, questions of a made-up world, or the slots of chains of thought.

Each way returns findings, in the order in which the report shows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import scipy
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright._finding import Finding
from chainwright.decode.run import generate
from chainwright.diagnose.contexts import correct_contexts, erroneous_contexts
from chainwright.diagnose.errors import first_errors
from chainwright.diagnose.flow.attribution import SpanMode, logit_flow
from chainwright.diagnose.flow.contrast import flow_contrast
from chainwright.diagnose.flow.prompts import flow_prompt, hop_marks, marked_prompt, problem_queries
from chainwright.diagnose.flow.slots import SLOT_MARKS, result_queries, slot_queries
from chainwright.diagnose.flow.stages import FlowStages, MarkedQuery, flow_stages
from chainwright.lab.knowledge import answers, recipe_for
from chainwright.models.placement import input_device
from chainwright.repair.back_attention.repair import BackAttention
from chainwright.repair.base import Repair
from chainwright.tasks import Problem
from chainwright.tasks.base import UNPARSED
from chainwright.tasks.knowledge import Order, World, questions
from chainwright.traces import Trace

WORLD_TASKS = ("one-hop", "two-hop")
_MOST_ASKED = 2000
_RIGHT, _WRONG = "answered right", "answered wrong, the right answer"
_WRITTEN = ", first errors, what was written"


@dataclass(frozen=True)
class PromptAsked:
    """A prompt to follow: its text, the target, what to compare with, and the words to mark."""

    prompt: str
    target: str
    against: str | None = None
    entity: str | None = None
    relation: str | None = None
    span: SpanMode | None = None


def attached(model: PreTrainedModel, repair: Repair | None) -> AbstractContextManager[Any]:
    """Return a context in which the model is followed with a back attention, or as it is.

    Raises:
        BadInput: Another kind of repair, which decides while a response is decoded, or one for another model.
    """
    if repair is None:
        return nullcontext()
    if not isinstance(repair, BackAttention):
        raise BadInput(
            f"A flow is read in one pass, so only a BackAttention can be attached; got a {type(repair).__name__}, "
            "which acts while a response is decoded."
        )
    return repair.attached(model)


def prompt_flow(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: PromptAsked) -> list[Finding]:
    """Return the flow of a prompt's target, and its stages if words are marked.

    Raises:
        BadInput: As `flow_prompt` and `marked_prompt`.
    """
    prompt = flow_prompt(tokenizer, asked.prompt, asked.target, against=asked.against, span=asked.span)
    has_marks = asked.entity is not None or asked.relation is not None
    query = marked_prompt(tokenizer, prompt, entity=asked.entity, relation=asked.relation) if has_marks else None
    device = input_device(model)
    found: list[Finding] = [
        logit_flow(
            model, prompt.input_ids.to(device), prompt.target_ids, conflict_id=prompt.conflict_id, tokenizer=tokenizer,
            span="sum" if len(prompt.target_ids) > 1 else None, norm="frozen",
        )
    ]  # fmt: skip
    if query is not None:
        found.append(flow_stages(model, [_moved(query, device)], name=asked.prompt))
    return found


def trace_flow(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, trace: Trace, position: int | None = None
) -> list[Finding]:
    """Return the flow of a token of a response, given everything before it in the trace.

    Args:
        model: The model that reads the trace.
        tokenizer: Its tokenizer.
        trace: The trace.
        position: The token's place in the trace, from 0, as reports count; None takes the first error.

    Raises:
        BadInput: The place is not in the response, or none is named and no first error is known.
    """
    place = trace.first_error_position if position is None else position
    if place is None:
        raise BadInput("No first error is known in this trace; name the token to follow with --token.")
    if not trace.response_start <= place < len(trace):
        raise BadInput(f"--token must be in the response, {trace.response_start} to {len(trace) - 1}; got {place}.")
    context = trace.input_ids[:place].to(input_device(model))
    return [logit_flow(model, context, int(trace.input_ids[place]), tokenizer=tokenizer, norm="frozen")]


def _moved(query: MarkedQuery, device: Any) -> MarkedQuery:
    ids: Tensor = query.input_ids.to(device)
    return MarkedQuery(ids, query.token_id, query.entity, query.relation, query.conflict_id)


def world_flow(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    task: str,
    *,
    order: Order | None,
    n: int,
    seed: int,
) -> list[Finding]:
    """Return stages of questions of a model's made-up world, one flow, and the contrast of right and other answers.

    Args:
        model: A model that `chainwright train world` made.
        tokenizer: Its tokenizer.
        name: Its bundled name or folder, whose recipe says which world it is of.
        task: "one-hop" or "two-hop".
        order: How questions are worded; None for the wording that the model was trained on.
        n: Questions that are followed, of each group.
        seed: Decides which.

    Raises:
        BadInput: The model is not one of a made-up world, or `n` is below 1.
    """
    _check_n(n)
    recipe = recipe_for(name)
    world, order = recipe.world, order or recipe.order
    asked = _drawn(world, task, order, seed)
    said = answers(model, tokenizer, asked)
    groups = _groups(tokenizer, asked, said, n, input_device(model))
    first = next(iter(groups.values()))[0]
    found: list[Finding] = [
        logit_flow(
            model, first.input_ids, first.token_id, conflict_id=first.conflict_id, tokenizer=tokenizer, norm="frozen"
        )
    ]
    n_right = sum(p.answer == s for p, s in zip(asked, said, strict=True))
    share = f"{task}, {order} order, {n_right} of {len(asked)} right"
    marks = hop_marks(asked[0].hops)
    found += [flow_stages(model, each, name=f"{share}; {group}", marks=marks) for group, each in groups.items()]
    compared = {"answered right": groups.get(_RIGHT, []), "answered wrong": groups.get(_WRONG, [])}
    if any(q.conflict_id is not None for queries in compared.values() for q in queries):
        names = _position_names(tokenizer, asked[0])
        rival = "e2 (answered right) or over what was said (answered wrong)" if task == "two-hop" else "what was said"
        found.append(flow_contrast(model, compared, names, f"the right answer over {rival}"))
    return found


def _drawn(world: World, task: str, order: Order, seed: int) -> list[Problem]:
    """Return every question of a world, at most 2000 of them, in an order of their own."""
    every: list[Any] = list(world.facts if task == "one-hop" else world.compositions)
    Random(f"flow/{seed}").shuffle(every)
    return questions(world, every[:_MOST_ASKED], order)


def _groups(
    tokenizer: PreTrainedTokenizerBase, asked: Sequence[Problem], said: Sequence[str], n: int, device: Any
) -> dict[str, list[MarkedQuery]]:
    """Return at most `n` queries of each kind: right answers; of wrong ones what was said, and what was right."""
    right = [(p, p.answer, p.facts["e2"]) for p, s in zip(asked, said, strict=True) if p.answer == s]
    wrong = [(p, s, p.answer) for p, s in zip(asked, said, strict=True) if p.answer != s]
    groups = {
        _RIGHT: right[:n],
        "answered wrong, what it said": wrong[:n],
        _WRONG: [(p, answer, said) for p, said, answer in wrong[:n]],
    }
    return {
        group: [_moved(q, device) for q in problem_queries(tokenizer, *map(list, zip(*rows, strict=True)))]
        for group, rows in groups.items()
        if rows
    }


def _position_names(tokenizer: PreTrainedTokenizerBase, problem: Problem) -> list[str]:
    """Return the name of each position of a question: e1, r1 and r2 by these names, other tokens by their own."""
    roles = {problem.facts[name]: name for name in ("e1", "r1", "r2") if name in problem.facts}
    return [roles.get(word, word) for word in tokenizer.convert_ids_to_tokens(tokenizer(problem.prompt)["input_ids"])]


def chain_flow(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], *, n: int, progress: bool
) -> list[Finding]:
    """Return the stages at slots of chains of thought, task by task, and one flow at a first error.

    Of each task: right results of steps; first errors of its commonest type (the wrong token that was written, and the
    right one), and right slots of that kind at like hops.

    Args:
        model: A Transformers decoder.
        tokenizer: Its tokenizer.
        problems: Problems of tasks with a hop dial.
        n: Queries of each kind.
        progress: Show the progress of the generation.

    Raises:
        BadInput: `n` is below 1, or no slot of any response could be marked.
    """
    _check_n(n)
    traces = generate(model, tokenizer, list(problems), progress=progress)
    stages: list[Finding] = []
    flows: list[Finding] = []
    for task in dict.fromkeys(p.task for p in problems):
        of_task = [t for t in traces if t.problem is not None and t.problem.task == task]
        groups = {f"{task}; right results": result_queries(tokenizer, of_task, n)} | _at_errors(
            tokenizer, of_task, task, n
        )
        for name, queries in groups.items():
            if not queries:
                continue
            on_device = [_moved(query, input_device(model)) for query in queries]
            stages.append(flow_stages(model, on_device, name=name, marks=SLOT_MARKS))
            if on_device[0].conflict_id is not None and not flows:
                one = on_device[0]
                flows.append(
                    logit_flow(
                        model,
                        one.input_ids,
                        one.token_id,
                        conflict_id=one.conflict_id,
                        tokenizer=tokenizer,
                        norm="frozen",
                    )
                )
    if not stages:
        raise BadInput(
            "No response has a slot whose step and result before it could be marked; give more problems or more hops."
        )
    return [*flows, *stages]


def _at_errors(
    tokenizer: PreTrainedTokenizerBase, traces: Sequence[Trace], task: str, n: int
) -> dict[str, list[MarkedQuery]]:
    """Return queries at first errors of the commonest type that has some with marks, and at right slots like them."""
    rows = sorted(first_errors(traces).by_task, key=lambda row: -row["n"])
    for kind in [row["error_type"] for row in rows if row["error_type"] != UNPARSED]:
        try:
            wrong = erroneous_contexts(tokenizer, traces, task, kind, n)
        except BadInput:  # the right token is unknown at all of them
            continue
        said = slot_queries(tokenizer, traces, wrong)
        if said:
            return {
                f"{task}; {kind}, right": slot_queries(tokenizer, traces, correct_contexts(traces, wrong, n)),
                f"{task}; {kind}{_WRITTEN}": said,
                f"{task}; {kind}, first errors, the right token": slot_queries(
                    tokenizer, traces, wrong, follow="right"
                ),
            }
    return {}


def _check_n(n: int) -> None:
    if n < 1:
        raise BadInput(f"-n must be at least 1 query of each kind; got {n}.")


def stage_tables(found: Sequence[Finding]) -> dict[str, list[dict[str, Any]]]:
    """Return a row for each stage table (`FlowStages.line`), by the part of its name before the first "; "."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for stage in found:
        if isinstance(stage, FlowStages):
            title, _, name = stage.name.partition("; ")
            tables.setdefault(title, []).append({"queries": name or "marked", **stage.line()})
    return tables


def error_lines(found: Sequence[Finding]) -> list[str]:
    """Return a line for each task: how much first errors draw on the input of their step, and right slots like them."""
    named = {stage.name: stage for stage in found if isinstance(stage, FlowStages)}
    lines = []
    for name, wrong in named.items():
        slot = name.removesuffix(_WRITTEN)
        if slot == name or f"{slot}, right" not in named:
            continue
        right = named[f"{slot}, right"]
        p = scipy.stats.mannwhitneyu(right.first_shares.numpy(), wrong.first_shares.numpy()).pvalue
        lines.append(
            f"{slot}: A and B have a median share of {float(right.first_shares.median()):.1%} in {right.n_queries} "
            f"right slots and of {float(wrong.first_shares.median()):.1%} in {wrong.n_queries} first errors "
            f"(Mann-Whitney p = {p:.2g}, not corrected)."
        )
    return lines


def save_flow(found: Sequence[Finding], folder: Path, *, overwrite: bool) -> Path:
    """Write each finding into a folder of its own, and return where their report belongs.

    Raises:
        BadInput: Findings are there already and `overwrite` is off, or the place cannot be written.
    """
    numbers: dict[str, int] = {}
    for one in found:
        kind = {"LogitFlow": "flow", "FlowStages": "stages"}.get(type(one).__name__, "contrast")
        numbers[kind] = numbers.get(kind, -1) + 1
        one.save(folder / f"{kind}-{numbers[kind]}", overwrite=overwrite)
    return folder / "report.html"
