"""How problems are asked: demonstrations, system prompts, and the quirks of chat templates."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from chainwright import checkers, generate, load_model, tasks
from chainwright._errors import BadInput, OtherRendering
from chainwright.checkers import Checker, Verdict
from chainwright.models.load import OWN_SHOTS
from chainwright.prompts.asking import Asking
from chainwright.prompts.demonstrations import Shots, demonstration
from chainwright.prompts.describe import describe
from chainwright.prompts.prompt import prompt_ids, prompts_of
from chainwright.prompts.question import Question, question_of
from chainwright.tasks import Problem
from chat_templates import TEMPLATES, chat_tokenizer
from families import tiny

NUMBERS = ("three", "four", "five", "six", "seven", "eight")


def sums(n: int = 6, *, checker: str = "number") -> list[Problem]:
    """Return problems as a set has them."""
    return [
        Problem(
            "sums", 0, f"Ann has {i} pens and gets one.", f"{i} + 1 = {i + 1}\n#### {i + 1}", str(i + 1), (),
            rendering="natural", checker=checker, facts={"source": "sums.jsonl", "place": f"line {i + 1}"},
        )
        for i in range(n)
    ]  # fmt: skip


def asked(template: str | None, problem: Problem | str, asking: Asking, pool: list[Problem] | None = None) -> Question:
    return question_of(chat_tokenizer(template), problem, asking, Shots.of(asking, pool or []))


def model_of(name: str | None = "plain", **changes: object) -> object:
    return tiny("llama", vocab_size=len(chat_tokenizer(name)), max_position_embeddings=1024, **changes)


# -- demonstrations of a problem set ---------------------------------------------------------------------------------


def test_demonstrations_are_turns_of_the_chat_with_their_gold_solutions() -> None:
    pool = sums()
    got = asked("plain", pool[0], Asking(shots=2), pool)
    order = [p for p in Shots.of(Asking(shots=2), pool).listed if p is not pool[0]][:2]
    want = "".join(f"[user]{p.prompt}[end][assistant]{p.chain}[end]" for p in order)
    assert got.text == f"{want}[user]{pool[0].prompt}[end][assistant]"
    assert got.info == {"shots": 2, "shots_as": "chat", "shots_seed": 0} and got.stop == ()


@pytest.mark.parametrize("template", ["plain", None])
def test_demonstrations_in_one_text_end_the_response_before_another_question(template: str | None) -> None:
    pool = sums()
    asking = Asking(shots=1, shots_as="text")
    got = asked(template, pool[0], asking, pool)
    shown = next(p for p in Shots.of(asking, pool).listed if p is not pool[0])
    text = f"Question: {shown.prompt}\nAnswer: {shown.chain}\n\nQuestion: {pool[0].prompt}\nAnswer:"
    assert got.text == (f"[user]{text}[end][assistant]" if template else text)
    assert got.stop == ("\nQuestion:",) and got.info["shots_as"] == "text"
    assert asked(None, pool[0], Asking(shots=1), pool).text == text, "the default without a template"


def test_neither_the_question_nor_a_duplicate_is_its_own_demonstration() -> None:
    pool = sums(3)
    twin = Problem("sums", 0, "  Ann has 0  pens and\ngets ONE. ", "So 1.", "1", (), rendering="natural")
    again = Problem("sums", 0, pool[1].prompt.upper(), "Two.", "2", (), rendering="natural")
    for seed in range(8):
        shots = Shots.of(Asking(shots=2, shots_seed=seed), [*pool, twin, again])
        shown = shots.before(pool[0])
        assert pool[0] not in shown and twin not in shown
        assert {pool[1], again} & set(shown) and pool[2] in shown
    with pytest.raises(BadInput, match="3 demonstrations were asked for, but the problems that are asked have 2 other"):
        Shots.of(Asking(shots=3), [*pool, twin, again]).before(pool[0])


def test_options_in_another_order_are_the_same_question() -> None:
    def choice(*options: str) -> Problem:
        text = "\n".join(f"{letter}. {option}" for letter, option in zip("ABC", options, strict=False))
        return Problem("c", 0, f"Which?\n{text}", "Because.", "A", (), rendering="natural", choices=options)

    shots = Shots.of(Asking(shots=1), [choice("two", "one")])
    with pytest.raises(BadInput, match="have 0 other questions"):
        shots.before(choice("one", "two"))
    other = Problem("c", 0, "What?", "x", "A", (), rendering="natural", choices=("one", "two"))
    assert Shots.of(Asking(shots=1), [other]).before(choice("one", "two")) == [other]


def test_the_seed_chooses_and_other_questions_share_their_demonstrations() -> None:
    pool = sums(12)
    by_seed = {tuple(p.answer for p in Shots.of(Asking(shots=3, shots_seed=s), pool).before("x")) for s in range(4)}
    assert len(by_seed) > 1
    shots = Shots.of(Asking(shots=2), pool)
    assert len({tuple(shots.before(p)) for p in pool}) <= 3


def test_parts_of_a_set_are_asked_as_the_whole() -> None:
    pool, model, tokenizer = sums(8), model_of(), chat_tokenizer("plain")
    asking = Asking(shots=2)
    whole = prompts_of(model, tokenizer, pool, 4, asking=asking)
    parts = [
        p for i in range(0, 8, 3) for p in prompts_of(model, tokenizer, pool[i : i + 3], 4, i, asking=asking, pool=pool)
    ]
    assert parts == whole


@pytest.mark.parametrize(
    ("chain", "answer", "checker", "ends"),
    [
        ("6 * 7 = 42\n#### 42", "42", "number", "\n#### 42"),
        ("So it is 6 * 7 = 42", "42", "number", "= 42\nThe answer is 42."),
        ("6 * 7. The answer is 42.", "42", "number", "The answer is 42."),
        ("So 41.", "42", "number", "So 41.\nThe answer is 42."),
        ("", "42", "number", "The answer is 42."),
        ("", "First 6, then 7. The answer is 42.", "", "First 6, then 7. The answer is 42."),
    ],
)
def test_a_demonstration_ends_in_a_form_that_the_checker_reads(
    chain: str, answer: str, checker: str, ends: str
) -> None:
    problem = Problem("mine", 0, "How many?", chain, answer, (), rendering="natural", checker=checker)
    shown = demonstration(problem)
    assert shown.solution.endswith(ends) and shown.solution.startswith(chain)
    if checker:
        verdict = problem.judge(shown.solution)
        assert verdict.is_right and not verdict.rule.startswith("last number")


def test_a_choice_is_answered_by_its_letter() -> None:
    problem = Problem(
        "c", 0, "Which?\nA. x\nB. y", "It is y.", "B", (), rendering="natural", checker="choice", choices=("x", "y")
    )
    shown = demonstration(problem).solution
    assert problem.judge(shown).is_right


def test_a_set_without_solutions_shows_answers_alone_and_says_so() -> None:
    pool = [Problem("s", 0, f"{i}?", "", str(i), (), rendering="natural", checker="number") for i in range(4)]
    with pytest.warns(OtherRendering, match="No problem that demonstrations are chosen from has a gold solution"):
        got = asked("plain", pool[0], Asking(shots=1), pool)
    assert "[assistant]The answer is " in got.text


def test_demonstrations_of_a_file_are_taken_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "demos.jsonl"
    records = [{"question": f"Say {word}.", "answer": f"I say it.\n#### {i}"} for i, word in enumerate(NUMBERS)]
    path.write_text("\n".join(map(json.dumps, records)))
    asking = Asking(shots=2, shots_from=str(path))
    got = asked("plain", "Say nine.", asking)
    assert got.text.index("Say three.") < got.text.index("Say four.") < got.text.index("Say nine.")
    assert "Say five." not in got.text and got.info["shots_from"] == str(path)
    assert "Say five." in asked("plain", "Say three.", asking).text, "the question itself is passed over"
    assert asked("plain", "Say nine.", Asking(shots_from=str(path))).info["shots"] == len(NUMBERS), "all of them"
    with pytest.raises(BadInput, match=r"9 demonstrations were asked for, but .*demos.jsonl have 6 other questions"):
        asked("plain", "Say nine.", Asking(shots=9, shots_from=str(path)))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(BadInput, match=r"empty\.jsonl"):
        Shots.of(Asking(shots_from=str(tmp_path / "empty.jsonl")), [])
    with pytest.raises(BadInput, match=r"no\.jsonl"):
        Shots.of(Asking(shots_from=str(tmp_path / "no.jsonl")), [])


def test_a_string_alone_has_no_demonstrations_to_take() -> None:
    with pytest.raises(BadInput, match="2 demonstrations were asked for, but the problems that are asked have 0 other"):
        asked("plain", "Why?", Asking(shots=2))


# -- demonstrations of a task ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_open", [True, False])
def test_a_tasks_problem_is_asked_in_full_in_every_turn(is_open: bool) -> None:
    (problem,) = tasks.sample("parity", 4, 1, rendering=None if is_open else "natural")
    got = asked("plain", problem, Asking(shots=3))
    turns = got.text.split("[user]")[1:]
    assert len(turns) == 4 and all("Problem:\n" in turn and "Worked example" not in turn for turn in turns)
    opening = turns[-1].partition("Problem:")[0]
    assert all(turn.startswith(opening) for turn in turns), "asked alike"
    (natural,) = tasks.sample("parity", 4, 1, rendering="natural", n_demonstrations=0)
    assert got.problem == natural and turns[-1] == f"{natural.prompt}[end][assistant]"
    for turn in turns[:-1]:
        question, _, chain = turn.partition("[end][assistant]")
        assert question.count(" coin.") == 3, "one hop fewer than asked"
        assert chain.removesuffix("[end]").splitlines()[-1].startswith("Answer: ")


@pytest.mark.parametrize("is_open", [True, False])
def test_a_model_trained_without_demonstrations_is_asked_without_them_by_default(is_open: bool, tmp_path: Path) -> None:
    tokenizer = chat_tokenizer("plain")
    tokenizer.init_kwargs[OWN_SHOTS] = 0
    tokenizer.save_pretrained(tmp_path)
    (problem,) = tasks.sample("parity", 4, 1, rendering=None if is_open else "natural")
    (bare,) = tasks.sample("parity", 4, 1, rendering="natural", n_demonstrations=0)
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert question_of(one, problem).text == f"[user]{bare.prompt}[end][assistant]", "survives saving"
    (two,) = tasks.sample("parity", 4, 1, rendering="natural", n_demonstrations=2)
    assert question_of(tokenizer, two).problem == two, "more than the usual example was chosen by hand"
    shown = question_of(tokenizer, problem, Asking(shots=1), Shots.of(Asking(shots=1), []))
    assert shown.text == asked("plain", problem, Asking(shots=1)).text, "asked for"


def test_hops_of_a_tasks_demonstrations() -> None:
    (problem,) = tasks.sample("parity", 6, 1, rendering="natural")
    shown = Shots.of(Asking(shots=3, demo_hops=[1, 2]), []).before(problem)
    assert [p.hops for p in shown] == [1, 2, 1]
    assert [p.hops for p in Shots.of(Asking(shots=2), []).before(problem)] == [4, 4]
    assert shown == Shots.of(Asking(shots=3, demo_hops=[1, 2]), []).before(problem)
    assert shown != Shots.of(Asking(shots=3, demo_hops=[1, 2], shots_seed=1), []).before(problem)
    assert len({p.prompt for p in [*shown, problem]}) == 4
    (product,) = tasks.sample("mdm", 2, 1, rendering="natural")
    with pytest.raises(BadInput, match="demo_hops asks for 40 hops, but mdm has at most 12"):
        Shots.of(Asking(shots=1, demo_hops=[40]), []).before(product)


def test_a_tasks_demonstrations_never_repeat_the_question() -> None:
    for problem in tasks.sample("parity", 1, 30, rendering="natural"):
        shown = Shots.of(Asking(shots=6, demo_hops=[1]), []).before(problem)
        assert len({json.dumps(p.facts) for p in [*shown, problem]}) == 7


def test_a_tasks_demonstrations_in_one_text_are_its_worked_examples() -> None:
    (problem,) = tasks.sample("clf", 4, 1, rendering="natural")
    got = asked(None, problem, Asking(shots=3))
    assert got.text.count("Worked example:\n") == 3 and got.stop == ("\nWorked example:", "\nProblem:")
    assert got.info["shots"] == 3 and got.problem is not None and got.problem.prompt == got.text
    none = asked(None, problem, Asking(shots=0))
    assert "Worked example" not in none.text and none.info == {"shots": 0} and none.stop == ()
    assert asked(None, problem, Asking(shots_as="none")).text == none.text
    own = asked(None, problem, Asking())
    assert own.text == problem.prompt and own.info == {} and own.stop == ()


def test_the_short_rendering_has_no_demonstrations() -> None:
    (problem,) = tasks.sample("parity", 2, 1, rendering="short")
    with pytest.raises(BadInput, match="Problems of the short rendering are asked without demonstrations"):
        asked(None, problem, Asking(shots=2))
    assert asked(None, problem, Asking(shots=0)).text == problem.prompt


# -- system prompt and chat template ----------------------------------------------------------------------------------


def test_a_system_prompt_is_a_turn_of_its_own() -> None:
    got = asked("plain", "Why?", Asking(system="Be brief."))
    assert got.text == "[system]Be brief.[end][user]Why?[end][assistant]" and got.info == {"system": "Be brief."}


@pytest.mark.parametrize("template", ["raises_on_system", "drops_system", "alternates"])
def test_a_template_without_a_system_role_has_it_in_the_first_turn(template: str) -> None:
    pool = sums(2)
    got = asked(template, pool[0], Asking(system="Be brief.", shots=1), pool)
    assert got.text.startswith(f"[user]Be brief.\n\n{pool[1].prompt}[end][assistant]")
    assert got.text.count("Be brief.") == 1 and got.info["system_folded"] is True


@pytest.mark.parametrize("name", [None, *TEMPLATES])
def test_prompts_have_one_bos_at_most(name: str | None) -> None:
    tokenizer = chat_tokenizer(name)
    ids = prompt_ids(tokenizer, "Why?")
    assert ids.count(tokenizer.bos_token_id) == (1 if name in (None, "own_bos") else 0)


def test_settings_that_the_template_reads_are_passed() -> None:
    off = asked("switches_thinking", "Why?", Asking(chat_kwargs={"enable_thinking": False}))
    assert off.text.endswith("[assistant]<think>\n\n</think>\n\n") and off.is_closed
    assert off.info == {"chat_kwargs": '{"enable_thinking": false}'}
    assert asked("switches_thinking", "Why?", Asking()).text.endswith("[assistant]")
    tools = asked("tools", "Why?", Asking(chat_kwargs={"tools": [{"name": "calc"}]}))
    assert tools.text.startswith("[tools]calc ")
    assert "hm" in asked("generation_tag", "Why?", Asking(chat_kwargs={"note": "hm"})).text


def test_settings_that_no_template_reads_are_refused_by_name() -> None:
    with pytest.raises(BadInput, match="Unknown setting of the chat template 'enable_thinkin'; known: enable_thinking"):
        asked("switches_thinking", "Why?", Asking(chat_kwargs={"enable_thinkin": False}))
    with pytest.raises(BadInput, match="The chat template reads no settings, so chat_kwargs cannot set 'depth'"):
        asked("plain", "Why?", Asking(chat_kwargs={"depth": 2}))
    for name in ("messages", "add_generation_prompt", "tokenize"):
        with pytest.raises(BadInput, match=f"chat_kwargs cannot set '{name}'"):
            Asking(chat_kwargs={name: False})


def test_a_model_that_does_not_think_has_the_usual_limit() -> None:
    tokenizer, model = chat_tokenizer("switches_thinking"), model_of("switches_thinking")
    model.config.max_position_embeddings = 40_000
    (thinking,) = prompts_of(model, tokenizer, ["Why?"])
    (plain,) = prompts_of(model, tokenizer, ["Why?"], asking=Asking(chat_kwargs={"enable_thinking": False}))
    assert (thinking.max_new_tokens, plain.max_new_tokens) == (32_768, 512)
    texts = ["[user]Why?[end][assistant]" + begun for begun in ("", "<think>\n\n</think>\n\n")]
    assert [p.limit for p in prompts_of(model, tokenizer, texts, asking=Asking(raw=True))] == ["thinking", "text"]
    (opened,) = prompts_of(model, chat_tokenizer("opens_thinking"), ["Why?"])
    assert opened.limit == "thinking"
    (of_set,) = prompts_of(model, chat_tokenizer("plain"), sums(1))
    assert (of_set.max_new_tokens, of_set.limit) == (1024, "set")


def thinker(i: int) -> Problem:
    chain = f"<think>\nHm, {i}.\n</think>\n\nIt is {i}.\n#### {i}"
    return Problem("t", 0, f"Number {i}?", chain, str(i), (), rendering="natural", checker="number")


def test_the_thinking_of_a_demonstration_goes_where_the_template_wants_it() -> None:
    pool = [thinker(1), thinker(2)]
    read = asked("reads_reasoning", pool[0], Asking(shots=1), pool)
    assert "[assistant]<think>Hm, 2.</think>It is 2.\n#### 2[end]" in read.text
    inline = asked("plain", pool[0], Asking(shots=1), pool)
    assert "[assistant]<think>\nHm, 2.\n</think>\n\nIt is 2.\n#### 2[end]" in inline.text
    text = asked("switches_thinking", pool[0], Asking(shots=1, shots_as="text"), pool)
    assert "<think>\nHm, 2.\n</think>\n\nIt is 2." in text.text


def test_thinking_that_the_template_leaves_out_is_warned_of() -> None:
    pool = [thinker(1), thinker(2)]
    with pytest.warns(OtherRendering, match="leaves the thinking of earlier turns out"):
        got = asked("switches_thinking", pool[0], Asking(shots=1), pool)
    assert "Hm, 2." not in got.text and "[assistant]It is 2.\n#### 2[end]" in got.text


def test_what_a_template_refuses_or_loses_is_said() -> None:
    pool = sums(2)
    with pytest.raises(BadInput, match=r"refuses a conversation of 3 turns \(one message only\).*--shots-as text"):
        asked("one_turn", pool[0], Asking(shots=1), pool)
    assert "Question: " in asked("one_turn", pool[0], Asking(shots=1, shots_as="text"), pool).text
    with pytest.raises(BadInput, match="does not write an earlier answer down"):
        asked("loses_answers", pool[0], Asking(shots=1), pool)


def test_what_needs_a_template_is_refused_without_one() -> None:
    for asking, name in (
        (Asking(system="x"), "system"),
        (Asking(chat_kwargs={"a": 1}), "chat_kwargs"),
        (Asking(shots_as="chat"), "shots_as='chat'"),
    ):
        with pytest.raises(BadInput, match=f"{name} goes through the chat template, but this tokenizer has no chat"):
            asked(None, "Why?", asking)
    assert asked("plain", "Why?", Asking(chat_template=False)).text == "Why?"


def test_a_text_that_went_through_the_template_gets_nothing_more() -> None:
    text = "[user]Why?[end][assistant]"
    with pytest.raises(BadInput, match="Prompt 0 has been through the chat template already, so system cannot"):
        asked("plain", text, Asking(system="x"))


# -- instructions ----------------------------------------------------------------------------------------------------


def test_the_form_of_the_answer_is_asked_for_where_nothing_shows_it() -> None:
    pool = sums()
    got = asked("plain", pool[0], Asking())
    assert got.text == f"[user]{pool[0].prompt}\n\n{got.info['instruction']}[end][assistant]"
    assert "The answer is" in str(got.info["instruction"])
    assert "instruction" not in asked("plain", pool[0], Asking(shots=1), pool).info
    assert asked("plain", pool[0], Asking(instruction="none")).text == f"[user]{pool[0].prompt}[end][assistant]"
    own = asked("plain", pool[0], Asking(instruction="Say it.", shots=1), pool)
    assert own.text.endswith(f"{pool[0].prompt}\n\nSay it.[end][assistant]")
    boxed = asked("plain", sums(checker="math")[0], Asking())
    assert str(boxed.info["instruction"]).endswith("\\boxed{}.")
    for problem in ("Why?", Problem("mine", 1, "Why?", "", "x", ()), tasks.sample("parity", 2, 1)[0]):
        assert "instruction" not in asked("plain", problem, Asking()).info


def test_a_checker_of_ones_own_may_ask_for_its_form() -> None:
    class Loud(Checker):
        instruction = "Shout it."

        def judge(self, response_text: str, answer: str, **options: object) -> Verdict:
            return Verdict(answer.upper() in response_text, None, "loud")

    name = checkers.name_of(Loud())
    assert asked("plain", sums(checker=name)[0], Asking()).info["instruction"] == "Shout it."


# -- contradictions and limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"raw": True, "shots": 2},
            r"raw \(--raw\) asks with the prompt as it is, so it cannot .* with shots",
        ),
        ({"raw": True, "system": "x"}, "cannot be combined with system"),
        ({"raw": True, "chat_kwargs": {"a": 1}}, "cannot be combined with chat_kwargs"),
        ({"chat_template": False, "system": "x"}, "system goes into the chat template, which --no-chat-template"),
        ({"chat_template": False, "chat_kwargs": {"a": 1}}, "chat_kwargs goes into the chat template"),
        ({"chat_template": False, "shots_as": "chat"}, "needs the chat template"),
        ({"shots": 2, "shots_as": "none"}, "asks for no demonstrations"),
        ({"shots": 0, "shots_from": "f.jsonl"}, "asks for no demonstrations"),
        ({"demo_hops": [2]}, "also say how many"),
        ({"demo_hops": [2], "shots": 1, "shots_from": "f.jsonl"}, "demo_hops draws demonstrations"),
        ({"shots": -1}, "shots must be a whole number from 0"),
        ({"system": " "}, "system must be a text"),
        ({"instruction": ""}, "instruction must be a text"),
        ({"shots_as": "turns"}, "Unknown shots_as 'turns'"),
        ({"shot": 2}, "Did you mean 'shots'"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, object], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        Asking(**options)


def test_a_prompt_that_is_too_long_with_its_demonstrations() -> None:
    tokenizer = chat_tokenizer("plain")
    few = tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=100)
    with pytest.raises(BadInput, match=r"Prompt 0 has \d+ tokens, but the model has positions for 100; lower --shots"):
        prompts_of(few, tokenizer, sums(6), 4, asking=Asking(shots=5))
    assert prompts_of(few, tokenizer, sums(6), 4, asking=Asking(shots=0))


# -- through generate ------------------------------------------------------------------------------------------------


def test_traces_say_how_they_were_asked() -> None:
    pool = sums(3)
    asking = Asking(shots=2, system="Be brief.")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        traces = generate(
            model_of(), chat_tokenizer("plain"), pool, asking=asking, max_new_tokens=3, temperature=0.5, n_samples=2,
            progress=False,
        )  # fmt: skip
    assert describe(traces) == (
        "Asked 6 as plain text, through the chat template, 2 demonstrations as turns of the chat, system prompt 'Be "
        "brief.', at most 3 new tokens (as given). Drawn at temperature 0.5. 2 responses to each problem."
    )
    assert traces[0].problem == pool[0] and traces[0].info["shots"] == 2


def test_words_that_a_tokenizer_does_not_know_are_warned_of() -> None:
    with pytest.warns(OtherRendering, match=r"3 of 3 problems have words that the tokenizer of this model does not"):
        generate(*load_model("reasoner"), sums(3), max_new_tokens=2, progress=False)


def test_a_file_of_demonstrations_that_changes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "demos.jsonl"
    path.write_text('{"question": "Say a.", "answer": "1"}')
    assert len(Shots.of(Asking(shots_from=str(path)), []).listed) == 1
    path.write_text('{"question": "Say a.", "answer": "1"}\n{"question": "Say b.", "answer": "2"}')
    os.utime(path, ns=(1, 1))
    assert len(Shots.of(Asking(shots_from=str(path)), []).listed) == 2
