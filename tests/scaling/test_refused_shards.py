"""A model that is spread over processes in a way that is not supported is refused, not read wrongly."""

from chainwright.models.load import BUNDLED
from ranks import run_ranks


def test_a_sharded_model_is_refused_by_edits_and_fingerprints():
    for said in run_ranks("sharded:refusals", str(BUNDLED / "reasoner")):
        assert said == ["is spread over 2 processes"] * 3
