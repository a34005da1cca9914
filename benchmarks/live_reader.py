# ruff: noqa: RUF001
"""How long reading a response takes while it is written: seconds per token must not grow with the length.

Each text is one long line (or many, with --lines) inside `<think>`, or a plain response without markers, which the
live reader takes token by token as StepFlow does while decoding. No model is needed: the tokenizer is a small one of
bytes.

    python benchmarks/live_reader.py                 # 1800, 3600, 7200 and 14400 tokens
    python benchmarks/live_reader.py --lines
"""

from __future__ import annotations

import argparse
import time

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from chainwright.traces import LiveSteps

SENTENCES = {
    "English": "Then bob adds twelve to it and so it is 345 now. ",
    "Chinese": "然后再加上十二，所以现在是三百四十五。",
    "no sentence end": "and then bob adds twelve to it and ",
}


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer trained on the sentences."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(SENTENCES.values(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core)


def seconds(reader: LiveSteps, ids: list[int]) -> float:
    """Return the time of reading all ids, one after the other."""
    start = time.process_time()
    row = reader.row(1)
    for token_id in [ids[0], *ids]:
        row.extend([token_id])
    return time.process_time() - start


def main() -> None:
    """Print a line for each text and length."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1800, 3600, 7200, 14400])
    parser.add_argument("--lines", action="store_true", help="End each sentence with a line end.")
    args = parser.parse_args()
    reader = LiveSteps(tokenizer())
    for name, sentence in SENTENCES.items():
        for opening in ("<think>", ""):
            for n_tokens in args.tokens:
                text = opening + (sentence + "\n" * args.lines) * (n_tokens // 8)
                ids = reader.tokenizer(text, add_special_tokens=False)["input_ids"][:n_tokens]
                spent = seconds(reader, list(ids))
                print(
                    f"{name:16} {'think' if opening else 'plain'} {len(ids):6} tokens "
                    f"{spent:7.2f} s {1e6 * spent / len(ids):6.0f} us per token"
                )


if __name__ == "__main__":
    main()
