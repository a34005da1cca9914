"""The noise that tokens are drawn with: Gumbel, independent, and the same in batches of every size."""

import pytest
import torch
from scipy.stats import chisquare, gumbel_r, kstest

from chainwright.models.sampling import gumbel_noise
from reference import assert_equal


@pytest.mark.parametrize("seed", [0, 7])
def test_it_is_gumbel_noise(seed: int) -> None:
    noise = gumbel_noise(seed, range(8), 3, 5000)
    assert kstest(noise.flatten().numpy(), gumbel_r.cdf).pvalue > 0.01
    assert kstest(gumbel_noise(seed, range(20_000), 0, 3)[:, 0].numpy(), gumbel_r.cdf).pvalue > 0.01
    assert bool(noise.isfinite().all())


def test_rows_steps_seeds_and_tokens_draw_apart() -> None:
    base = gumbel_noise(1, [4], 5, 50_000)[0]
    others = [gumbel_noise(1, [5], 5, 50_000), gumbel_noise(1, [4], 6, 50_000), gumbel_noise(2, [4], 5, 50_000)]
    vectors = torch.stack([base, *(other[0] for other in others), base.roll(1), base.roll(64)])
    apart = torch.corrcoef(vectors) - torch.eye(len(vectors))
    assert float(apart.abs().max()) < 0.03  # six standard deviations


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_a_row_has_the_same_bytes_in_every_batch(batch: int) -> None:
    rows = list(range(10, 34))
    whole = gumbel_noise(3, rows, 2, 70_000)
    parts = [gumbel_noise(3, rows[i : i + batch], 2, 70_000) for i in range(0, len(rows), batch)]
    assert_equal(torch.cat(parts), whole)
    assert_equal(gumbel_noise(3, rows[::-1], 2, 70_000).flip(0), whole)


def test_every_token_is_as_likely_as_the_softmax_says() -> None:
    chosen = gumbel_noise(11, range(40_000), 1, 61).argmax(-1).bincount(minlength=61)
    assert chisquare(chosen.numpy()).pvalue > 0.01
    # tokens of probability 1e-6 are drawn too
    rare = torch.log(torch.tensor([1 - 3e-6, 1e-6, 1e-6, 1e-6]))
    n_rare = int(((gumbel_noise(5, range(400), 0, 4 * 10_000).view(-1, 4) + rare).argmax(-1) > 0).sum())
    assert 1 <= n_rare <= 30, "12 are due in four million draws"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_the_same() -> None:
    on_cpu, on_gpu = (gumbel_noise(0, range(5), 9, 5000, device).cpu() for device in ("cpu", "cuda"))
    assert float((on_cpu - on_gpu).abs().max()) < 1e-4  # the bits are the same, the logarithms may round otherwise
