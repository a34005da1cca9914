"""Studies: what they are made of (`plan`), how they run (`engine`), what is on disk (`manifest`, `records`)."""

from chainwright.studies.engine import Status, Study, UnitStatus
from chainwright.studies.plan import Job, Plan, Results, Skip, Watch

__all__ = ["Job", "Plan", "Results", "Skip", "Status", "Study", "UnitStatus", "Watch"]
