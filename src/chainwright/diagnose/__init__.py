"""Instruments: each measures one thing and returns a `Finding`."""

from chainwright.diagnose.contexts import SlotContexts, correct_contexts, erroneous_contexts
from chainwright.diagnose.errors import ErrorTable, first_errors
from chainwright.diagnose.head_roles import HeadCheck, HeadRoles, RoleFinding, RolesConfig, check_head, head_roles
from chainwright.diagnose.knockout import KnockoutEffects, knockout_effects
from chainwright.diagnose.lens import LogitLens, answer_writing_scores, logit_lens

__all__ = [
    "ErrorTable",
    "HeadCheck",
    "HeadRoles",
    "KnockoutEffects",
    "LogitLens",
    "RoleFinding",
    "RolesConfig",
    "SlotContexts",
    "answer_writing_scores",
    "check_head",
    "correct_contexts",
    "erroneous_contexts",
    "first_errors",
    "head_roles",
    "knockout_effects",
    "logit_lens",
]
