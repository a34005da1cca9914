"""Recipes that train the small models that come with Chainwright."""

from chainwright.lab.reasoner import ReasonerConfig, train_reasoner

__all__ = ["ReasonerConfig", "train_reasoner"]
