"""Prompts that are asked as they are: through no template twice, with one BOS, and with the reply begun."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache

import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from chainwright import StepFlow, tasks
from chainwright._errors import BadInput, OtherRendering
from chainwright.decode.run import generate
from chainwright.prompts import Asking, describe, is_rendered, prompt_ids, prompts_of
from chainwright.repair.tcr.flag_log import FlagLog
from chainwright.scoring import score
from chainwright.tasks import Problem
from chainwright.tasks.knowledge import World
from families import tiny
from instruct import instruct_model, instruct_tokenizer

TEMPLATES = {
    "chatml": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "llama2": (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
    ),
    "r1": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}"
        "{% else %}<|Assistant|>{{ m.content }}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
    ),
}


@cache
def chat_tokenizer(name: str, *, adds_bos: bool = True) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with a published kind of chat template and, as most have, a BOS that it adds."""
    backend = instruct_tokenizer().backend_tokenizer.from_str(instruct_tokenizer().backend_tokenizer.to_str())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", bos_token="<s>", pad_token="</s>")
    if adds_bos:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
    tokenizer.chat_template = TEMPLATES[name]
    return tokenizer


def rendered(tokenizer: PreTrainedTokenizerFast, text: str = "What is 6 x 7?") -> str:
    turn = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False))


