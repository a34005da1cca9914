"""Seven reasoning tasks with a hop dial, their gold chains, and the reading of a model's own chains.

Every task draws names, numbers and words anew for each problem, has one line of reasoning a hop, and knows
the error type of each decision in it. Two renderings: "short" is word-level text for small models trained
here, "natural" is English with worked examples for chat models.

The hop number is the number of people (parity), digits of the multiplier (mdm), words (llc), folder
operations (clf), operands (moas), intervals (nums) or sentences (objc). An eighth task, compass, is made for StepFlow.
"""

from __future__ import annotations

from chainwright.tasks._sampling import canonical, error_types, fix_rendering, from_record, known, names, sample, title
from chainwright.tasks._words import vocabulary
from chainwright.tasks.base import UNPARSED, FirstError, Problem, ReadSlot, Rendering, Slot

__all__ = [
    "UNPARSED",
    "FirstError",
    "Problem",
    "ReadSlot",
    "Rendering",
    "Slot",
    "canonical",
    "error_types",
    "fix_rendering",
    "from_record",
    "known",
    "names",
    "sample",
    "title",
    "vocabulary",
]
