"""Hub data sets: through a library of which only what is used is imitated, and what is said where it fails."""

import sys
from types import SimpleNamespace

import pytest

from chainwright import BadInput, load_problems
from chainwright.tasks.problem_sets import hub

ROWS = [{"question": "How many?", "answer": "2 + 2\n#### 4"}]


class DatasetNotFoundError(Exception):
    pass


class ConnectionError(Exception):
    pass


@pytest.fixture
def calls(monkeypatch):
    """What `load_dataset` was called with; the data set has two splits."""
    made = []

    def load_dataset(source, subset, *, split, revision, data_files):
        made.append((source, subset, split, revision, data_files))
        if source == "some/offline":
            raise ConnectionError("Couldn't reach 'some/offline' on the Hub (LocalEntryNotFoundError)")
        if source == "some/missing":
            raise DatasetNotFoundError("Dataset 'some/missing' doesn't exist on the Hub or cannot be accessed.")
        if split == "dev":
            raise ValueError("Unknown split \"dev\". Should be one of ['train', 'test'].")
        return ROWS if split else {"train": ROWS, "test": ROWS}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset, __spec__=object()))
    return made


def test_a_data_set_is_asked_for_by_all_that_was_passed(calls):
    (problem,) = load_problems(
        "some/gsm8k", subset="main", split="test", revision="v1", data_files="a.parquet, b.parquet"
    )
    assert calls == [("some/gsm8k", "main", "test", "v1", ["a.parquet", "b.parquet"])]
    assert (problem.task, problem.answer, problem.facts) == ("gsm8k", "4", {"source": "gsm8k", "place": "record 1"})


def test_what_is_missing_is_said_in_one_sentence(calls):
    for source, more, message in [
        ("some/gsm8k", {}, r"some/gsm8k has the splits train, test; choose one with split="),
        (
            "some/gsm8k",
            {"split": "dev"},
            r"The data set 'some/gsm8k' cannot be read \(Unknown split \"dev\"\. Should be one of",
        ),
        ("some/offline", {"split": "test"}, r"no file or folder 'some/offline', and the Hub cannot be reached"),
        ("some/missing", {"split": "test"}, r"no file, folder or Hub data set 'some/missing' that can be read"),
    ]:
        with pytest.raises(BadInput, match=message):
            load_problems(source, **more)


def test_a_local_file_or_a_name_with_an_ending_is_never_asked_for_on_the_hub(calls, tmp_path):
    with pytest.raises(BadInput, match="There is no file or folder"):
        load_problems("some/file.jsonl")
    with pytest.raises(BadInput, match="There is no file or folder"):
        load_problems(tmp_path / "gone")
    assert calls == []


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"read with the library datasets, .*pip install \"chainwright\[data\]\""):
        load_problems("some/gsm8k", split="test")


@pytest.mark.slow
def test_a_data_set_that_was_saved_to_a_folder_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "both")
    data.save_to_disk(tmp_path / "one")
    assert load_problems(tmp_path / "both", split="test")[0].answer == "4"
    assert load_problems(tmp_path / "one")[0].answer == "4"
    with pytest.raises(BadInput, match="has no split 'dev'; it has train, test"):
        load_problems(tmp_path / "both", split="dev")
    with pytest.raises(BadInput, match="has the splits train, test"):
        load_problems(tmp_path / "both")
