"""Chains of 13 folder operations, judged whole: `chainwright tasks clf --hops 13` shows one."""

from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import FieldSpec, json_dataset
from inspect_ai.scorer import CORRECT, INCORRECT, Score, Scorer, Target, accuracy, scorer, stderr
from inspect_ai.solver import TaskState, generate

PROBLEMS = Path(__file__).parents[1] / "lm_eval" / "clf_13_hops.jsonl"


@task
def clf_13_hops() -> Task:
    """Return the task: its problems are those of the example for lm-evaluation-harness."""
    problems = json_dataset(str(PROBLEMS), FieldSpec(input="question", target="answer"))
    return Task(dataset=problems, solver=generate(max_tokens=160), scorer=same_text())


@scorer(metrics=[accuracy(), stderr()])
def same_text() -> Scorer:
    """Return a scorer for which a response is right if it is the gold chain, to the last character."""

    async def score(state: TaskState, target: Target) -> Score:
        is_right = state.output.completion == target.text
        return Score(value=CORRECT if is_right else INCORRECT, answer=state.output.completion)

    return score
