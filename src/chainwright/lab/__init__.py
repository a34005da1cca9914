"""Recipes that train the small models and the adapters that come with Chainwright."""

from chainwright.lab.arithmetic import ArithmeticConfig, train_arithmetic
from chainwright.lab.compass import CompassConfig, train_compass
from chainwright.lab.iteration import train_iteration
from chainwright.lab.iteration_model import IterationConfig
from chainwright.lab.knowledge import KnowledgeConfig, train_knowledge
from chainwright.lab.reasoner import ReasonerConfig, train_reasoner
from chainwright.lab.smollm2 import HopsConfig, train_hops
from chainwright.lab.smollm2_math import MathConfig, train_math

__all__ = [
    "ArithmeticConfig",
    "CompassConfig",
    "HopsConfig",
    "IterationConfig",
    "KnowledgeConfig",
    "MathConfig",
    "ReasonerConfig",
    "train_arithmetic",
    "train_compass",
    "train_hops",
    "train_iteration",
    "train_knowledge",
    "train_math",
    "train_reasoner",
]
