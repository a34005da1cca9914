"""Four small tokenizers of the kinds that models come with, trained here on a few lines."""

from __future__ import annotations

from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LINES = [
    "The coin is heads up. ann flips the coin, so it is tails now.",
    "bob keeps it? Yes! Answer: tails\n\n12 + 345 = 357",
    "naïve café, 日本語, 🙂 and 👩‍👩‍👧 are hard to cut.",
]
HARMONY_TOKENS = ["<|start|>", "<|end|>", "<|return|>", "<|channel|>", "<|message|>"]
WORDS = [*"ann bob cat flips stays heads tails start answer . ? ! + = , :".split(), *"0123456789", "\n"]


def _bos_template(core: Tokenizer, *, eos: bool = False) -> None:
    ids = [("<bos>", core.token_to_id("<bos>")), ("<eos>", core.token_to_id("<eos>"))]
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>" if eos else "<bos> $A", special_tokens=ids
    )


def _wrap(core: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>"
    )


@cache
def byte_level() -> PreTrainedTokenizerFast:
    """Byte-level BPE as in GPT-OSS and Qwen: Harmony markers are special tokens, <think> is ordinary."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<bos>", "<eos>", "<unk>", "<pad>", *HARMONY_TOKENS],
        show_progress=False,
    )
    core.train_from_iterator(LINES * 4, trainer)
    core.add_tokens(["<think>", "</think>"])
    return _wrap(core)


@cache
def word_level(*, eos: bool = False) -> PreTrainedTokenizerFast:
    """Words, line ends and single digits; spaces are put back by the decoder, all of them and then fewer."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(" +"), "removed"),
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    core.decoder = decoders.Sequence(
        [
            decoders.Replace(Regex("$"), " "),
            decoders.Fuse(),
            decoders.Replace(Regex(r"(?<=\d) (?=\d)"), ""),
            decoders.Replace(Regex(r" ?\n ?"), "\n"),
            decoders.Replace(Regex(" $"), ""),
        ]
    )
    _bos_template(core, eos=eos)
    return _wrap(core)


@cache
def task_words() -> PreTrainedTokenizerFast:
    """The word-level tokenizer with every word of the short tasks."""
    from chainwright.tasks import vocabulary

    core = word_level().backend_tokenizer
    words = ["<pad>", "<bos>", "<eos>", "<unk>", *vocabulary()]
    fresh = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    fresh.pre_tokenizer, fresh.decoder = core.pre_tokenizer, core.decoder
    _bos_template(fresh)
    return _wrap(fresh)


@cache
def late_spaces() -> PreTrainedTokenizerFast:
    """Words whose decoder takes the space before a line end away only once the next word is there."""
    core = Tokenizer.from_str(word_level().backend_tokenizer.to_str())
    core.decoder = decoders.Sequence(
        [
            decoders.Replace(Regex("$"), " "),
            decoders.Fuse(),
            decoders.Replace(Regex(r" \n (?=[a-z])"), "\n"),
            decoders.Replace(Regex(" $"), ""),
        ]
    )
    return _wrap(core)


@cache
def metaspace() -> PreTrainedTokenizerFast:
    """Unigram pieces with the leading space mark of SentencePiece."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120,
        special_tokens=["<unk>", "<bos>", "<eos>", "<pad>"],
        unk_token="<unk>",
        show_progress=False,
    )
    core.train_from_iterator(LINES * 4, trainer)
    _bos_template(core)
    return _wrap(core)


@cache
def byte_fallback() -> PreTrainedTokenizerFast:
    """BPE with byte pieces for unknown characters, as in Llama 2: an unfinished one decodes to many marks."""
    pieces = ["<unk>", "<bos>", "<eos>", "<pad>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += list("abcdefghijklmnopqrstuvwxyz.,?!")
    core = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=[],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    core.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    _bos_template(core)
    return _wrap(core)


ALL = {
    "byte level": byte_level,
    "word level": word_level,
    "late spaces": late_spaces,
    "metaspace": metaspace,
    "byte fallback": byte_fallback,
}
