"""Chainwright: find out why an open language model's chain of thought breaks, and mend it while it decodes."""

__version__ = "0.1.0"

from chainwright import tasks
from chainwright._errors import BadInput, BadTrace, ChainwrightError, EditNeverFired, UnsupportedModel
from chainwright._finding import Finding
from chainwright.decode import TokenScores, generate, score
from chainwright.diagnose import (
    ErrorTable,
    HeadRoles,
    KnockoutEffects,
    LogitLens,
    SlotContexts,
    answer_writing_scores,
    correct_contexts,
    erroneous_contexts,
    first_errors,
    head_roles,
    knockout_effects,
    logit_lens,
)
from chainwright.edits import KnockOut, edit
from chainwright.evaluate import Accuracy, evaluate
from chainwright.models import Capture, bundled_models, capture, load_model
from chainwright.study import DiagnoseConfig, Diagnosis, open_diagnosis, run_diagnosis
from chainwright.tasks import FirstError, Problem
from chainwright.traces import Trace, read_jsonl, read_traces, write_traces

__all__ = [
    "Accuracy",
    "BadInput",
    "BadTrace",
    "Capture",
    "ChainwrightError",
    "DiagnoseConfig",
    "Diagnosis",
    "EditNeverFired",
    "ErrorTable",
    "Finding",
    "FirstError",
    "HeadRoles",
    "KnockOut",
    "KnockoutEffects",
    "LogitLens",
    "Problem",
    "SlotContexts",
    "TokenScores",
    "Trace",
    "UnsupportedModel",
    "answer_writing_scores",
    "bundled_models",
    "capture",
    "correct_contexts",
    "edit",
    "erroneous_contexts",
    "evaluate",
    "first_errors",
    "generate",
    "head_roles",
    "knockout_effects",
    "load_model",
    "logit_lens",
    "open_diagnosis",
    "read_jsonl",
    "read_traces",
    "run_diagnosis",
    "score",
    "tasks",
    "write_traces",
]
