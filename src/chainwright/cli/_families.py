"""Which model types can be read and edited: a tiny random model of each is built and tried.

1. Every type that `AutoModelForCausalLM` knows is built from its own config class, with the sizes in the config made
   small by the names that configs use. No type is named here.
2. Its anatomy is found, or the type is refused by name.
3. What Chainwright measures is compared with what the model does by itself: a knockout with a hook of its own on the
   output projection, `score` with the model's logits, and decoding with a cache with decoding without one, both under
   an edit.
"""

from __future__ import annotations

import gc
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from chainwright._errors import BadInput, ChainwrightError
from chainwright.edits.base import edit
from chainwright.edits.knock_out import KnockOut
from chainwright.models.anatomy import Anatomy, anatomy
from chainwright.models.hf_errors import quiet
from chainwright.models.load import load_tokenizer
from chainwright.models.sources import bundled_models
from chainwright.scoring import score
from chainwright.traces import Trace

N_LAYERS = 3
D_VOCAB = 128
VERDICTS = ("works", "refused", "differs", "fails", "could not be built")
_LARGEST = 2 * 10**7
_HEAD = (1, 1)
_N_NEW = 6
# relative to the largest number compared; the models are in float32
_TOLERANCE = 1e-3

_SIZES: dict[int, tuple[str, ...]] = {
    N_LAYERS: ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"),
    4: (
        "num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "encoder_attention_heads",
        "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "linear_num_key_heads",
        "linear_num_value_heads", "mamba_n_heads", "mamba_num_heads", "index_n_heads",
    ),
    2: ("num_key_value_heads", "num_experts_per_tok", "moe_k", "moe_top_k", "top_k_experts", "num_experts_per_token",
        "index_topk"),
    1: ("n_group", "topk_group", "n_shared_experts", "num_shared_experts", "first_k_dense_replace", "mamba_n_groups"),
    64: ("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "emb_dim", "word_embed_proj_dim",
         "attention_hidden_size"),
    96: ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "intermediate_size_mlp", "decoder_ffn_dim",
         "encoder_ffn_dim", "shared_intermediate_size", "block_ff_dim"),
    32: ("moe_intermediate_size", "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size",
         "expert_ffn_hidden_size", "index_head_dim", "ffn_hidden_size", "lru_width", "mamba_d_head", "mamba_head_dim"),
    24: ("q_lora_rank",),
    16: ("head_dim", "attention_head_dim", "kv_lora_rank", "kv_channels", "linear_key_head_dim",
         "linear_value_head_dim", "d_kv", "rotary_dim", "mamba_d_state", "ssm_state_size", "state_size",
         "global_head_dim", "time_step_rank"),
    12: ("v_head_dim",),
    8: ("qk_nope_head_dim", "qk_rope_head_dim", "sliding_window", "attention_window", "local_attention"),
    D_VOCAB: ("vocab_size", "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length",
              "vocab_size_per_layer_input", "n_words", "encoder_hash_byte_group_vocab"),
}  # fmt: skip
_SMALL = {name: size for size, names in _SIZES.items() for name in names}
# what configs leave open that the model then needs
_OPEN = ("head_dim", "num_key_value_heads", "n_routed_experts", "num_experts", "num_local_experts")
_SETTINGS: dict[str, Any] = {
    "dtype": "float32",
    "mrope_section": [4, 2, 2],
    "num_kv_shared_layers": 0,
    "is_decoder": True,
}
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


class Outcome(NamedTuple):
    """What came of one model type: one of `VERDICTS`, and why."""

    type: str
    verdict: str
    reason: str = ""


class _CouldNotBuild(Exception):
    """A tiny model of a type could not be made; the message says why."""


def model_types(only: str | None = None) -> list[str]:
    """Return the types to try, in alphabetical order.

    Args:
        only: Some of them, separated by commas; None takes all.

    Raises:
        BadInput: One of them is unknown to `AutoModelForCausalLM`.
    """
    known = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    if only is None:
        return known
    chosen = [name.strip() for name in only.split(",") if name.strip()]
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise BadInput(
            f"--only takes model types that AutoModelForCausalLM knows, separated by commas, such as llama,gpt2; "
            f"got {', '.join(unknown) or 'none'}."
        )
    return chosen


