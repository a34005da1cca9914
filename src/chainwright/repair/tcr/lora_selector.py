"""The paper's selector: a small pretrained language model reads the context as text and ranks the heads.

The base is any Hub id or folder, or a bundled model; LoRA adapters and a linear head on its last position are trained,
the base stays as it is. Where base and repaired model share their tokens, the ids are read as they are; otherwise the
context is decoded and encoded again with the base's tokenizer. Contexts that continue one another, as the doubtful
tokens of one chain do, are read in one pass, which changes nothing since the base looks back only; a training batch
holds whole chains.

Source: TCR (arXiv 2601.21214), section 4: LoRA with r = 16, alpha = 32, dropout 0.05 on the q, k, v and output
projections, batches of 16, learning rate 1e-4 with a cosine, 3 epochs, gradients clipped at norm 1. Departure: one more
class, to silence nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from chainwright._errors import BadInput
from chainwright._registry import register
from chainwright.models.adapters import with_adapters
from chainwright.models.anatomy import anatomy
from chainwright.models.decoder import decoder, hidden_states
from chainwright.models.load import load_model
from chainwright.models.padding import left_pad, position_ids
from chainwright.repair.base import load_weights
from chainwright.repair.tcr.config import ClassifierConfig
from chainwright.repair.tcr.selector import multilabel_loss
from chainwright.repair.tcr.token_repair import Seen

_PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "c_attn", "query_key_value", "dense", "c_proj"}
_HEAD = "head."


class Chain(NamedTuple):
    """A row of tokens, and those rows that are beginnings of it or equal to it.

    Attributes:
        ids: The row.
        which: Index of each such row.
        n_tokens: How long each is.
    """

    ids: Sequence[int]
    which: list[int]
    n_tokens: list[int]


def chains_of(rows: Sequence[Sequence[int]]) -> list[Chain]:
    """Return rows of tokens joined where one continues another; each row is in one chain."""
    found: list[Chain] = []
    # in falling order of their tokens a row comes right after those that continue it
    for i in sorted(range(len(rows)), key=lambda i: list(rows[i]), reverse=True):
        row = rows[i]
        if not found or list(found[-1].ids[: len(row)]) != list(row):
            found.append(Chain(row, [], []))
        found[-1].which.append(i)
        found[-1].n_tokens.append(len(row))
    return found


@register("selector", "classifier")
class ClassifierSelector:
    """Scores heads by a language model that reads the context.

    Attributes:
        base: Name of the base, as `load_model` takes it.
        tokens_of: Name of the model whose tokens the contexts are.
        shares_tokens: Whether the base reads these tokens as they are.
    """

    def __init__(self, base: str, tokens_of: str, n_choices: int, config: ClassifierConfig | None = None):
        self.base = base
        self.tokens_of = tokens_of
        self.n_choices = n_choices
        self.config = config or ClassifierConfig()
        loaded = load_model(base, device="cpu")
        self.tokenizer = loaded.tokenizer
        self.own: PreTrainedTokenizerBase = load_model(tokens_of, device="cpu").tokenizer
        self.shares_tokens = self.tokenizer.get_vocab() == self.own.get_vocab()
        parts = anatomy(loaded.model)
        self.d_model = parts.d_model
        self.n_positions = int(getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None) or 2**31)
        names = {name.rpartition(".")[2] for name, _ in loaded.model.named_modules()} & _PROJECTIONS
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            lora = LoraConfig(
                r=self.config.rank,
                lora_alpha=self.config.alpha,
                lora_dropout=self.config.dropout,
                target_modules=sorted(names),
            )
            self.network = with_adapters(loaded.model, lora).eval()
            self.head = nn.Linear(self.d_model, n_choices)

    @property
    def reads_hidden(self) -> bool:
        """Whether it reads hidden states of the repaired model."""
        return False

    def scores(self, seen: Seen) -> Tensor:
        """Return the classifier's scores."""
        with torch.no_grad():
            return self._forward([self.encoded(ids) for ids in seen.contexts])

    def encoded(self, ids: Sequence[int]) -> list[int]:
        """Return a context in the base's tokens, cut at its start if it is longer than the base can read.

        Raises:
            BadInput: The base's tokenizer cannot read it.
        """
        read = list(ids)
        if not self.shares_tokens:
            text = self.own.decode(read, skip_special_tokens=True)
            read = list(self.tokenizer(text)["input_ids"])
            unknown = self.tokenizer.unk_token_id
            n_unknown = 0 if unknown is None else read.count(unknown)
            if not read or 10 * n_unknown > len(read):  # what it does not know it cannot choose by
                raise BadInput(
                    f"The tokenizer of the base classifier {self.base!r} cannot read the contexts of "
                    f"{self.tokens_of!r} ({n_unknown} of {len(read)} tokens are unknown to it); choose another base."
                )
        return read[-self.n_positions :]

    def _forward(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return the scores of rows in their order, `[N, choices]`."""
        chains = chains_of(rows)
        order = torch.tensor([i for chain in chains for i in chain.which])
        return self._of_chains(chains)[order.argsort()]

    def _of_chains(self, chains: Sequence[Chain]) -> Tensor:
        """Return the scores of every row of the chains, chain by chain."""
        ids, mask = left_pad([chain.ids for chain in chains], 0, torch.device("cpu"))
        hidden = hidden_states(
            decoder(self.network)(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False)
        )
        assert hidden is not None
        width = ids.shape[1]
        at = [(r, width - len(chain.ids) + n - 1) for r, chain in enumerate(chains) for n in chain.n_tokens]
        chain_at, column = torch.tensor(at).unbind(1)
        return self.head(hidden[chain_at, column].float())  # type: ignore[no-any-return]

    def fit(self, contexts: Sequence[Sequence[int]], labels: Tensor) -> ClassifierSelector:
        """Train on contexts and which choices are right at each; rows without a right one are skipped.

        Raises:
            BadInput: No row has a right choice, or the base's tokenizer cannot read the contexts.
        """
        usable = (labels.sum(-1) > 0).nonzero()[:, 0].tolist()
        if not usable:
            raise BadInput("At no token does any choice of heads give the right one, so there is nothing to select.")
        rows = [self.encoded(contexts[i]) for i in usable]
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(self.config.seed)
            self._train(rows, labels[usable].float())
        self.network.eval()
        return self

    def _train(self, rows: list[list[int]], labels: Tensor) -> None:
        config = self.config
        weights = [*(p for p in self.network.parameters() if p.requires_grad), *self.head.parameters()]
        optimizer = torch.optim.AdamW(weights, lr=config.lr)
        chains = chains_of(rows)
        batches = [batch for _ in range(config.n_epochs) for batch in _batches(chains, config.batch_size)]
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
        self.network.train()
        for batch in batches:
            optimizer.zero_grad()
            own = labels[[i for chain in batch for i in chain.which]]
            loss = multilabel_loss(self._of_chains(batch), own)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(weights, config.max_norm)
            optimizer.step()
            schedule.step()

    def settings(self) -> dict[str, Any]:
        """Return what makes the selector besides tensors."""
        return {
            "base": self.base,
            "tokens_of": self.tokens_of,
            "n_choices": self.n_choices,
            "training": self.config.record(),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return adapters and head."""
        adapters: dict[str, Tensor] = get_peft_model_state_dict(self.network)
        return {**adapters, **{f"{_HEAD}{name}": value for name, value in self.head.state_dict().items()}}

    @classmethod
    def restore(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ClassifierSelector:
        """Return the selector that `settings` and `tensors` describe; its base is loaded by name."""
        made = cls(
            settings["base"], settings["tokens_of"], settings["n_choices"], ClassifierConfig(**settings["training"])
        )
        head = {name.removeprefix(_HEAD): value for name, value in tensors.items() if name.startswith(_HEAD)}
        load_weights(made.head, head, "the head of its classifier")
        set_peft_model_state_dict(made.network, {k: v for k, v in tensors.items() if not k.startswith(_HEAD)})
        return made


def _batches(chains: Sequence[Chain], n_rows: int) -> Iterator[list[Chain]]:
    """Yield the chains in random order, in groups that hold `n_rows` rows or a chain more."""
    batch: list[Chain] = []
    for i in torch.randperm(len(chains)).tolist():
        batch.append(chains[i])
        if sum(len(chain.which) for chain in batch) >= n_rows:
            yield batch
            batch = []
    if batch:
        yield batch
