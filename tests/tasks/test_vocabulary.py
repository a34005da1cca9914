import re

import pytest

from chainwright import tasks


def encode(text):
    """Split as a word-level tokenizer does: at spaces, newlines alone, digits one by one."""
    return re.findall(r"\n|[0-9]|[^\s0-9]+", text)


def decode(tokens):
    text = re.sub(r" ?\n ?", "\n", " ".join(tokens))
    return re.sub(r"(?<=[0-9]) (?=[0-9])", "", text)


def test_vocabulary_is_closed_small_and_without_repeats():
    vocabulary = tasks.vocabulary()
    assert len(vocabulary) == len(set(vocabulary)) <= 290
    assert vocabulary == tasks.vocabulary()
    assert vocabulary[0] == "\n"
    assert not any(" " in token or token == "" for token in vocabulary)


@pytest.mark.parametrize("name", tasks.names())
@pytest.mark.parametrize("hops", [1, 3, 12])
def test_short_text_survives_tokens(name, hops):
    vocabulary = set(tasks.vocabulary())
    for problem in tasks.sample(name, hops, 20):
        text = problem.prompt + problem.chain
        tokens = encode(text)
        assert set(tokens) <= vocabulary
        assert decode(tokens) == text
        response = encode("\n" + problem.chain + "\n")[1:]
        assert problem.first_error(decode(response)) is None


def test_short_words_are_all_used():
    text = " ".join(problem.prompt + problem.chain for name in tasks.names() for problem in tasks.sample(name, 10, 150))
    rare = set(tasks.vocabulary()) - set(encode(text))
    assert rare <= set("abcdefghijklmnopqrstuvwxyz")