def check_family(kind: str) -> Outcome:
    """Build a tiny model of a type and try it; whatever goes wrong is the outcome."""
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                model = tiny_model(kind)
            except _CouldNotBuild as error:
                return Outcome(kind, "could not be built", str(error))
            try:
                parts = anatomy(model)
            except ChainwrightError as error:
                return Outcome(kind, "refused", str(error))
            differences = [what for what in _differences(parts) if what]
            return Outcome(kind, "differs", "; ".join(differences)) if differences else Outcome(kind, "works")
    # the point of a survey is to learn what each type raises, and one type must not end it for the others
    except Exception as error:
        return Outcome(kind, "fails", _line(error))
    finally:
        gc.collect()


def tiny_model(kind: str) -> PreTrainedModel:
    """Return a tiny random model of a type in float32, sharpened so that its attention is not flat."""
    try:
        return _tiny_model(_small_config(kind))
    # a config that does not bear being made small, or the model's own code, can raise anything
    except Exception as first:
        try:
            return _tiny_model(_small_config(kind, is_filled=True))
        except Exception:
            raise _CouldNotBuild(_line(first)) from first


def _tiny_model(config: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        n_weights = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if n_weights > _LARGEST:
        raise _CouldNotBuild(f"made small by the usual names it still has {n_weights / 1e6:.0f} million weights")
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    _sharpen(model)
    with torch.no_grad():
        logits = model(input_ids=_ids(), use_cache=False).logits
    if not bool(logits.isfinite().all()):
        raise _CouldNotBuild("with random weights its logits are not finite")
    return model


def _small_config(kind: str, *, is_filled: bool = False) -> PretrainedConfig:
    """Return the config of a type with small sizes; `is_filled` also sets those that it leaves open."""
    cls = CONFIG_MAPPING[kind]
    small: PretrainedConfig = cls.from_dict(_shrunk(cls().to_dict(), is_filled))
    return small


def _shrunk(fields: Mapping[str, Any], is_filled: bool) -> dict[str, Any]:
    """Return the fields of a config with small sizes, also in the configs inside it."""
    n_before = next((fields[n] for n in _SIZES[N_LAYERS] if isinstance(fields.get(n), int)), None)
    small = {name: _small_value(name, value, n_before, is_filled) for name, value in fields.items()}
    heads, kv_heads = fields.get("num_attention_heads"), fields.get("num_key_value_heads")
    if heads is not None and heads == kv_heads:
        small["num_key_value_heads"] = small["num_attention_heads"]  # no grouped queries, which some types cannot have
    if "qk_rope_head_dim" in fields and fields.get("head_dim") == fields["qk_rope_head_dim"]:
        small["head_dim"] = small["qk_rope_head_dim"]
    if "qk_head_dim" in fields and "qk_nope_head_dim" in fields:
        small["qk_head_dim"] = small["qk_nope_head_dim"] + small["qk_rope_head_dim"]
    return small


def _small_value(name: str, value: Any, n_layers: int | None, is_filled: bool) -> Any:
    if name in _TOKENS:
        return _TOKENS[name]
    if name in _SETTINGS and (is_filled or name != "is_decoder"):
        return _SETTINGS[name]
    if isinstance(value, Mapping):
        by_layer = value and all(str(key).isdigit() for key in value)
        return {k: v for k, v in value.items() if int(k) < N_LAYERS} if by_layer else _shrunk(value, is_filled)
    if isinstance(value, list):
        return _of_few_layers(value) if len(value) == n_layers else value
    if value is None and is_filled and name in _OPEN:
        return _SMALL[name]
    if isinstance(value, int) and not isinstance(value, bool) and name in _SMALL:
        return min(value, _SMALL[name]) if value > 0 else value
    return value


def _of_few_layers(values: list[Any]) -> list[Any]:
    """Return the entries of the first layers, with every kind of entry among them where there is room."""
    if not all(isinstance(value, str) for value in values):
        return values[:N_LAYERS]
    firsts = sorted(values.index(kind) for kind in dict.fromkeys(values))[:N_LAYERS]
    rest = [i for i in range(len(values)) if i not in firsts]
    return [values[i] for i in sorted([*firsts, *rest[: N_LAYERS - len(firsts)]])]


@torch.no_grad()
def _sharpen(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        if weight.dim() >= 2:
            weight.copy_(torch.randn(weight.shape, generator=generator) * (1.2 / weight.shape[-1] ** 0.5))


def _ids() -> Tensor:
    return torch.randint(11, 60, (1, 12), generator=torch.Generator().manual_seed(3))


def _differences(parts: Anatomy) -> Iterator[str]:
    """Yield what is measured otherwise than the model by itself does, in words."""
    model, ids = parts.model, _ids()
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        want = _by_hook(parts, ids)
        with edit(model, KnockOut({_HEAD})):
            got = model(input_ids=ids, use_cache=False).logits
    yield _off("a knockout", got, want)
    if torch.equal(got, whole):
        yield "a knockout changes nothing"
    yield _off("score", score(model, _trace(ids)).logprob[1:], _log_probs(whole, ids))
    with edit(model, KnockOut({_HEAD})):
        cached, uncached = (_greedy(model, ids, use_cache) for use_cache in (True, False))
    if cached != uncached:
        is_own = _greedy(model, ids, True) != _greedy(model, ids, False)
        yield f"decoding with a cache differs from decoding without one{', also without an edit' if is_own else ''}"


def _by_hook(parts: Anatomy, ids: Tensor) -> Tensor:
    """Return the logits with one head's part of the projection's input at zero."""
    layer, head = _HEAD

    def cut(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = args[0].clone()
        z.view(*z.shape[:-1], parts.n_heads, -1)[..., head, :] = 0
        return z, *args[1:]

    handle = parts.layers[layer].out_proj.register_forward_pre_hook(cut)
    try:
        logits: Tensor = parts.model(input_ids=ids, use_cache=False).logits
    finally:
        handle.remove()
    return logits


def _log_probs(logits: Tensor, ids: Tensor) -> Tensor:
    return logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]


def _trace(ids: Tensor) -> Trace:
    return Trace.from_ids(load_tokenizer(bundled_models()[0]), ids[0], 4, style="plain")


def _greedy(model: PreTrainedModel, ids: Tensor, use_cache: bool) -> list[int]:
    """Return greedy tokens, by `generate` with a cache or from whole passes without one."""
    if use_cache:
        # a type's own defaults may force tokens at the beginning or the end
        model.generation_config = GenerationConfig(pad_token_id=0)
        written = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=_N_NEW, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        return list(written[0, -_N_NEW:].tolist())
    with torch.no_grad():
        for _ in range(_N_NEW):
            best = model(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, best], dim=1)
    return list(ids[0, -_N_NEW:].tolist())


def _off(what: str, got: Tensor, want: Tensor) -> str:
    """Return by how much a result differs, in words; empty if it does not."""
    largest = float((got - want).abs().max())
    room = _TOLERANCE * max(1.0, float(want.abs().max()))
    # written so that NaN differs too
    return "" if largest <= room else f"{what} differs by {largest:.3g}"


def _line(error: BaseException) -> str:
    if isinstance(error, _CouldNotBuild):
        return str(error)
    if isinstance(error, StrictDataclassError) and error.__cause__ is not None:
        error = error.__cause__  # the outer one only names the validator
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:160]}" if first else type(error).__name__


def counts(outcomes: Collection[Outcome]) -> str:
    """Return how many types had each verdict, in a sentence."""
    by_verdict = Counter(outcome.verdict for outcome in outcomes)
    listed = ", ".join(f"{by_verdict[verdict]} {verdict}" for verdict in VERDICTS if by_verdict[verdict])
    return f"{len(outcomes)} model types: {listed}."


def as_markdown(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes as a Markdown table, whose reasons end before what was tried and what to do instead."""
    short = (o._replace(reason=o.reason.split("; ")[0].split(" (tried:")[0]) for o in outcomes)
    rows = (f"| {o.type} | {o.verdict} | {o.reason.replace('|', chr(92) + '|')} |" for o in short)
    return "\n".join(["| type | verdict | reason |", "|---|---|---|", *rows])
