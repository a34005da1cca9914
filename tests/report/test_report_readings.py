import pytest
from report_examples import full, make_diagnosis

from chainwright.report.gather import gather
from chainwright.report.readings import extras, group_traces, reader_data, with_spaces
from chainwright.studies.diagnosis.run import Diagnosis


def read(findings: Diagnosis, **options: int) -> dict[str, object]:
    material = gather(findings)
    return reader_data(material, extras(material), **options)


def test_traces_are_grouped_by_task_and_error_and_none_is_left_out() -> None:
    diagnosis = make_diagnosis({"parity": (2, 4), "objc": (3, 5)})
    groups = group_traces(gather(diagnosis))
    assert [(g.task, g.label, g.is_key, len(g.indices)) for g in groups] == [
        ("Parity-NL", "name recall", True, 3),
        ("Parity-NL", "no error", False, 5),
        ("ObjC", "name recall", True, 3),
        ("ObjC", "no error", False, 5),
    ]
    assert sorted(i for g in groups for i in g.indices) == list(range(16))
    data = read(diagnosis)
    assert [trace["number"] for trace in data["traces"]] == list(range(16))
    assert data["n_all"] == 16


def test_when_not_all_fit_each_group_keeps_its_shortest_and_wrong_ones_come_first() -> None:
    diagnosis = make_diagnosis({"parity": (2, 4), "objc": (3, 5)})
    whole = read(diagnosis)
    data = read(diagnosis, max_bytes=4000)
    assert 0 < len(data["traces"]) < len(whole["traces"])
    assert all(trace["error"] for trace in data["traces"])
    assert [group["label"] for group in data["groups"]] == ["name recall", "name recall"]
    assert [group["n"] for group in data["groups"]] == [3, 3]
    for group, every in zip(data["groups"], (g for g in group_traces(gather(diagnosis)) if g.is_key), strict=True):
        shown = [data["traces"][i]["number"] for i in group["traces"]]
        assert shown == every.indices[: len(shown)]


def test_the_first_error_stands_at_its_tokens() -> None:
    diagnosis = make_diagnosis()
    data = read(diagnosis)
    wrong = data["traces"][data["groups"][0]["traces"][0]]
    error = wrong["error"]
    pieces = [data["texts"][i] for i in wrong["pieces"]]
    assert "".join(pieces[error["start"] : error["end"]]).strip() == error["got"] != error["expected"]
    assert error["type"] == "name recall"
    assert error["at"] == diagnosis.traces[wrong["number"]].first_error_position
    n_response = len(wrong["pieces"]) - wrong["start"]
    assert len(wrong["lost"]) == len(wrong["entropy"]) == n_response


def test_numbers_are_in_thousandths() -> None:
    diagnosis = make_diagnosis()
    trace = read(diagnosis)["traces"][0]
    scores = diagnosis.scores[trace["number"]]
    assert trace["lost"][3] == round(-1000 * float(scores.logprob[trace["start"] + 3]))
    assert trace["entropy"][3] == round(1000 * float(scores.entropy[trace["start"] + 3]))


def test_a_likeliest_token_that_stands_nowhere_is_named_by_its_number() -> None:
    diagnosis = make_diagnosis()
    assert "token 999999" in read(diagnosis)["texts"]


def test_alternatives_stand_at_slots_with_the_expected_token_where_it_is_another() -> None:
    diagnosis = make_diagnosis()
    data = read(full(diagnosis))
    texts = data["texts"]
    wrong = data["traces"][data["groups"][0]["traces"][0]]
    tokens, shares, expected = wrong["others"][str(wrong["error"]["at"])]
    assert [texts[i] for i in tokens][1:] == [" <b>other</b>"], "what rounds to none is omitted"
    assert shares == [700, 125]
    assert (texts[expected[0]], expected[1]) == (" <b>other</b>", 125)
    right = data["traces"][data["groups"][1]["traces"][0]]
    slot = diagnosis.traces[right["number"]].slots[0].start
    assert len(right["others"][str(slot)]) == 2


def test_a_first_error_says_what_is_said_without_each_head() -> None:
    data = read(full(make_diagnosis()))
    wrong = data["traces"][data["groups"][0]["traces"][0]]
    said = [[layer, head, data["texts"][piece], *rest] for layer, head, piece, *rest in wrong["without"]]
    assert said == [[-1, -1, " wrong", 700, 250, 0], [1, 1, " right", 700, 610, 1], [0, 1, " wrong", 700, 20, 0]]
    assert all("without" not in trace for trace in data["traces"] if not trace["error"])


@pytest.mark.parametrize(
    ("tokens", "text", "spaced"),
    [
        (["a", "b"], "a b", ["a", " b"]),
        ([" a", " b"], " a b", [" a", " b"]),
        (["<s>", "a", "\n", "b", "</s>"], "a\nb", ["<s>", "a", "\n", "b", "</s>"]),
        (["a", "\ufffd", "\ufffd", " c"], "a日 c", ["a", "日", "", " c"]),
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
