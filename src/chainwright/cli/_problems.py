"""A problem set on the command line: the options that every command with problems of tasks takes as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chainwright._errors import BadInput
from chainwright.cli._command import ConfigOptions, Values

if TYPE_CHECKING:
    from chainwright.tasks.problem_sets import ProblemSource

PROBLEM_SET = ConfigOptions(
    "chainwright.tasks.problem_sets.options:ProblemOptions",
    "source",
    "split",
    "subset",
    "revision",
    "data_files",
    "fields",
    "kind",
    "checker",
    "shuffle_choices",
    "skip_bad",
    flags={"source": "--problems", "revision": "--problems-revision", "fields": "--field"},
)


def problem_source(values: Values, *, n: int | None = None, seed: int | None = None) -> ProblemSource | None:
    """Return the source that the options of `PROBLEM_SET` name; None without `--problems`.

    Args:
        values: What the command received for `PROBLEM_SET`.
        n: Number of problems; None takes all.
        seed: Draws a random sample; None takes the first ones.

    Raises:
        BadInput: Another of these options is used without `--problems`, or one does not fit.
    """
    from chainwright.tasks.problem_sets.options import ProblemOptions

    used = {
        name: value for name, value in values.items() if value not in ([], ProblemOptions.model_fields[name].default)
    }
    if "source" not in used and used:
        flags = ", ".join(PROBLEM_SET.flags.get(name, f"--{name.replace('_', '-')}") for name in used)
        raise BadInput(f"{flags} needs a problem set; name one with --problems.")
    return ProblemOptions(**values).problem_source(n, seed) if used else None
