"""How models are asked: the rendering for a tokenizer, the room for a response, and what traces say about both."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from chainwright import tasks
from chainwright._errors import BadInput, OtherRendering
from chainwright.decode.run import generate
from chainwright.lab.tokenizer import word_tokenizer
from chainwright.models import LoadedModel, load_model
from chainwright.models.sources import bundled_models
from chainwright.prompts import as_asked, describe, prompt_ids, prompts_of, reads_short, rendering_for, thinks
from chainwright.tasks import Problem, vocabulary
from chainwright.tasks.base import Draw
from chainwright.tasks.knowledge import World, questions
from chainwright.traces import Trace
from families import tiny
from instruct import instruct_model, instruct_tokenizer

_QWEN3 = "{% if enable_thinking is defined %}<think>{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def reasoner() -> LoadedModel:
    return load_model("reasoner")


def thinking_tokenizer(template: str = _QWEN3) -> object:
    """Return a copy of the instruction model's tokenizer whose template thinks."""
    tokenizer = instruct_tokenizer().__class__(tokenizer_object=instruct_tokenizer().backend_tokenizer)
    tokenizer.chat_template = template
    return tokenizer


def test_an_open_problem_is_asked_in_the_rendering_of_the_model(reasoner: LoadedModel) -> None:
    problems = tasks.sample("llc", 2, 3, seed=4)
    short = tasks.sample("llc", 2, 3, seed=4, rendering="short")
    natural = tasks.sample("llc", 2, 3, seed=4, rendering="natural")
    assert problems == short and all(p.draw is not None for p in problems)
    with warnings.catch_warnings():
        warnings.simplefilter("error", OtherRendering)
        by_chat = generate(instruct_model(), instruct_tokenizer(), problems, max_new_tokens=3, progress=False)
        by_reasoner = generate(*reasoner, problems, progress=False)
    assert [t.problem for t in by_chat] == natural
    assert [t.problem for t in by_reasoner] == short
    assert all(t.problem is not None and t.problem.draw is None for t in [*by_chat, *by_reasoner])
    assert by_chat[0].input_ids.tolist()[: by_chat[0].response_start] == prompt_ids(instruct_tokenizer(), problems[0])


@pytest.mark.parametrize("n", [0, 2])
def test_a_rendering_is_fixed_byte_for_byte(n: int) -> None:
    (opened,) = tasks.sample("parity", 3, 1, seed=7, n_demonstrations=n)
    (natural,) = tasks.sample("parity", 3, 1, seed=7, rendering="natural", n_demonstrations=n)
    assert tasks.fix_rendering(opened, "natural") == natural
    assert tasks.fix_rendering(natural, "natural") is natural
    with pytest.raises(BadInput, match=r"written in the natural rendering, and cannot become short; sample it with"):
        tasks.fix_rendering(natural, "short")
    with pytest.raises(BadInput, match="Unknown rendering 'long'"):
        tasks.fix_rendering(opened, "long")  # type: ignore[arg-type]


def test_a_short_rendering_that_was_chosen_is_kept_with_one_warning() -> None:
    problems = tasks.sample("llc", 2, 3, rendering="short")
    with pytest.warns(
        OtherRendering, match=r"short rendering go to this model as bare words, without the chat"
    ) as seen:
        traces = generate(instruct_model(), instruct_tokenizer(), problems, max_new_tokens=3, progress=False)
    assert len([w for w in seen if issubclass(w.category, OtherRendering)]) == 1
    assert [t.problem for t in traces] == problems and traces[0].prompt == problems[0].prompt


def test_a_word_level_tokenizer_must_know_the_words_if_it_has_a_chat_template() -> None:
    (problem,) = tasks.sample("clf", 3, 1)
    whole, poor = word_tokenizer(vocabulary(), 99), word_tokenizer(["\n", *"0123456789", "clf"], 99)
    assert reads_short(whole, problem) and reads_short(poor, problem)
    whole.chat_template = poor.chat_template = "{{ messages[0].content }}"
    assert reads_short(whole, problem) and not reads_short(poor, problem)
    assert as_asked(poor, problem) == tasks.sample("clf", 3, 1, rendering="natural")[0]


def test_a_task_with_one_rendering_keeps_it(reasoner: LoadedModel) -> None:
    (natural,) = tasks.sample("parity", 2, 1, rendering="natural")
    alone = replace(natural, draw=Draw("parity|2|0|0", 1))
    assert as_asked(reasoner.tokenizer, alone) == natural
    with pytest.raises(BadInput, match="compass"):
        as_asked(instruct_tokenizer(), tasks.sample("compass", 2, 1)[0])


