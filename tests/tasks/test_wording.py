"""Small changes of wording that leave a response right."""

import re

import pytest

from chainwright import tasks

CHANGES = {
    "upper case": str.upper,
    "lower case": str.lower,
    "double spaces": lambda text: text.replace(" ", "  "),
    "blank lines": lambda text: text.replace("\n", "\n\n"),
    "windows newlines": lambda text: text.replace("\n", "\r\n"),
    "no final punctuation": lambda text: re.sub(r"[.]$", "", text, flags=re.MULTILINE),
    "final punctuation": lambda text: re.sub(r"(?<=\w)$", ".", text, flags=re.MULTILINE),
    "bullets": lambda text: re.sub(r"^(?:[0-9]+\. )?", "- ", text, flags=re.MULTILINE),
    "stars": lambda text: re.sub(r"^(?:[0-9]+\. )?", "* ", text, flags=re.MULTILINE),
    "other numbering": lambda text: re.sub(r"^(?:[0-9]+\. )?", "(7) ", text, flags=re.MULTILINE),
    "steps": lambda text: re.sub(r"^(?:[0-9]+\. )?", "Step 3: ", text, flags=re.MULTILINE),
    "bold lines": lambda text: re.sub(r"^(.*)$", r"**\1**", text, flags=re.MULTILINE),
    "bold words": lambda text: re.sub(r"\b([a-zA-Z]{3,})\b(?!/)", r"**\1**", text),
    "preamble": lambda text: "Sure, here is how I work it out.\n\n" + text,
    "remark": lambda text: text + "\n\nLet me know if you want more.",
    "remark in the line": lambda text: text + " (that is all)",
    "spaces at the ends": lambda text: re.sub("^|$", "  ", text, flags=re.MULTILINE),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("rendering", ["short", "natural"])
@pytest.mark.parametrize("name", tasks.names())
def test_right_stays_right(name, rendering, change):
    for problem in tasks.sample(name, 4, 2, seed=8, rendering=rendering):
        text = CHANGES[change](problem.chain)
        assert problem.first_error(text) is None, text
        assert problem.check(text)


def test_thousands_commas():
    for rendering in ("short", "natural"):
        problem = tasks.sample("mdm", 5, 1, rendering=rendering)[0]
        text = re.sub(r"[0-9]{4,}", lambda match: f"{int(match.group()):,}", problem.chain)
        assert "," in text
        assert problem.first_error(text) is None
        assert problem.check(text)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("parity", "does not flip", "doesn't flip"),
        ("parity", "does not flip", "doesn\N{RIGHT SINGLE QUOTATION MARK}t flip"),
        ("parity", "does not flip", "does **not** flip"),
        ("parity", "so it is", "so it is now"),
        ("parity", "so it is", "and it remains"),
        ("parity", " up", ""),
        ("parity", "In the end", "Finally"),
        ("parity", "Answer:", "Final answer:"),
        ("parity", "Answer:", "So the answer is"),
        ("nums", "inside", "within"),
        ("nums", "outside", "not inside"),
        ("nums", ":", " \N{EM DASH}"),
        ("moas", ": ", " - "),
        ("moas", " - ", " \N{MINUS SIGN} "),
        ("moas", "= -", "= - "),
        ("moas", " = ", " equals "),
        ("mdm", "*", "\N{MULTIPLICATION SIGN}"),
        ("mdm", "*", r"\times"),
        ("mdm", " and ", ", "),
        ("mdm", " and ", ", and "),
        ("llc", '"', ""),
        ("llc", '"', "`"),
        ("objc", " = ", "="),
        ("clf", "Operation ", "Operation: "),
    ],
)
def test_other_words_for_the_same(name, old, new):
    for problem in tasks.sample(name, 5, 5, seed=4, rendering="natural"):
        text = problem.chain.replace(old, new)
        if name == "mdm" and old == " and ":
            text = re.sub(f"{new}digit", " and digit", text)
        text = text.replace("Answer - ", "Answer: ")
        assert problem.first_error(text) is None, text
        assert problem.check(text)


def test_letters_apart_or_together():
    problem = tasks.sample("llc", 4, 1)[0]
    joined = re.sub(r"(?<=: )(.*)$", lambda m: m.group().replace(" ", ""), problem.chain, flags=re.MULTILINE)
    assert problem.first_error(joined) is None
    assert problem.check("answer " + problem.answer.replace(" ", "-"))
