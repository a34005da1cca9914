import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trace_tokenizers
from chainwright.traces import offsets, token_offsets

names = st.sampled_from(sorted(trace_tokenizers.ALL))
texts = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from([*trace_tokenizers.LINES, "ann flips\n", "1 23", "\n \n", "日本", "🙂"])).map("".join),
)


def decoded(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def check_spans(text, spans, ids):
    assert len(spans) == len(ids)
    assert all(0 <= start <= end <= len(text) for start, end in spans)
    starts = [start for start, _ in spans]
    assert starts == sorted(starts)
    covered = {i for start, end in spans for i in range(start, end)}
    assert covered == set(range(len(text)))


@settings(deadline=None, max_examples=150)
@given(names, texts)
def test_text_is_what_decode_gives_and_spans_cover_it(name, text):
    tokenizer = trace_tokenizers.ALL[name]()
    ids = tokenizer(text)["input_ids"]
    got, spans = token_offsets(tokenizer, ids)
    assert got == decoded(tokenizer, ids)
    check_spans(got, spans, ids)


@settings(deadline=None, max_examples=150)
@given(names, st.data())
def test_any_ids_at_all(name, data):
    tokenizer = trace_tokenizers.ALL[name]()
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=50))
    got, spans = token_offsets(tokenizer, ids)
    assert got == decoded(tokenizer, ids)
    check_spans(got, spans, ids)


@pytest.mark.parametrize("name", sorted(trace_tokenizers.ALL))
def test_the_linear_way_suffices_for_text(name, monkeypatch):
    walk, windows = offsets._walk, []
    monkeypatch.setattr(offsets, "_walk", lambda *args: windows.append(args[2]) or walk(*args))
    tokenizer = trace_tokenizers.ALL[name]()
    ids = tokenizer("\n".join(trace_tokenizers.LINES * 5))["input_ids"]
    token_offsets(tokenizer, ids)
    assert windows == ([] if name == "byte level" else [8])


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=60))
def test_counting_bytes_gives_what_decoding_does(text):
    tokenizer = trace_tokenizers.byte_level()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = offsets.token_bytes(tokenizer, ids)
    got = offsets.spans_of_bytes([pieces[token_id] for token_id in ids])
    assert got == offsets._walk(lambda part: decoded(tokenizer, part), ids, 8)


def test_bytes_that_are_no_text_and_other_tokenizers_are_decoded():
    assert offsets.spans_of_bytes([b"a", b"\xff"]) is None
    assert offsets.token_bytes(trace_tokenizers.word_level(), [5, 6]) is None


def test_the_number_of_decoded_ids_is_linear():
    tokenizer, n_decoded = trace_tokenizers.byte_level(), []
    ids = tokenizer("\n".join(trace_tokenizers.LINES * 40))["input_ids"]
    offsets._walk(lambda part: n_decoded.append(len(part)) or decoded(tokenizer, part), ids, 8)
    assert sum(n_decoded) < 20 * len(ids)


def strings(tokenizer, text):
    got, spans = token_offsets(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])
    return [got[start:end] for start, end in spans]


def test_the_bytes_of_one_character_share_its_span():
    tokenizer = trace_tokenizers.byte_fallback()
    assert strings(tokenizer, "a é🙂b") == ["", "a", " ", "é", "é", "🙂", "🙂", "🙂", "🙂", "b"]
    assert strings(tokenizer, "日本.") == ["", "日", "日", "日", "本", "本", "本", "."]


def test_a_character_cut_off_at_the_end_does_not_move_the_tokens_before_it():
    tokenizer = trace_tokenizers.byte_fallback()
    ids = tokenizer("ab日", add_special_tokens=False)["input_ids"]
    text, spans = token_offsets(tokenizer, ids[:-1])
    assert text == "ab��"
    assert spans[:3] == [(0, 0), (0, 1), (1, 2)]


def test_word_level_tokens_keep_their_place_when_spaces_go():
    tokenizer = trace_tokenizers.word_level()
    assert strings(tokenizer, "ann flips\nbob 12 + 3") == [
        "ann",
        " flips",
        "\n",
        "bob",
        " 1",
        "2",
        " +",
        " 3",
    ]


def test_a_space_that_goes_when_the_next_word_comes():
    tokenizer = trace_tokenizers.late_spaces()
    assert strings(tokenizer, "ann\nbob\n\nann") == ["ann", "\n", "bob", " \n", "\n", "ann"]
    assert strings(tokenizer, "ann\n") == ["ann", " \n"]


def test_special_tokens_write_nothing_where_they_stand():
    tokenizer = trace_tokenizers.byte_level()
    ids = tokenizer("<bos>The<|channel|> coin<eos><pad>", add_special_tokens=False)["input_ids"]
    assert token_offsets(tokenizer, ids) == ("The coin", [(0, 0), (0, 3), (3, 3), (3, 8), (8, 8), (8, 8)])


def test_special_markers_stay_when_asked():
    tokenizer = trace_tokenizers.byte_level()
    ids = tokenizer("<bos>The<|channel|> coin<eos>", add_special_tokens=False)["input_ids"]
    text, spans = token_offsets(tokenizer, ids, keep_markers=True)
    assert text == "The<|channel|> coin" == offsets.decode_with_markers(tokenizer, ids)
    assert spans == [(0, 0), (0, 3), (3, 14), (14, 19), (19, 19)]


class Backwards:
    """A tokenizer whose decoder reads the whole of its input before it writes the first character."""

    all_special_ids: tuple[int, ...] = ()

    def decode(self, ids, **_):
        return f"{len(ids)}:" + "".join(chr(97 + i) for i in ids)

    def convert_tokens_to_ids(self, _):
        return None


def test_a_decoder_that_looks_far_back_gets_the_exact_way():
    ids = [i % 26 for i in range(40)]
    text, spans = token_offsets(Backwards(), ids)
    assert text == Backwards().decode(ids)
    assert all(0 <= start <= end <= len(text) for start, end in spans)


def test_no_ids():
    assert token_offsets(trace_tokenizers.byte_level(), []) == ("", [])
