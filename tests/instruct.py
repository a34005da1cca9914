"""A tiny instruction model with a chat template, random or taught a few natural chains."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from chainwright import tasks
from chainwright.prompts.prompt import prompt_ids
from families import tiny

_SPECIAL = ["<eot>", "<user>", "<assistant>"]
_TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}<eot>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def natural(task: str = "llc", hops: Sequence[int] = (2, 3), n: int = 8, seed: int = 100) -> list[tasks.Problem]:
    return [p for h in hops for p in tasks.sample(task, h, n, seed, rendering="natural")]


@cache
def instruct_tokenizer() -> PreTrainedTokenizerFast:
    """Return byte-level BPE with a chat template."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    texts = [text for p in natural(n=20) for text in (p.prompt, p.chain)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, special_tokens=_SPECIAL, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eot>", pad_token="<eot>")
    made.chat_template = _TEMPLATE
    return made


def instruct_model(seed: int = 0) -> PreTrainedModel:
    """Return a random model of that tokenizer."""
    tokenizer = instruct_tokenizer()
    model = tiny("llama", seed, vocab_size=len(tokenizer), max_position_embeddings=1024)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    return model


def taught(problems: Sequence[tasks.Problem], n_steps: int, seed: int = 0, lr: float = 3e-3) -> PreTrainedModel:
    """Return a model that has seen the chains of some problems, but not often enough to have them all right."""
    tokenizer, model = instruct_tokenizer(), instruct_model(seed)
    torch.manual_seed(seed)
    for weight in model.parameters():
        if weight.dim() >= 2:
            torch.nn.init.normal_(weight, std=0.02 if weight.shape[0] == len(tokenizer) else weight.shape[-1] ** -0.5)
    rows = []
    for p in problems:
        asked = prompt_ids(tokenizer, p)
        chain = tokenizer(p.chain, add_special_tokens=False)["input_ids"]
        rows.append((asked, [*chain, tokenizer.eos_token_id]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    order = torch.Generator().manual_seed(seed)
    for _ in range(n_steps):
        picked = [rows[i] for i in torch.randint(len(rows), (8,), generator=order).tolist()]
        width = max(len(a) + len(b) for a, b in picked)
        ids = torch.tensor([[*a, *b, *[0] * (width - len(a) - len(b))] for a, b in picked])
        labels = torch.tensor([[*[-100] * len(a), *b, *[-100] * (width - len(a) - len(b))] for a, b in picked])
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()
