"""Recipes that train the small models that come with Chainwright."""

from chainwright.lab.arithmetic import ArithmeticConfig, train_arithmetic
from chainwright.lab.compass import CompassConfig, train_compass
from chainwright.lab.iteration import train_iteration
from chainwright.lab.iteration_model import IterationConfig
from chainwright.lab.knowledge import KnowledgeConfig, train_knowledge
from chainwright.lab.reasoner import ReasonerConfig, train_reasoner

__all__ = [
    "ArithmeticConfig",
    "CompassConfig",
    "IterationConfig",
    "KnowledgeConfig",
    "ReasonerConfig",
    "train_arithmetic",
    "train_compass",
    "train_iteration",
    "train_knowledge",
    "train_reasoner",
]