@pytest.mark.parametrize("name", bundled_models())
def test_the_name_of_a_model_and_its_tokenizer_agree_on_the_rendering(name: str, tmp_path: Path) -> None:
    tokenizer = load_model(name).tokenizer
    for task in tasks.known():
        (problem,) = tasks.sample(task, 3, 1)
        asked = as_asked(tokenizer, problem)
        assert isinstance(asked, Problem) and asked.rendering == rendering_for("auto", name) == "short"
    (tmp_path / "recipe.json").write_text(json.dumps({}))
    assert rendering_for("auto", str(tmp_path)) == "short"
    chat = as_asked(instruct_tokenizer(), tasks.sample("llc", 2, 1)[0])
    assert isinstance(chat, Problem) and chat.rendering == rendering_for("auto", "org/chat") == "natural"


@pytest.mark.parametrize(
    ("template", "is_thinking"),
    [
        (_QWEN3, True),
        ("{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}", True),
        ("<|start|>assistant<|channel|>analysis<|message|>", True),
        ("{{ content.split('</think>')[-1] }}", False),  # cuts the thinking of earlier turns, opens none
        ("{% for m in messages %}{{ m.content }}{% endfor %}", False),
        (None, False),
    ],
)
def test_which_templates_make_a_model_think(template: str | None, is_thinking: bool) -> None:
    assert thinks(thinking_tokenizer(template)) is is_thinking  # type: ignore[arg-type]


def test_a_model_that_thinks_has_room_to_think() -> None:
    model, thinking = tiny("llama", vocab_size=600, max_position_embeddings=100_000), thinking_tokenizer()
    natural = tasks.sample("llc", 2, 1, rendering="natural")
    (prompt,) = prompts_of(model, thinking, natural)  # type: ignore[arg-type]
    assert (prompt.max_new_tokens, prompt.limit) == (32_768, "thinking")
    (text,) = prompts_of(model, thinking, ["What is 6 x 7?"])  # type: ignore[arg-type]
    assert (text.max_new_tokens, text.limit) == (32_768, "thinking")
    (plain,) = prompts_of(model, instruct_tokenizer(), natural)
    n_gold = len(instruct_tokenizer()(natural[0].chain, add_special_tokens=False)["input_ids"])
    assert (plain.max_new_tokens, plain.limit) == (n_gold + n_gold // 2 + 16, "chain")
    assert prompts_of(model, instruct_tokenizer(), ["What?"])[0].max_new_tokens == 512
    assert prompts_of(model, thinking, natural, 40)[0].max_new_tokens == 40  # type: ignore[arg-type]
    few = tiny("llama", vocab_size=600, max_position_embeddings=2000)
    (capped,) = prompts_of(few, thinking, natural)  # type: ignore[arg-type]
    assert capped.max_new_tokens == 2000 - len(capped.ids)


def test_an_answer_alone_gets_room_for_an_answer(reasoner: LoadedModel) -> None:
    known = Problem("mine", 1, "ann ?", chain="bob", answer="bob", slots=())
    unknown = Problem("mine", 1, "ann ?", chain="", answer="42", slots=())
    prompts = prompts_of(*reasoner, [known, unknown])
    assert [(p.max_new_tokens, p.limit) for p in prompts] == [(2, "answer"), (512, "text")]


def test_questions_answered_at_once_are_judged_as_with_one_token() -> None:
    """The model of the made-up world has no end token: it goes on to other names after its answer."""
    model, tokenizer = load_model("world")
    world = World()
    problems = questions(world, world.facts[:60], "bare")
    by_default = generate(model, tokenizer, problems, progress=False)
    single = generate(model, tokenizer, problems, max_new_tokens=1, progress=False)
    assert [t.is_correct for t in by_default] == [t.is_correct for t in single] == [True] * 60
    assert all(t.is_exact for t in by_default)
    long = generate(model, tokenizer, problems[:5], max_new_tokens=9, progress=False)
    assert all(t.is_correct and len(t.response_ids) == 9 for t in long)


def test_traces_say_how_they_were_asked(reasoner: LoadedModel) -> None:
    problems = tasks.sample("llc", 2, 2)
    traces = generate(instruct_model(), instruct_tokenizer(), [*problems, "Why?"], max_new_tokens=3, progress=False)
    keys = ("rendering", "chat_template", "max_new_tokens", "limit")
    assert [traces[0].info[key] for key in keys] == ["natural", True, 3, "given"]
    assert traces[2].info["rendering"] == "text"
    assert describe(traces) == (
        "Asked 2 in the natural rendering, through the chat template, at most 3 new tokens (as given); "
        "1 as plain text, through the chat template, at most 3 new tokens (as given)."
    )
    own = generate(*reasoner, problems, progress=False)
    assert describe(own).startswith("Asked 2 in the short rendering, without a chat template, at most ")
    assert describe(own).endswith("new tokens (1.5 x the gold chain + 16).")
    other = Trace.from_text(instruct_tokenizer(), "a", "b")
    assert describe([other]) == "Asked 1 in an unknown way." and describe([]) == "Nothing was asked."
