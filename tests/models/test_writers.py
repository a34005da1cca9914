"""Which modules `feed_forwards` takes for the MLP and the norms around it."""

import pytest

from chainwright.models.anatomy import anatomy
from chainwright.models.writers import feed_forwards
from families import tiny


@pytest.mark.parametrize("intermediate_size", [64, 96])
def test_behind_a_norm_the_mlp_as_a_whole_is_taken_and_not_its_last_projection(intermediate_size):
    # both return what the norm behind the MLP reads; 96 is a multiple of the residual stream's 48 dimensions
    model = tiny("gemma2", intermediate_size=intermediate_size)
    for layer, parts in zip(model.model.layers, feed_forwards(anatomy(model)), strict=True):
        assert parts.mlp is layer.mlp
        assert parts.post_mlp is layer.post_feedforward_layernorm
        assert parts.mlp_norm is layer.pre_feedforward_layernorm
        assert parts.attn_norm is layer.input_layernorm
