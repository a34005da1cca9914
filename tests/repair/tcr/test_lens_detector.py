"""The detector that reads the two likeliest tokens through the logit lens: features, decoding, fitting, refusals."""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from chainwright import generate, load_model, tasks
from chainwright._errors import BadInput, UnsupportedModel
from chainwright.models.anatomy import anatomy
from chainwright.models.load import LoadedModel
from chainwright.repair import TCR, RemoveAndResample, Repair, TCRConfig, TrainedDetector
from chainwright.repair.tcr._two_best import TwoBest
from chainwright.repair.tcr.config import CandidateConfig, FitConfig, TrainConfig
from chainwright.repair.tcr.fit import Fitted, choice_scores, fit_tcr, look, read_lens_layers
from chainwright.repair.tcr.selector import RandomSelector
from chainwright.repair.tcr.thresholds import ranking
from chainwright.repair.tcr.token_repair import Seen
from chainwright.repair.tcr.training_data import lessons_of
from chainwright.scoring import score
from families import FAMILIES, left_padded, random_ids, tiny
from outcomes import outcome
from reference import assert_close

LENGTHS, N_NEW = (11, 8, 3, 1), 6
HEADS = [(0, 1), (1, 0), (1, 3)]
SMALL = FitConfig(
    candidates=CandidateConfig(n_contexts=6, max_heads=3, n_lessons=10),
    training=TrainConfig(n_epochs=3),
    tune_share=0.4,
    detector="lens",
)


def plain(model: nn.Module, ids: list[int], layers: list[int]) -> Tensor:
    """Return the features of the next token, worked out from one whole pass and the whole unembedding."""
    states: dict[int, Tensor] = {}
    blocks = anatomy(model).layers
    hooks = [
        blocks[i].block.register_forward_hook(
            lambda _module, _args, out, i=i: states.update({i: out if isinstance(out, Tensor) else out[0]})
        )
        for i in layers
    ]
    head, parts = model.get_output_embeddings(), anatomy(model)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        for hook in hooks:
            hook.remove()
        first, second = logits.topk(2).indices.tolist()
        rows = []
        for i in layers:
            at = states[i].reshape(-1, states[i].shape[-1])[-1:]
            lens = head(parts.final_norm(at)[0] * parts.unembed_scale)
            centred = lens - lens.mean()
            rows.append(torch.stack([centred[first], centred[second], lens[first] - lens[second]]))
    return torch.stack(rows)


class Watching:
    """Flags every other token, and remembers what it saw."""

    min_entropy = -1.0
    reads_hidden = False

    def __init__(self) -> None:
        self.seen: dict[tuple[int, ...], Tensor] = {}

    def flags(self, seen: Seen) -> Tensor:
        assert seen.lens is not None
        self.seen |= {tuple(ids): lens.clone() for ids, lens in zip(seen.contexts, seen.lens, strict=True)}
        return torch.tensor([len(ids) % 2 == 0 for ids in seen.contexts])


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_sees_what_a_whole_pass_gives(family: str) -> None:
    """Batched, left-padded and cached; also beside runs without heads, which must not be read."""
    model, detector = tiny(family), Watching()
    layers = [0, 2]
    repair = TCR(HEADS, RandomSelector(3), detector, config=TCRConfig(n_votes=1), lens_layers=layers)
    model.generation_config.eos_token_id = None
    ids, mask = left_padded([random_ids(1, n, seed=n)[0] for n in LENGTHS])
    with repair.attached(model):
        model.generate(ids, attention_mask=mask, max_new_tokens=N_NEW, do_sample=False)
    assert len(detector.seen) == len(LENGTHS) * N_NEW and repair.cost.n_extra_forwards > 0
    for context, lens in detector.seen.items():
        assert_close(lens, plain(model, list(context), layers), f"{len(context)} tokens", 2e-4)


def test_no_layer_is_unembedded_and_rows_do_not_depend_on_each_other() -> None:
    model = tiny("llama")
    parts, states = anatomy(model), torch.randn(5, 3, anatomy(model).d_model)
    logits = torch.randn(5, parts.d_vocab)
    reader = TwoBest(parts, [0, -1, 1])
    calls: list[int] = []
    hook = model.get_output_embeddings().register_forward_hook(lambda *_: calls.append(1))
    together = reader.read(states, logits)
    hook.remove()
    assert reader.layers == [0, parts.n_layers - 1, 1] and not calls and together.shape == (5, 3, 3)
    alone = torch.cat([reader.read(states[i : i + 1], logits[i : i + 1]) for i in range(5)])
    assert torch.equal(alone, together)


def test_an_unembedding_without_rows_is_refused() -> None:
    model = tiny("llama")

    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module):
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    parts = anatomy(model)
    model.lm_head = Wrapped(model.lm_head)
    with pytest.raises(UnsupportedModel, match=r"The unembedding of this llama model is a Wrapped, not a matrix of"):
        TwoBest(parts, [0])


