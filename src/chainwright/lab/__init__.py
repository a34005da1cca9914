"""Recipes that train the small models that come with Chainwright."""

from chainwright.lab.iteration import IterationConfig, train_iteration
from chainwright.lab.reasoner import ReasonerConfig, train_reasoner

__all__ = ["IterationConfig", "ReasonerConfig", "train_iteration", "train_reasoner"]
