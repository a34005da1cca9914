"""Chainwright: find out why an open language model's chain of thought breaks, and mend it while it decodes.

Names are loaded on first use, so that `import chainwright` and `chainwright --help` do not wait for PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from chainwright import tasks
from chainwright._errors import BadInput, BadTrace, ChainwrightError, EditNeverFired, UnsupportedModel
from chainwright.tasks import FirstError, Problem

if TYPE_CHECKING:
    from chainwright._finding import Finding
    from chainwright._flips import Flips, flips
    from chainwright.decode import TokenScores, generate, score
    from chainwright.diagnose import (
        Alternatives,
        BackAttentionFinding,
        BridgeGroups,
        ErrorTable,
        FlowStages,
        HeadComparison,
        HeadEvidence,
        HeadRoles,
        IterationOverlap,
        IterationScores,
        IterationSettings,
        KnockoutEffects,
        LogitFlow,
        LogitLens,
        MarkedQuery,
        RoleFinding,
        SaliencyPlan,
        SlotContexts,
        StepCauses,
        StepGroups,
        StepMeasures,
        StepSaliency,
        SweepPlan,
        answer_writing_scores,
        bridge_mass,
        compare_bridges,
        compare_heads,
        compare_steps,
        correct_contexts,
        erroneous_contexts,
        first_errors,
        head_evidence,
        iteration_overlap,
        iteration_scores,
        knockout_effects,
        logit_lens,
        plan_knockout_effects,
        plan_step_saliency,
        step_causes,
        step_saliency,
    )
    from chainwright.diagnose.alternatives import alternatives
    from chainwright.diagnose.flow_stages import flow_stages
    from chainwright.diagnose.head_roles import head_roles
    from chainwright.diagnose.logit_flow import logit_flow
    from chainwright.edits import AttendBack, BackHead, Bridge, Cut, CutAttention, KnockOut, Momentum, edit
    from chainwright.evaluation import Accuracy, Comparison, compare, evaluate
    from chainwright.models import Capture, bundled_models, load_model
    from chainwright.models.capture import capture
    from chainwright.repair import (
        TCR,
        AnswerTraining,
        BackAttention,
        Candidates,
        ChosenLayers,
        Cost,
        DoLa,
        EntropyDetector,
        GoldDetector,
        RemoveAndResample,
        Repair,
        StepFlow,
        TCRConfig,
        TrainedDetector,
        bundled_repairs,
        choose_layers,
        find_candidates,
    )
    from chainwright.report import write_report
    from chainwright.studies import Study
    from chainwright.study import DiagnoseConfig, Diagnosis, open_diagnosis, run_diagnosis
    from chainwright.traces import LiveSteps, Trace, read_jsonl, read_traces, write_traces

__version__ = "0.1.0"
__all__ = [
    "TCR",
    "Accuracy",
    "Alternatives",
    "AnswerTraining",
    "AttendBack",
    "BackAttention",
    "BackAttentionFinding",
    "BackHead",
    "BadInput",
    "BadTrace",
    "Bridge",
    "BridgeGroups",
    "Candidates",
    "Capture",
    "ChainwrightError",
    "ChosenLayers",
    "Comparison",
    "Cost",
    "Cut",
    "CutAttention",
    "DiagnoseConfig",
    "Diagnosis",
    "DoLa",
    "EditNeverFired",
    "EntropyDetector",
    "ErrorTable",
    "Finding",
    "FirstError",
    "Flips",
    "FlowStages",
    "GoldDetector",
    "HeadComparison",
    "HeadEvidence",
    "HeadRoles",
    "IterationOverlap",
    "IterationScores",
    "IterationSettings",
    "KnockOut",
    "KnockoutEffects",
    "LiveSteps",
    "LogitFlow",
    "LogitLens",
    "MarkedQuery",
    "Momentum",
    "Problem",
    "RemoveAndResample",
    "Repair",
    "RoleFinding",
    "SaliencyPlan",
    "SlotContexts",
    "StepCauses",
    "StepFlow",
    "StepGroups",
    "StepMeasures",
    "StepSaliency",
    "Study",
    "SweepPlan",
    "TCRConfig",
    "TokenScores",
    "Trace",
    "TrainedDetector",
    "UnsupportedModel",
    "alternatives",
    "answer_writing_scores",
    "bridge_mass",
    "bundled_models",
    "bundled_repairs",
    "capture",
    "choose_layers",
    "compare",
    "compare_bridges",
    "compare_heads",
    "compare_steps",
    "correct_contexts",
    "edit",
    "erroneous_contexts",
    "evaluate",
    "find_candidates",
    "first_errors",
    "flips",
    "flow_stages",
    "generate",
    "head_evidence",
    "head_roles",
    "iteration_overlap",
    "iteration_scores",
    "knockout_effects",
    "load_model",
    "logit_flow",
    "logit_lens",
    "open_diagnosis",
    "plan_knockout_effects",
    "plan_step_saliency",
    "read_jsonl",
    "read_traces",
    "run_diagnosis",
    "score",
    "step_causes",
    "step_saliency",
    "tasks",
    "write_report",
    "write_traces",
]

# The modules that hold the names above, in the order in which they import each other.
_HOLDERS = (
    "studies",
    "_finding",
    "models",
    "edits",
    "traces",
    "decode",
    "diagnose",
    "repair",
    "evaluation",
    "_flips",
    "study",
    "report",
)


def __getattr__(name: str) -> Any:
    if name in __all__:
        for holder in _HOLDERS:
            module = import_module(f"chainwright.{holder}")
            if hasattr(module, name):
                globals()[name] = getattr(module, name)
                return globals()[name]
    raise AttributeError(f"module 'chainwright' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
