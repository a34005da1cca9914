"""Executors: where the units of a study are computed. `local` is the default; `made` finds one by its name."""

from chainwright.studies.executors.base import Computed, Executor, Stage, made

__all__ = ["Computed", "Executor", "Stage", "made"]
