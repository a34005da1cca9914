"""The word-level tokenizer: text made of known words comes back letter for letter."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainwright import tasks
from chainwright.lab import ReasonerConfig
from chainwright.lab.reasoner import reasoner_tokenizer
from chainwright.lab.tokenizer import BOS, END, PAD, SPECIAL, UNKNOWN, word_tokenizer

TOKENIZER = reasoner_tokenizer(ReasonerConfig())
NAMES = [w for w in tasks.vocabulary() if w.isalpha()]


def back(text: str) -> str:
    return str(TOKENIZER.decode(TOKENIZER(text, add_special_tokens=False)["input_ids"]))


@pytest.mark.parametrize("task", tasks.names())
def test_every_task_comes_back(task: str) -> None:
    for hops in (1, 3, 8):
        for problem in tasks.sample(task, hops, 20):
            assert back(problem.chain) == problem.chain
            assert back(problem.prompt) == problem.prompt
            ids = TOKENIZER(problem.prompt + problem.chain)["input_ids"]
            assert ids[0] == TOKENIZER.bos_token_id and TOKENIZER.unk_token_id not in ids
            assert TOKENIZER.eos_token_id not in ids, "no end is put after a question"


WORDS = st.tuples(st.sampled_from(NAMES), st.none() | st.integers(0, 10**6)).map(
    lambda pair: " ".join(str(part) for part in pair if part is not None)
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(WORDS, min_size=1, max_size=6).map(" ".join), min_size=1, max_size=4).map("\n".join))
def test_lines_of_words_and_numbers_come_back(text: str) -> None:
    assert back(text) == text


def test_digits_are_tokens_and_numbers_come_back_whole() -> None:
    ids = TOKENIZER("ann 407 kate", add_special_tokens=False)["input_ids"]
    assert TOKENIZER.convert_ids_to_tokens(ids) == ["ann", "4", "0", "7", "kate"]
    assert TOKENIZER.decode(ids) == "ann 407 kate"


def test_special_tokens_have_the_first_ids() -> None:
    assert [TOKENIZER.convert_tokens_to_ids(t) for t in SPECIAL] == [0, 1, 2, 3]
    assert (TOKENIZER.pad_token, TOKENIZER.bos_token, TOKENIZER.eos_token, TOKENIZER.unk_token) == (
        PAD,
        BOS,
        END,
        UNKNOWN,
    )
    assert TOKENIZER.padding_side == "left"
    ids = TOKENIZER("ann zebra")["input_ids"]
    assert ids[0] == 1 and ids[2] == 3


def test_a_word_that_stands_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        word_tokenizer(["a", "b", "a"], 10)
    with pytest.raises(ValueError, match="twice"):
        word_tokenizer(["a", "<pad>"], 10)
