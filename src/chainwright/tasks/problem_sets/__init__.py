"""Problem sets of other people: files and Hub data sets whose records become problems.

`load_problems` reads a file or a data set; `ProblemSource` is the same as a config, for studies and command options.
"""

from __future__ import annotations

from chainwright.tasks.problem_sets.building import BadRecord, ProblemSet
from chainwright.tasks.problem_sets.source import ProblemSource, load_problems

__all__ = ["BadRecord", "ProblemSet", "ProblemSource", "load_problems"]
