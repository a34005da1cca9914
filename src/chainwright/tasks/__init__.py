"""Reasoning tasks with a hop dial, their gold chains, and the reading of a model's own chains.

Every task draws new names, numbers and words for each problem, has one line of reasoning per hop, and knows the error
type of each decision in it. Two renderings: "short" is word-level text for small models trained here, "natural" is
English with worked examples for chat models.

Each task is one file of this folder, or of a plugin, which states its usual hops, error types and their families,
words, wording and worked examples; `writing` has what such a file needs. `names` lists the seven of the source paper,
`known` all. The hop number is the number of people (parity), digits of the multiplier (mdm), words (llc), folder
operations (clf), operands (moas), intervals (nums) or sentences (objc). An eighth task, compass, is made for StepFlow.
"""

from __future__ import annotations

from chainwright.tasks._catalogue import (
    canonical,
    error_types,
    family,
    fit_hops,
    known,
    names,
    title,
    usual_hops,
    vocabulary,
)
from chainwright.tasks._sampling import fix_rendering, from_record, sample
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
    "family",
    "fit_hops",
    "fix_rendering",
    "from_record",
    "known",
    "names",
    "sample",
    "title",
    "usual_hops",
    "vocabulary",
]
