"""The word-level tokenizer of the bundled models: one token per word and per digit; text reads back as written."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PAD, BOS, END, UNKNOWN = "<pad>", "<bos>", "<end>", "<unk>"
SPECIAL = (PAD, BOS, END, UNKNOWN)


def word_tokenizer(words: Sequence[str], max_tokens: int) -> PreTrainedTokenizerFast:
    r"""Return a tokenizer that splits at spaces, takes line ends and digits one by one, and puts `<bos>` in front.

    Decoding joins tokens with one space, and none around a line end or between two digits, so that text made
    of known words with single spaces and without two numbers side by side comes back letter for letter.

    Args:
        words: Every token but the special ones, in the order of their ids; "\n" and the ten digits among
        them.
        max_tokens: Longest input of the model.
    """
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *words))}
    if len(vocabulary) != len(SPECIAL) + len(words):
        raise ValueError("A word is twice in the vocabulary.")
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
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
    core.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        unk_token=UNKNOWN,
        padding_side="left",
        model_max_length=max_tokens,
        clean_up_tokenization_spaces=False,
    )
