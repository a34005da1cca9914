"""What the TCR paper says about located heads, compared with one plain pass per context and knockout."""

from functools import cache

import pytest
import torch
from torch import Tensor

from chainwright import generate, load_model, tasks
from chainwright._config import Positions
from chainwright.diagnose.contexts import correct_contexts, erroneous_contexts
from chainwright.diagnose.errors import first_errors
from chainwright.diagnose.heads.role_sweep import RolesConfig
from chainwright.diagnose.heads.roles import RoleFinding, head_roles
from chainwright.edits import KnockOut, edit
from chainwright.models.load import LoadedModel
from chainwright.reproduce.tcr.role_figures import role_figures
from chainwright.traces import Trace


@cache
def reasoner() -> LoadedModel:
    return load_model("reasoner", device="cpu")


@cache
def traces() -> list[Trace]:
    return generate(*reasoner(), tasks.sample("clf", 13, 30, 7), progress=False)


def located(positions: Positions) -> RoleFinding:
    kind = first_errors(traces()).key_types["clf"][0]
    wrong = erroneous_contexts(reasoner().tokenizer, traces(), "clf", kind, 4)
    right = correct_contexts(traces(), wrong, 4)
    roles = head_roles(reasoner().model, right, wrong, config=RolesConfig(positions=positions))
    return RoleFinding.of("clf", kind, roles)


def probs(row: Tensor, mask: Tensor, positions: Positions, *heads: tuple[int, int]) -> Tensor:
    """Return the next-token probabilities of one context without some heads."""
    ids = row[mask.bool()][None]
    with edit(reasoner().model, KnockOut(set(heads), positions=positions), strict=False), torch.no_grad():
        return reasoner().model(input_ids=ids, use_cache=False).logits[0, -1].softmax(-1)


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["last", "all"])
def test_the_figures_equal_plain_passes(positions: Positions) -> None:
    model, tokenizer = reasoner()
    found = located(positions)
    row = role_figures(model, tokenizer, traces(), found, positions)
    wrong = erroneous_contexts(tokenizer, traces(), "clf", found.error_type, 8)
    head = tuple(row["head"])
    assert list(head) in found.erroneous_processing
    assert all(found.rectification[head] >= found.rectification[tuple(h)] for h in found.erroneous_processing)
    every = [(wrong.input_ids[i], wrong.attention_mask[i], int(wrong.right_ids[i])) for i in range(len(wrong))]
    whole = [probs(ids, mask, positions) for ids, mask, _ in every]
    silent = [probs(ids, mask, positions, head) for ids, mask, _ in every]
    held = [i for i, site in enumerate(wrong.sites) if site not in found.sites_erroneous]
    gains = [float(silent[i][every[i][2]] - whole[i][every[i][2]]) for i in held]
    assert row["gains"] == pytest.approx(gains, abs=1e-4) and gains
    corrected = [i for i, p in enumerate(silent) if int(p.argmax()) == every[i][2]]
    assert row["n_corrected"] == len(corrected) > 0 and row["n_wrong"] == len(wrong)
    for name, rows in (("entropy_wrong", whole), ("entropy_corrected", [silent[i] for i in corrected])):
        mean = sum(float(torch.special.entr(p).sum()) for p in rows) / len(rows)
        assert row[name] == pytest.approx(mean, abs=1e-3), name

    effects = torch.zeros(4, 8)
    for i in corrected[:2]:
        ids, mask, right = every[i]
        for layer in range(4):
            for other in range(8):
                without = probs(ids, mask, positions, head, (layer, other))
                effects[layer, other] += float(silent[i][right] - without[right])
    known = found.effect_correct.clone()
    effects[head] = known[head] = -torch.inf
    best = [set(scores.flatten().topk(15).indices.tolist()) for scores in (effects, known)]
    assert row["relocated"] == pytest.approx(len(best[0] & best[1]) / 15, abs=1e-6)


def test_shared_heads_are_counted() -> None:
    scores = torch.arange(32.0).view(4, 8)
    found = located("last")
    both = [[3, 7], [3, 6]]
    changed = {
        "writing_correct": scores, "writing_erroneous": scores.roll(4), "correct_processing": [*both, [0, 0]],
        "erroneous_processing": [], "error_type": found.error_type,
    }  # fmt: skip
    made = RoleFinding(**{**{name: getattr(found, name) for name in found.__dataclass_fields__}, **changed})
    row = role_figures(*reasoner(), traces(), made, "last")
    # the ten best of 0..31 are 22..31; rolled by four they lie at 26..31 and 0..3
    assert row["writing_shared"] == 6 and row["n_writing"] == 10 and row["n_both"] == 0
    assert row["head"] is None and row["relocated"] is None and row["gains"] == []