def model_of(tokenizer: PreTrainedTokenizerFast, **changes: object) -> torch.nn.Module:
    return tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=1024, **changes)


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_begins_with_one_bos_however_it_is_asked(name: str, adds_bos: bool) -> None:
    tokenizer = chat_tokenizer(name, adds_bos=adds_bos)
    bos = tokenizer.bos_token_id
    for text in ("What is 6 x 7?", "<s>What is 6 x 7?", rendered(tokenizer), "<s>" + rendered(tokenizer)):
        for raw in (True, False):
            ids = prompt_ids(tokenizer, text, raw=raw)
            assert ids[:2] != [bos, bos]
            assert ids[0] == bos or not (adds_bos and raw)
    assert prompt_ids(tokenizer, rendered(tokenizer), raw=True).count(bos) <= 1


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_rendered_prompt_is_asked_as_the_text_that_it_was_made_of(name: str) -> None:
    tokenizer = chat_tokenizer(name, adds_bos=TEMPLATES[name].startswith("{{ bos_token"))
    model, text = model_of(tokenizer), rendered(tokenizer)
    assert is_rendered(tokenizer, text) and not is_rendered(tokenizer, "What is 6 x 7?")
    (by_text,) = generate(model, tokenizer, ["What is 6 x 7?"], max_new_tokens=3, progress=False)
    with pytest.warns(OtherRendering, match=r"1 of 1 prompts \(first: prompt 0\) have been through the chat template"):
        (by_rendered,) = generate(model, tokenizer, [text], max_new_tokens=3, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (by_raw,) = generate(model, tokenizer, [text], raw=True, max_new_tokens=3, progress=False)
    assert by_raw == by_rendered
    assert by_raw.input_ids.tolist() == by_text.input_ids.tolist()
    assert by_raw.response_start == by_text.response_start
    assert describe([by_raw]) == (
        "Asked 1 as text that went through the chat template before, without a chat template, at most 3 new tokens (as "
        "given)."
    )


def test_raw_asks_a_string_or_a_problem_without_the_template() -> None:
    tokenizer = instruct_tokenizer()
    (problem,) = tasks.sample("llc", 2, 1, rendering="natural")
    for asked, text in (("Once upon a time", "Once upon a time"), (problem, problem.prompt)):
        (trace,) = generate(instruct_model(), tokenizer, [asked], raw=True, max_new_tokens=2, progress=False)
        assert trace.prompt == text and trace.response_start == len(tokenizer(text)["input_ids"])
        assert trace.info["chat_template"] is False and "n_prefilled" not in trace.info


@pytest.mark.parametrize("begun", ["<think>\nOkay, first", "The answer is", " It"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_what_begins_the_reply_belongs_to_the_response(name: str, begun: str) -> None:
    tokenizer = chat_tokenizer(name, adds_bos=False)
    text = rendered(tokenizer)
    if name == "r1":
        begun = begun.removeprefix("<think>\n")  # the template has opened the thinking
    (trace,) = generate(model_of(tokenizer), tokenizer, [text + begun], raw=True, max_new_tokens=4, progress=False)
    assert tokenizer.decode(trace.input_ids[: trace.response_start]) == text
    assert trace.response is not None and trace.response.startswith(begun)
    n_prefilled = int(trace.info["n_prefilled"])
    assert n_prefilled == len(tokenizer(begun, add_special_tokens=False)["input_ids"])
    assert len(trace) == trace.response_start + n_prefilled + 4
    whole = tokenizer(text + begun, add_special_tokens=False)["input_ids"]
    assert trace.input_ids.tolist()[:-4] == whole
    want = model_of(tokenizer).generate(torch.tensor([whole]), max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert trace.input_ids.tolist() == want[0].tolist()
    assert (trace.style == "think") == ("think" in begun or name == "r1")


def test_thinking_that_another_setting_left_closed_is_part_of_the_reply() -> None:
    tokenizer = chat_tokenizer("r1", adds_bos=False)
    text = "<s><|User|>What?<|Assistant|>"
    (prompt,) = prompts_of(model_of(tokenizer), tokenizer, [text + "It is 4"], asking=Asking(raw=True))
    assert tokenizer.decode(prompt.ids[: prompt.n_question]) == text


def test_the_question_of_a_conversation_ends_with_its_last_turn() -> None:
    tokenizer = chat_tokenizer("chatml", adds_bos=False)
    turns = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    text = str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
    (prompt,) = prompts_of(model_of(tokenizer), tokenizer, [text + "So"], asking=Asking(raw=True))
    assert tokenizer.decode(prompt.ids[: prompt.n_question]) == text


def test_segments_are_read_alike_while_decoding_and_scoring_after_a_begun_reply() -> None:
    tokenizer = chat_tokenizer("chatml", adds_bos=False)
    model = model_of(tokenizer, seed=3)
    repair = StepFlow(bridge_layers=(1, 2), momentum_layers=(), tau_max=0.9, tokenizer=tokenizer)
    asked = [rendered(tokenizer) + begun for begun in ("<think>\nFirst I add. Then I look at it again. Now", "The sum")]
    traces = generate(model, tokenizer, asked, raw=True, repair=repair, max_new_tokens=12, progress=False)
    for trace in traces:
        start = trace.response_start + int(trace.info["n_prefilled"])
        assert score(model, trace, repair=repair).argmax[start:].tolist() == trace.input_ids[start:].tolist()


def test_flags_of_a_begun_reply_count_from_its_first_token() -> None:
    tokenizer = chat_tokenizer("chatml", adds_bos=False)
    text = rendered(tokenizer) + "The answer"
    (trace,) = generate(model_of(tokenizer), tokenizer, [text], raw=True, max_new_tokens=4, progress=False)
    n_prefilled, ids = int(trace.info["n_prefilled"]), trace.input_ids.tolist()
    log = FlagLog()
    log._flagged[tuple(ids[:-4])] = [tuple(ids[-4:-2])]
    assert log.tokens([trace]) == [[n_prefilled + 2]]


def test_a_problem_made_by_hand_is_asked_as_a_string_is() -> None:
    problem = Problem("mine", 1, "What is 6 x 7?", chain="", answer="42", slots=())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_hand, by_text = generate(
            instruct_model(), instruct_tokenizer(), [problem, problem.prompt], max_new_tokens=3, progress=False
        )
    assert by_hand.input_ids.tolist() == by_text.input_ids.tolist() and by_hand.problem == problem
    assert by_hand.info["rendering"] == "text" and by_hand.info["chat_template"] is True
    assert by_hand.is_correct is False and by_text.is_correct is None
    question = World().question(3, 1)
    with pytest.warns(OtherRendering):
        prompts_of(instruct_model(), instruct_tokenizer(), [question])


def test_a_token_beyond_the_embedding_is_one_sentence() -> None:
    tokenizer = chat_tokenizer("chatml")
    model = tiny("llama", vocab_size=len(tokenizer) - 1, max_position_embeddings=1024)
    last = tokenizer.convert_ids_to_tokens(len(tokenizer) - 1)
    with pytest.raises(BadInput, match=rf"Prompt 1 has token '{last}' \(id \d+\), but the model embeds \d+ tokens and"):
        generate(model, tokenizer, ["a", f"a{last}"], raw=True, progress=False)


def test_a_padding_token_beyond_the_embedding_does_no_harm() -> None:
    own = chat_tokenizer("chatml")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own.backend_tokenizer, eos_token="</s>", pad_token="<pad>")
    model = tiny("llama", vocab_size=len(tokenizer) - 1, max_position_embeddings=1024)
    assert tokenizer.pad_token_id == len(tokenizer) - 1
    together = generate(model, tokenizer, ["What is it?", "Why?"], max_new_tokens=3, progress=False)
    alone = generate(model, tokenizer, ["Why?"], max_new_tokens=3, progress=False)
    assert replace(together[1], info={}) == replace(alone[0], info={})