def test_the_layers_that_are_read() -> None:
    lens = FitConfig(detector="lens")
    assert read_lens_layers(4, lens) == (0, 1, 2, 3)
    assert read_lens_layers(30, lens) == (3, 7, 10, 14, 18, 21, 25, 29)
    assert read_lens_layers(30, FitConfig()) == ()
    assert read_lens_layers(30, FitConfig(lens_layers=(5, 9))) == (5, 9)


@cache
def reasoner() -> LoadedModel:
    return load_model("reasoner", device="cpu")


@cache
def fitted() -> Fitted:
    return fit_tcr(*reasoner(), generate(*reasoner(), tasks.sample("clf", 13, 30, 7), progress=False), config=SMALL)


def test_it_is_fitted_beside_one_without_the_lens_and_saved(tmp_path: Path) -> None:
    found = fitted()
    repair = TCR.from_fit(found)
    assert repair.lens_layers == found.lens_layers == (0, 1, 2, 3)
    d_model, k = anatomy(reasoner().model).d_model, len(repair.heads)
    assert len(repair.detector.network.mean) == 4 * d_model + 4 + 4 * 3
    assert len(repair.verifier.network.mean) == 4 * d_model + 4 + 4 * 3 + 3 * k
    for name in ("detector, area under the curve", "without the lens, area under the curve"):
        assert 0 < found.figures[name] < 1
    again = Repair.from_pretrained(repair.save_pretrained(tmp_path / "repair"))
    assert again.settings() == repair.settings() and again.settings()["lens_layers"] == [0, 1, 2, 3]
    removal = RemoveAndResample(repair.detector, layers=repair.layers, lens_layers=repair.lens_layers)
    same = Repair.from_pretrained(removal.save_pretrained(tmp_path / "removal"))
    problems = tasks.sample("clf", 13, 4, 8)
    for one, other in ((repair, again), (removal, same)):
        written = [generate(*reasoner(), problems, repair=r, progress=False) for r in (one, other)]
        assert written[0] == written[1] and one.cost.n_flagged > 0


def test_a_saved_repair_without_its_lens_is_refused(tmp_path: Path) -> None:
    folder = TCR.from_fit(fitted()).save_pretrained(tmp_path / "repair")
    text = (folder / "repair.json").read_text()
    (folder / "repair.json").write_text(text.replace('"lens_layers"', '"lens_leyers"'))
    with pytest.raises(BadInput, match="lens_leyers"):
        Repair.from_pretrained(folder)


def test_the_forecast_on_lessons_is_what_decoding_and_scoring_give() -> None:
    model, tokenizer = reasoner()
    fit = TCR.from_fit(fitted())
    detector = TrainedDetector(fit.detector.network, 0.01, SMALL.doubt_above)  # flags much
    repair = TCR(
        fit.heads, fit.selector, detector, layers=fit.layers, lens_layers=fit.lens_layers, end_ids=fit.end_ids,
        config=fit.config.replace(decision="vote"),
    )  # fmt: skip
    before = generate(model, tokenizer, tasks.sample("clf", 13, 12, 9), progress=False)
    seen = look(anatomy(model), lessons_of(tokenizer, before), repair.heads, SMALL, lambda done, total: None)
    with torch.no_grad():
        flagged = (detector.network(seen.doubt)[:, 0].sigmoid() > 0.01) & (seen.entropy > SMALL.doubt_above)
    decided = seen.decided(choice_scores(repair.selector, seen), repair.config.n_votes)
    after = generate(model, tokenizer, [t.problem for t in before], repair=repair, progress=False)
    assert seen.chains_right(seen.repaired(flagged, decided)).tolist() == [t.first_error is None for t in after]
    assert repair.cost.n_flagged > 10
    trace = after[0]
    assert score(model, trace, repair=repair).argmax[trace.response_start :].tolist() == trace.response_ids.tolist()


def test_the_area_under_the_curve_by_hand() -> None:
    _, tokenizer = reasoner()
    problems = tasks.sample("clf", 3, 2)
    lessons = lessons_of(tokenizer, [outcome(problem, True) for problem in problems])
    seen = look(anatomy(reasoner().model), lessons, [], SMALL, lambda done, total: None)
    n = len(seen.is_right)
    is_right, entropy = torch.ones(n, dtype=torch.bool), torch.full((n,), 0.5)
    is_right[[2, 3]] = False  # the second is not a first error, and nothing after the first counts in this lesson
    entropy[0] = 0.0
    first_of_second = int((seen.lesson == 1).nonzero()[0, 0])
    doubts = torch.zeros(n)
    doubts[1], doubts[2], doubts[first_of_second] = 0.5, 0.7, 0.9
    rest = int((seen.lesson == 1).sum()) - 1
    want = (1 + 0 + rest) / (1 + 1 + rest)  # token 1 below it, one token of the second lesson above, the rest below
    changed = seen.replace(is_right=is_right, entropy=entropy)
    assert ranking(changed, doubts, 0.1) == pytest.approx(want)
    doubts[first_of_second] = 0.7
    assert ranking(changed, doubts, 0.1) == pytest.approx(want + 0.5 / (2 + rest))
