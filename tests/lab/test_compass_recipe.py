"""The recipe of the compass model: what its rows count in the loss, and a training that resumes where it stopped."""

import pytest
import torch
from safetensors.torch import load_file

from chainwright._errors import BadInput
from chainwright.lab import CompassConfig, train_compass
from chainwright.lab import training as steps
from chainwright.lab.compass import CompassRows, compass_tokenizer
from chainwright.models.load import load_model
from chainwright.tasks import compass

SMALL = CompassConfig(
    d_model=16, n_layers=1, n_heads=2, d_head=8, d_mlp=16, n_steps=4, batch_tokens=200, n_warmup=2, n_positions=320
)


def rows(config: CompassConfig, step: int) -> tuple[list[list[str]], torch.Tensor, torch.Tensor]:
    tokenizer = compass_tokenizer(config)
    ids, labels = CompassRows(config, tokenizer).batch(step)
    return [tokenizer.convert_ids_to_tokens(row.tolist()) for row in ids], ids, labels


def test_batches_are_a_function_of_the_seed_and_their_number() -> None:
    (_, one, _), (_, two, _), (_, other, _) = rows(SMALL, 3), rows(SMALL, 3), rows(SMALL.replace(seed=1), 3)
    assert torch.equal(one, two) and (one.shape != other.shape or not torch.equal(one, other))


def test_directions_of_long_chains_do_not_count_and_all_else_does() -> None:
    words, ids, labels = rows(SMALL.replace(long_share=1.0), 0)
    for row, row_ids, row_labels in zip(words, ids, labels, strict=True):
        start, end = row.index("?") + 2, row.index("<end>") + 1
        counted = [i for i, label in enumerate(row_labels.tolist()) if label != -100]
        hidden = [i for i in range(start, end) if i not in counted]
        assert {row[i] for i in hidden} <= set(compass.DIRECTIONS) and counted[0] == start and counted[-1] == end - 1
        assert [row[i] for i in counted if row[i] in compass.DIRECTIONS] == [row[row.index("answer") + 1]]
        assert torch.equal(row_labels[counted], row_ids[counted])


def test_short_chains_count_whole_or_name_the_turns() -> None:
    words, _, labels = rows(SMALL.replace(long_share=0.0, names_share=0.0), 0)
    for row, row_labels in zip(words, labels, strict=True):
        start, end = row.index("?") + 2, row.index("<end>") + 1
        assert [i for i, label in enumerate(row_labels.tolist()) if label != -100] == list(range(start, end))
    words, _, _ = rows(SMALL.replace(long_share=0.0, names_share=1.0), 0)
    for row in words:
        table = dict(zip(row[2:22:2], row[3:23:2], strict=True))
        start = row.index("?") + 2
        assert row[1] == "names" and all(row[i + 2] == table[row[i + 1]] for i in range(start, row.index("end"), 4))


def test_a_killed_training_goes_on_and_ends_with_the_same_weights(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_compass(SMALL, tmp_path / "whole", progress=False)
    monkeypatch.setattr(steps, "_SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    taken, own = [], CompassRows.batch

    def stopping(self: CompassRows, step: int):
        taken.append(step)
        if taken.count(2) == 1 and step == 2:
            raise KeyboardInterrupt
        return own(self, step)

    monkeypatch.setattr(CompassRows, "batch", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_compass(SMALL, tmp_path / "cut", progress=False)
    again = train_compass(SMALL, tmp_path / "cut", resume=True, progress=False)
    assert taken == [0, 1, 2, 2, 3]
    want, got = (load_file(folder / "model.safetensors") for folder in (whole, again))
    assert want.keys() == got.keys() and all(torch.equal(want[name], got[name]) for name in want)
    model, tokenizer = load_model(whole)
    assert model.config.vocab_size == len(tokenizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_steps": 0}, "n_steps must be a whole number from 1; got 0"),
        ({"names_share": 1.5}, r"names_share must be a number from 0 to 1; got 1\.5"),
        ({"long_hops": (4, 61)}, r"long_hops must be a range within 1 to 60 lines; got \(4, 61\)"),
    ],
)
def test_recipes_that_cannot_be_trained_are_refused(change: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        SMALL.replace(**change)


def test_too_few_positions_are_said(tmp_path) -> None:
    with pytest.raises(BadInput, match="the recipe has n_positions=40; raise that or lower the hops"):
        train_compass(SMALL.replace(n_positions=40), tmp_path / "it", progress=False)
