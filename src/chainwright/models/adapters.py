"""LoRA and other PEFT adapters: fresh ones for training, and trained ones merged into a model's weights."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from chainwright._errors import BadInput, PartlyRead
from chainwright.models.hf_errors import LOADING_ERRORS, sentence

if TYPE_CHECKING:  # PEFT takes a second to import, and few models have adapters
    from peft import LoraConfig, PeftConfig, PeftModel

WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_MISMATCH = re.compile(r"size mismatch for (\S+): .*?torch\.Size\(\[(.*?)\]\).*?torch\.Size\(\[(.*?)\]\)")
_HALF = (torch.float16, torch.bfloat16)
_PROBE = 8  # tokens that are run before and after merging


def with_adapters(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """Return the model wrapped with adapters, which change nothing before they are trained.

    PEFT reads a property of Transformers by its former name; the resulting warning, about which a user can do nothing,
    is suppressed.
    """
    from peft import get_peft_model

    with _without_noise():
        return get_peft_model(model, config)


@contextmanager
def _without_noise() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings(
            "ignore", "Model (has|with) `tie_word_embeddings=True`"
        )  # merging is checked by its logits
        yield


def check_adapter(folder: Path) -> None:
    """Raise BadInput unless a folder holds an adapter whose weights are safetensors."""
    if not folder.is_dir():
        raise BadInput(f"There is no folder {folder}; give the folder of an adapter, with {_CONFIG} and {WEIGHTS}.")
    if not (folder / _CONFIG).is_file():
        raise BadInput(f"Folder {folder} has no {_CONFIG}, so it holds no PEFT adapter.")
    if not (folder / WEIGHTS).is_file():
        raise BadInput(f"Folder {folder} holds an adapter without {WEIGHTS}; pickled ones are not loaded.")


def with_merged(model: PreTrainedModel, folder: Path, base: str) -> PreTrainedModel:
    """Return a model with a trained adapter merged into its weights: a plain model, with heads of its own.

    The merged model's logits are compared with those of PEFT's wrapper on a few tokens. Both happen in float32, and the
    sums are rounded once to the model's number type: in half precision the two can differ widely by rounding alone.

    Args:
        model: The base; its weights are changed.
        folder: The adapter, as PEFT saves it.
        base: What the base is called, for messages.

    Raises:
        BadInput: The adapter is damaged, belongs on another base, or is of a kind that no merged weights can express.
    """
    check_adapter(folder)
    config = _config(folder)
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if config.is_prompt_learning or config.is_adaption_prompt or getattr(config, "alora_invocation_tokens", None):
        raise BadInput(f"Adapter {folder} is of the kind {kind}, which cannot be merged into the weights of a model.")
    is_packed = getattr(model, "is_quantized", False)
    dtypes = {} if is_packed else {name: weight.dtype for name, weight in model.named_parameters()}
    _cast(model, {name: torch.float32 for name, dtype in dtypes.items() if dtype in _HALF})
    ids = torch.arange(_PROBE, device=model.device).remainder(model.config.get_text_config().vocab_size)[None]
    with torch.no_grad(), _without_noise():
        plain: Tensor = model(input_ids=ids).logits
        wrapped = _wrapped(model, folder, config, base)
        wanted: Tensor = wrapped(input_ids=ids).logits
        merged = _merged(wrapped, folder, kind)
        got: Tensor = merged(input_ids=ids).logits
    gap, scale = float((got - wanted).abs().max()), float(wanted.abs().max())
    if not gap <= scale * (1e-3 if wanted.dtype == torch.float32 else 0.1):
        raise BadInput(
            f"Adapter {folder} ({kind}) cannot be merged: the merged model's logits differ by {gap:.3g} from those "
            "with the adapter beside the weights."
        )
    if torch.equal(plain, wanted):
        warnings.warn(f"Adapter {folder} changes nothing: its weights have no effect.", PartlyRead, stacklevel=3)
    _cast(merged, dtypes)
    return merged


def _cast(model: PreTrainedModel, dtypes: Mapping[str, torch.dtype]) -> None:
    """Change the number types of weights by name; buffers such as rotary frequencies keep theirs."""
    for name, weight in model.named_parameters():
        weight.data = weight.data.to(dtypes.get(name, weight.dtype))


def _config(folder: Path) -> PeftConfig:
    from peft import PeftConfig

    try:
        return PeftConfig.from_pretrained(str(folder))
    except (*LOADING_ERRORS, TypeError, AttributeError) as error:
        raise BadInput(f"{folder / _CONFIG} describes no adapter that PEFT knows: {sentence(error)}") from error


def _wrapped(model: PreTrainedModel, folder: Path, config: PeftConfig, base: str) -> PeftModel:
    """Return the model with an adapter beside its weights, after checking that every weight has its place."""
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict

    trained_on = f" It was trained on {config.base_model_name_or_path}." if config.base_model_name_or_path else ""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # refused below
            wrapped = PeftModel.from_pretrained(model, str(folder), config=config, torch_device=str(model.device))
        with safe_open(folder / WEIGHTS, "pt") as file:
            stored = set(file.keys())
    except SafetensorError as error:
        raise BadInput(f"The weights of adapter {folder} are damaged: {sentence(error)} Save them again.") from error
    except (*LOADING_ERRORS, RuntimeError, TypeError, AttributeError) as error:
        if found := _MISMATCH.search(str(error)):
            name, there, here = found[1].removeprefix("base_model.model.").replace(".default", ""), found[2], found[3]
            what = f"{name} has the shape ({there}) in the adapter and ({here}) here."
        else:
            what = sentence(error)
        raise BadInput(f"Adapter {folder} does not fit the model {base}: {what}{trained_on}") from error
    needed, known = (set(get_peft_model_state_dict(wrapped, save_embedding_layers=more)) for more in (False, True))
    if odd := sorted(stored - known) or sorted(needed - stored):
        side = "has no place for" if stored - known else "needs"
        name = odd[0].removeprefix("base_model.model.")
        raise BadInput(
            f"Adapter {folder} does not fit the model {base}, which {side} {name} and {len(odd) - 1} more.{trained_on}"
        )
    return wrapped


def _merged(wrapped: PeftModel, folder: Path, kind: str) -> PreTrainedModel:
    try:
        merged: Any = wrapped.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError, AttributeError, TypeError) as error:
        raise BadInput(
            f"Adapter {folder} is of the kind {kind}, which cannot be merged into the weights: {sentence(error)}"
        ) from error
    if hasattr(merged, "peft_config"):
        del merged.peft_config
    assert isinstance(merged, PreTrainedModel)
    return merged
