import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_examples import EVIL, make_diagnosis

from chainwright import BadInput
from chainwright.report import write_report
from chainwright.report.page import as_json, render
from chainwright.report.readings import pick_traces, reader_data, with_spaces

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
    return Page(render(make_diagnosis({"parity": (2, 4), "objc": (3, 5)})))


def data_of(page: Page) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(page.raw["data"])
    return read


def test_every_section_and_figure_is_there(page: Page) -> None:
    assert page.sections == SECTIONS
    assert page.figures == ["accuracy", "error-types", "errors-by-hops", "entropy"]
    assert set(data_of(page)["figures"]) == set(page.figures)
    for said in ("Where the chains of", "How sure this is", "Held out: without", "Not checked", "run_diagnosis("):
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
    source = render(diagnosis)
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
    page = Page(render(make_diagnosis(n_wrong=0)))
    assert page.sections == SECTIONS
    assert page.figures == ["accuracy"]
    for said in ("No chain of toy broke", "No chain has an error", "No heads were located", "only right ones"):
        assert said in page.text
    assert len(data_of(page)["sections"]["traces"]["groups"]) == 1


def test_without_roles_the_reasons_are_given() -> None:
    page = Page(render(make_diagnosis(has_roles=False, extra="é 日本 ")))
    assert "No heads were located: parity, name recall: only 3 contexts é 日本" in page.text
    assert data_of(page)["sections"]["heads"] == []


def test_one_task_at_one_hop_count_with_one_problem() -> None:
    page = Page(render(make_diagnosis({"parity": (4,)}, n=1, n_wrong=1)))
    assert page.sections == SECTIONS


def test_maps_of_a_7b_model_and_long_traces_stay_small(tmp_path: Path) -> None:
    diagnosis = make_diagnosis({"parity": (10, 90)}, n=4, rendering="natural", shape=(28, 28))
    assert max(len(trace) for trace in diagnosis.traces) > 2000
    assert write_report(diagnosis, tmp_path / "big.html").stat().st_size < 7e6


def test_wrong_traces_come_before_a_right_one_and_no_trace_twice() -> None:
    diagnosis = make_diagnosis({"parity": (2, 4), "objc": (3, 5)})
    picks = pick_traces(diagnosis)
    assert [pick.label for pick in picks] == ["Parity-NL: name recall", "ObjC: name recall"]
    for pick in picks:
        assert [diagnosis.traces[i].first_error is None for i in pick.indices] == [False, False, True]
    data = reader_data(diagnosis, picks)
    assert len({trace["number"] for trace in data["traces"]}) == len(data["traces"]) == 6


def test_the_first_error_stands_at_its_tokens() -> None:
    diagnosis = make_diagnosis()
    data = reader_data(diagnosis, pick_traces(diagnosis))
    wrong = data["traces"][data["groups"][0]["traces"][0]]
    error = wrong["error"]
    pieces = [data["texts"][i] for i in wrong["pieces"]]
    assert "".join(pieces[error["start"] : error["end"]]).strip() == error["got"] != error["expected"]
    assert error["type"] == "name recall"
    assert wrong["logprob"][0] is None
    assert len(wrong["pieces"]) == len(wrong["entropy"]) == len(wrong["likeliest"])


def test_a_likeliest_token_that_stands_nowhere_is_named_by_its_number() -> None:
    diagnosis = make_diagnosis()
    data = reader_data(diagnosis, pick_traces(diagnosis))
    assert "token 999999" in data["texts"]


@pytest.mark.parametrize(
    ("tokens", "text", "spaced"),
    [
        (["a", "b"], "a b", ["a", " b"]),
        ([" a", " b"], " a b", [" a", " b"]),
        (["<s>", "a", "\n", "b", "</s>"], "a\nb", ["<s>", "a", "\n", "b", "</s>"]),
        (["a", "\ufffd", "\ufffd", " c"], "a日 c", ["a", "\ufffd", "\ufffd", " c"]),
        (["a", "", " ", "b"], "a b", ["a", "", " ", "b"]),
        (["aa", "a", "aa"], "aa a  aa", ["aa", " a", "  aa"]),
    ],
)
def test_lost_spaces_are_put_back(tokens: list[str], text: str, spaced: list[str]) -> None:
    assert with_spaces(tokens, text) == spaced


def test_pieces_add_up_to_the_trace() -> None:
    diagnosis = make_diagnosis({"parity": (3,), "clf": (2,)}, n_wrong=0, rendering="natural")
    for trace, strings in zip(diagnosis.traces, diagnosis.token_strs, strict=True):
        text = (trace.prompt or "") + (trace.response or "")
        assert "".join(with_spaces(strings, text)) == text
