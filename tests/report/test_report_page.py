import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_examples import EVIL, full, make_diagnosis, page_of

from chainwright import BadInput
from chainwright.evaluation.accuracy import evaluate
from chainwright.report import write_report
from chainwright.report.page import as_json

SECTIONS = ["found", "accuracy", "errors", "heads", "traces", "limits"]


class Page(HTMLParser):
    """Elements, addresses and text of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.sections: list[str] = []
        self.figures: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.within: list[str] = []
        self.raw: dict[str, str] = {}
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.within = [tag, found.get("id") or tag] if tag in ("script", "style") else []
        if tag == "section":
            self.sections.append(found.get("id") or "")
        self.figures += [value for name, value in attrs if name == "data-figure" and value]
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action") and value]

    def handle_endtag(self, tag: str) -> None:
        self.within = []

    def handle_data(self, data: str) -> None:
        if self.within:
            self.raw[self.within[1]] = self.raw.get(self.within[1], "") + data
        else:
            self.text += data


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(page_of(make_diagnosis({"parity": (2, 4), "objc": (3, 5)})))


def data_of(page: Page) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(page.raw["data"])
    return read


def test_every_section_and_figure_is_there(page: Page) -> None:
    assert page.sections == SECTIONS
    assert page.figures == ["accuracy", "error-types", "errors-by-hops", "entropy"]
    assert [a[1:] for a in page.addresses if a != "#main"] == SECTIONS
    assert set(data_of(page)["figures"]) == set(page.figures)
    for said in ("Where the chains of", "How sure this is", "Held out: without", "Not checked", "study.toml"):
        assert said in page.text


def test_nothing_is_loaded_from_elsewhere(page: Page) -> None:
    assert all(address.startswith("#") for address in page.addresses)
    assert not {"link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not re.search(r"url\(|@import|@font-face", page.raw["style"])


def test_the_same_diagnosis_gives_the_same_bytes(tmp_path: Path) -> None:
    paths = [write_report(make_diagnosis(), tmp_path / name) for name in ("a.html", "b.html")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths == [tmp_path / "a.html", tmp_path / "b.html"]


def test_an_old_report_stays_when_the_place_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises((BadInput, NotADirectoryError, FileExistsError)):
        write_report(make_diagnosis(), tmp_path / "file" / "report.html")
    assert (tmp_path / "file").read_text() == "x"


def test_text_of_models_and_users_is_escaped() -> None:
    diagnosis = make_diagnosis(model=EVIL, extra=EVIL, has_roles=False)
    source = page_of(diagnosis)
    page = Page(source)
    assert EVIL not in source
    assert "img" not in page.tags
    assert page.tags.count("script") == 3
    assert f"Where the chains of {EVIL} break" in page.text
    assert EVIL in "".join(diagnosis.traces[0].prompt or "")
    reader = data_of(page)["sections"]["traces"]
    shown = reader["traces"][0]
    assert EVIL in "".join(reader["texts"][i] for i in shown["pieces"])


def test_json_cannot_end_its_element() -> None:
    text = as_json({"a": "</script>\u2028&"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": "</script>\u2028&"}


def test_without_errors_the_report_says_so() -> None:
    page = Page(page_of(make_diagnosis(n_wrong=0)))
    assert page.sections == SECTIONS
    assert page.figures == ["accuracy"]
    for said in ("No chain of toy broke", "No chain has an error", "No heads were located", "no error"):
        assert said in page.text
    assert len(data_of(page)["sections"]["traces"]["groups"]) == 1


def test_without_roles_the_reasons_are_given() -> None:
    page = Page(page_of(make_diagnosis(has_roles=False, extra="é 日本 ")))
    assert "No heads were located: parity, name recall: only 3 contexts é 日本" in page.text
    assert data_of(page)["sections"]["heads"] == []


def test_one_task_at_one_hop_count_with_one_problem() -> None:
    page = Page(page_of(make_diagnosis({"parity": (4,)}, n=1, n_wrong=1)))
    assert page.sections == SECTIONS


@pytest.mark.slow
def test_500_long_traces_of_a_7b_model_stay_below_10_megabytes() -> None:
    hops = {"parity": (10, 40, 60, 70, 80), "objc": (10, 40, 50, 60, 70)}
    diagnosis = make_diagnosis(hops, n=50, n_wrong=25, rendering="natural", shape=(28, 28))
    assert len(diagnosis.traces) == 500
    n_tokens = sum(len(trace) for trace in diagnosis.traces)
    assert n_tokens > 500_000
    source = page_of(full(diagnosis))
    assert len(source.encode()) < 10e6
    said = re.search(r"(\d+) of 500 traces; the others would make this file too large", source)
    assert said is not None and int(said[1]) > 100


def test_500_traces_of_the_short_tasks_are_all_there() -> None:
    diagnosis = make_diagnosis({"parity": (6, 10, 12, 13, 14), "objc": (5, 8, 9, 10, 11)}, n=50, shape=(4, 8))
    source = page_of(full(diagnosis))
    assert len(source.encode()) < 10e6
    assert "All 500 traces" in source


def test_findings_fill_the_heads_and_the_reader() -> None:
    diagnosis = make_diagnosis({"parity": (2, 4), "objc": (3, 5)})
    page = Page(page_of(full(diagnosis)))
    assert page.figures[-2:] == ["heads-parity-name-recall", "heads-objc-name-recall"]
    plain = Page(page_of(diagnosis))
    assert "heads-parity-name-recall" not in plain.figures
    assert "There are no alternatives" in plain.text and "There are no alternatives" not in page.text


def test_what_a_head_fixes_and_breaks_is_shown_context_by_context() -> None:
    diagnosis = make_diagnosis({"parity": (2, 4)})
    (pair,) = data_of(Page(page_of(full(diagnosis))))["sections"]["heads"]
    roles = diagnosis.roles[0]
    assert [line[:2] for line in pair["seen"]["wrong"]] == roles.sites_erroneous
    first = diagnosis.traces[pair["seen"]["wrong"][0][0]]
    assert first.first_error is not None
    assert pair["seen"]["wrong"][0][3] == first.first_error.got
    assert pair["seen"]["wrong"][0][5] == 250
    assert [i for i, _ in pair["seen"]["heads"]["0,0"][0]] == [0, 2]
    assert [i for i, _ in pair["seen"]["heads"]["0,1"][0]] == [1]
    assert [i for i, _ in pair["seen"]["heads"]["0,0"][1]] == [0]
    assert pair["held_out"]["heads"]["1,1"][0] == [[0, 610]]
    assert set(pair["held_out"]["heads"]) == {"1,1", "0,1"}


def test_roles_of_an_older_version_have_no_contexts_to_show() -> None:
    diagnosis = make_diagnosis({"parity": (2, 4)})
    roles = replace(diagnosis.roles[0], first_correct=None, first_erroneous=None, p_right=None)
    page = Page(page_of(replace(diagnosis, findings=[diagnosis.accuracy, diagnosis.errors, roles])))
    assert data_of(page)["sections"]["heads"][0]["seen"] is None


def test_a_report_of_nothing_is_refused() -> None:
    with pytest.raises(BadInput, match="needs at least one finding; got none"):
        page_of([])
    traces = make_diagnosis().traces
    with pytest.raises(BadInput, match="made from findings; got Trace"):
        page_of(traces)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="one score per trace; got 0 scores and 8 traces"):
        page_of([evaluate(traces)], traces=traces, scores=[])


def test_the_opening_says_how_sure_each_number_is() -> None:
    page = Page(page_of(make_diagnosis({"parity": (2, 4), "objc": (3, 5)})))
    assert "toy got 10 of 16 whole chains (62%; 95% interval 39% to 82%) right" in page.text
    assert "a recall error: 6 of 6 wrong chains" in page.text
    assert "which the one type had enough of" in page.text
    assert "2 of 4 failing contexts (50%; 95% interval 15% to 85%)" in page.text
    assert "no answer was decoded again" in page.text
    plain = Page(page_of(make_diagnosis(n_wrong=0)))
    assert "No chain went wrong, so there is nothing to diagnose" in plain.text
