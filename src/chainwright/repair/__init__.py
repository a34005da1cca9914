"""Repairs: fitted policies that mend a model's chains while it decodes."""

from chainwright.repair._answers import AnswerTraining
from chainwright.repair.back_attention import BackAttention
from chainwright.repair.base import Cost, Origin, Repair, bundled_repairs
from chainwright.repair.baselines import DoLa, RemoveAndResample
from chainwright.repair.candidates import Candidates, find_candidates
from chainwright.repair.detector import EntropyDetector, GoldDetector, TrainedDetector
from chainwright.repair.layers import ChosenLayers, choose_layers
from chainwright.repair.stepflow import StepFlow
from chainwright.repair.tcr import TCR, TCRConfig

__all__ = [
    "TCR",
    "AnswerTraining",
    "BackAttention",
    "Candidates",
    "ChosenLayers",
    "Cost",
    "DoLa",
    "EntropyDetector",
    "GoldDetector",
    "Origin",
    "RemoveAndResample",
    "Repair",
    "StepFlow",
    "TCRConfig",
    "TrainedDetector",
    "bundled_repairs",
    "choose_layers",
    "find_candidates",
]
