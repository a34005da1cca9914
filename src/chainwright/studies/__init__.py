"""Studies: what they are made of (`engine`), what is on disk (`manifest`, `records`, `lock`, `clock`)."""

from chainwright.studies.engine import Job, Plan, Results, Skip, Status, Study, UnitStatus, Watch

__all__ = ["Job", "Plan", "Results", "Skip", "Status", "Study", "UnitStatus", "Watch"]
