"""The positive control: planted lock-in breaks the chains, and the bridge on that layer, and only there, fixes them."""

import pytest

from chainwright import tasks
from chainwright._errors import BadInput
from chainwright.decode.run import generate
from chainwright.models import load_model
from chainwright.repair import StepFlow
from chainwright.repair.stepflow.planted_lock_in import PlantedLockIn


def test_the_bridge_mends_planted_lock_in_on_its_own_layer() -> None:
    model, tokenizer = load_model("reasoner")
    problems = tasks.sample("clf", 8, 20, seed=11, rendering="short")

    def n_right(repair) -> int:
        traces = generate(model, tokenizer, problems, repair=repair, progress=False)
        return sum(trace.first_error is None for trace in traces)

    plain = n_right(None)
    broken = n_right(PlantedLockIn(StepFlow((), ()), 2, 8.0))
    repaired = n_right(PlantedLockIn(StepFlow((2,), (), 0.6), 2, 8.0))
    elsewhere = n_right(PlantedLockIn(StepFlow((0,), (), 0.15), 2, 8.0))
    assert plain >= 19 and broken <= 12 and repaired >= 18 and elsewhere <= 12
    with pytest.raises(BadInput, match="strength must be above 0; got 0"):
        PlantedLockIn(StepFlow(), 2, 0)
