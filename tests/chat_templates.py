"""Small chat templates with one quirk each, on a byte-level tokenizer."""

from __future__ import annotations

from functools import cache

from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from instruct import instruct_tokenizer

_TURNS = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
_ASSISTANT = "{% if add_generation_prompt %}[assistant]{% endif %}"
TEMPLATES = {
    "plain": _TURNS,
    # gemma and its like raise on a system turn
    "raises_on_system": "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + _TURNS,
    # others write the roles that they know and drop the rest
    "drops_system": "{% for m in messages %}{% if m.role == 'user' %}[user]{{ m.content }}[end]"
    "{% elif m.role == 'assistant' %}[assistant]{{ m.content }}[end]{% endif %}{% endfor %}" + _ASSISTANT,
    "own_bos": "{{ bos_token }}" + _TURNS,
    "opens_thinking": _TURNS.replace("[assistant]{% endif %}", "[assistant]<think>\n{% endif %}"),
    # Qwen3: thinking is switched by a setting, and that of earlier turns is left out
    "switches_thinking": "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}"
    "{% if '</think>' in m.content %}{{ m.content.split('</think>')[-1].lstrip() }}{% else %}{{ m.content }}{% endif %}"
    "{% else %}{{ m.content }}{% endif %}[end]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}",
    "reads_reasoning": "{% for m in messages %}[{{ m.role }}]{% if m.reasoning_content %}<think>"
    "{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}[end]{% endfor %}" + _ASSISTANT,
    "alternates": "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}[{{ m.role }}]{{ m.content }}[end]"
    "{% endfor %}" + _ASSISTANT,
    "one_turn": "{% if messages|length > 1 %}{{ raise_exception('one message only') }}{% endif %}" + _TURNS,
    "tools": "{% if tools %}[tools]{% for t in tools %}{{ t.name }} {% endfor %}[end]{% endif %}" + _TURNS,
    "generation_tag": "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}[end]{% endfor %}"
    "{% if note %}{{ note }}{% endif %}" + _ASSISTANT,
    "loses_answers": "{% for m in messages %}[{{ m.role }}]{% if m.role == 'user' %}{{ m.content }}{% endif %}[end]"
    "{% endfor %}" + _ASSISTANT,
}


@cache
def chat_tokenizer(name: str | None) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a template of `TEMPLATES`, or without one; it adds a BOS of its own."""
    backend = instruct_tokenizer().backend_tokenizer.from_str(instruct_tokenizer().backend_tokenizer.to_str())
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eot>", bos_token="<s>", pad_token="<eot>")
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", made.bos_token_id)]
    )
    made.chat_template = None if name is None else TEMPLATES[name]
    return made
