"""Workers: any number of processes, on any machines, that compute one study together through its folder alone.

claims   one lock per unit: leases in the folder, and the one rename by which a unit appears
loop     what a worker does, from its first unit to the end of the study
"""

from chainwright.studies.crew import WorkerState
from chainwright.studies.workers.loop import Worked, work

__all__ = ["Worked", "WorkerState", "work"]
