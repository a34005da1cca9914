"""Instruments: each measures one thing and returns a `Finding`."""

from chainwright.diagnose._sweep_plan import SweepPlan, plan_knockout_effects
from chainwright.diagnose.alternatives import Alternatives, alternatives
from chainwright.diagnose.back_attention import BackAttentionFinding
from chainwright.diagnose.causes import StepCauses, step_causes
from chainwright.diagnose.circuit import CircuitMeasures, Emergence, circuit_measures
from chainwright.diagnose.contexts import SlotContexts, correct_contexts, erroneous_contexts
from chainwright.diagnose.errors import ErrorTable, first_errors
from chainwright.diagnose.evidence import HeadEvidence, head_evidence
from chainwright.diagnose.flow_contrast import FlowContrast, flow_contrast
from chainwright.diagnose.flow_slots import result_queries, slot_queries
from chainwright.diagnose.flow_stages import FlowStages, MarkedQuery, flow_stages
from chainwright.diagnose.head_comparison import HeadComparison, compare_heads
from chainwright.diagnose.head_roles import HeadCheck, HeadRoles, RoleFinding, RolesConfig, check_head, head_roles
from chainwright.diagnose.iteration import (
    IterationOverlap,
    IterationScores,
    IterationSettings,
    iteration_overlap,
    iteration_scores,
)
from chainwright.diagnose.knockout import KnockoutEffects, knockout_effects
from chainwright.diagnose.lens import LogitLens, answer_writing_scores, logit_lens
from chainwright.diagnose.lock_in import BridgeGroups, bridge_mass, compare_bridges
from chainwright.diagnose.logit_flow import LogitFlow, logit_flow
from chainwright.diagnose.saliency import StepSaliency, step_saliency
from chainwright.diagnose.saliency_plan import SaliencyPlan, plan_step_saliency
from chainwright.diagnose.step_groups import StepGroups, compare_steps
from chainwright.diagnose.step_measures import StepMeasures

__all__ = [
    "Alternatives",
    "BackAttentionFinding",
    "BridgeGroups",
    "CircuitMeasures",
    "Emergence",
    "ErrorTable",
    "FlowContrast",
    "FlowStages",
    "HeadCheck",
    "HeadComparison",
    "HeadEvidence",
    "HeadRoles",
    "IterationOverlap",
    "IterationScores",
    "IterationSettings",
    "KnockoutEffects",
    "LogitFlow",
    "LogitLens",
    "MarkedQuery",
    "RoleFinding",
    "RolesConfig",
    "SaliencyPlan",
    "SlotContexts",
    "StepCauses",
    "StepGroups",
    "StepMeasures",
    "StepSaliency",
    "SweepPlan",
    "alternatives",
    "answer_writing_scores",
    "bridge_mass",
    "check_head",
    "circuit_measures",
    "compare_bridges",
    "compare_heads",
    "compare_steps",
    "correct_contexts",
    "erroneous_contexts",
    "first_errors",
    "flow_contrast",
    "flow_stages",
    "head_evidence",
    "head_roles",
    "iteration_overlap",
    "iteration_scores",
    "knockout_effects",
    "logit_flow",
    "logit_lens",
    "plan_knockout_effects",
    "plan_step_saliency",
    "result_queries",
    "slot_queries",
    "step_causes",
    "step_saliency",
]
