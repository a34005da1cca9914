"""Loading a model by bundled name, folder or Hub id; models that Chainwright cannot read are refused here."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)
from transformers.utils import logging as hf_logging

from chainwright._errors import BadInput, unknown_name
from chainwright.models.anatomy import anatomy
from chainwright.models.fingerprint import fingerprint
from chainwright.models.sources import BUNDLED, known_models, source_of

_LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError, SafetensorError, StrictDataclassError, struct.error)
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class LoadedModel(NamedTuple):
    """A model and its tokenizer, both ordinary Transformers objects."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_model(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Return a model in evaluation mode and its tokenizer, after checking that its heads can be read and edited.

    Args:
        name: A bundled name (see `bundled_models`), one that a plugin registers, a folder with a checkpoint, or a Hub
            id. A bundled or registered name takes precedence over a folder, and a folder over a Hub id.
        device: Where to put the model; None means CUDA if available, otherwise the CPU.
        dtype: Number type of the weights; None means that of the checkpoint.
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Run code that comes with the checkpoint.

    Returns:
        (model, tokenizer); the tokenizer pads on the left.

    Raises:
        BadInput: The model does not exist, the folder has no config, the weights are only in a pickle format, damaged,
            incomplete or do not fit the config, or there is no usable tokenizer.
        UnsupportedModel: Its layers do not call the registered attention function.
    """
    where, revision = _resolve(str(name), revision)
    device = check_device(device)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    with quiet():
        try:
            config = AutoConfig.from_pretrained(where, **options)
            model, report = _auto_class(config).from_pretrained(
                where,
                config=config,
                dtype=dtype or "auto",
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
        except _LOADING_ERRORS as error:
            raise BadInput(_why_not(str(name), where, error)) from error
        _check_weights(str(name), report)
    tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=trust_remote_code)
    model = model.to(device).eval()
    anatomy(model)
    return LoadedModel(model, tokenizer)


def empty_model(
    name: str | Path, *, dtype: str | None = None, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Return a model without its weights, on the meta device, for estimates; only the config is read or downloaded.

    Raises:
        BadInput: The model does not exist, or cannot be built from its config.
    """
    where, revision = _resolve(str(name), revision)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    with quiet():
        try:
            config = AutoConfig.from_pretrained(where, **options)
            number = dtype or str(config.dtype or torch.float32).removeprefix("torch.")
            with torch.device("meta"):
                model: PreTrainedModel = _auto_class(config).from_config(
                    config, dtype=getattr(torch, number), trust_remote_code=trust_remote_code
                )
        except _LOADING_ERRORS as error:
            raise BadInput(_why_not(str(name), where, error)) from error
    return model


def load_tokenizer(
    name: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Return a model's tokenizer without the model, padding on the left; takes the names that `load_model` takes.

    Raises:
        BadInput: The model does not exist, or has no readable tokenizer.
    """
    where, revision = _resolve(str(name), revision)
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(where, revision=revision, trust_remote_code=trust_remote_code)
        except _LOADING_ERRORS as error:
            raise BadInput(f"Model {str(name)!r} has no readable tokenizer: {_sentence(error)}") from error
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _auto_class(config: PretrainedConfig) -> Any:
    """Return the class of Transformers that loads the model of a config as a language model.

    Some vision-language types (mistral3, qwen3_vl, llava) are unknown to `AutoModelForCausalLM`; loaded for images and
    text they answer to text alone like any language model.
    """
    has_own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    is_text = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if not has_own_code and not is_text and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the progress bars and tables of Transformers; errors are raised all the same."""
    had_bar, verbosity = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if had_bar:
            hf_logging.enable_progress_bar()


def _check_weights(name: str, report: dict[str, Any]) -> None:
    """Raise BadInput unless every weight came from the checkpoint; Transformers fills missing ones at random."""
    wrong = sorted(str(key[0]) for key in report["mismatched_keys"])
    if wrong:
        raise BadInput(f"Model {name!r}: {len(wrong)} weights do not fit config.json in shape, such as {wrong[0]}.")
    missing = sorted(report["missing_keys"])
    if missing:
        raise BadInput(
            f"Model {name!r} lacks {len(missing)} of the weights that its config.json requires, such as {missing[0]}; "
            "they would be random."
        )


def check_device(device: str | torch.device | None) -> torch.device:
    """Return the requested device, by default CUDA if available, otherwise the CPU; BadInput if it does not exist."""
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise BadInput(f"Unknown device {device!r}; give 'cpu', 'cuda', 'cuda:1' or 'mps'.") from error
    if chosen.type == "meta":
        raise BadInput("Device 'meta' holds no numbers to run a model on; use 'cpu' or 'cuda'.")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise BadInput(f"Device {str(device)!r} was requested, but PyTorch sees no CUDA device; use device='cpu'.")
    return chosen


def _resolve(name: str, revision: str | None) -> tuple[str, str | None]:
    """Return what Transformers loads from, a folder that was checked or a Hub id, and its revision."""
    source = source_of(name)
    if source is not None:
        name, revision = str(source.place), revision or source.revision
    folder = Path(name).expanduser()
    if folder.is_dir():
        _check_folder(folder)
        return str(folder), revision
    if folder.exists():
        raise BadInput(f"{name} is a file; give the folder that holds config.json and the safetensors weights.")
    looks_like_hub_id = name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")
    if looks_like_hub_id:
        return name, revision
    if "/" in name:
        raise BadInput(f"There is no folder {name}; give a bundled name, an existing folder, or a Hub id 'owner/name'.")
    raise unknown_name("model", name, known_models())


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise BadInput(f"Folder {folder} has no config.json, so it holds no Transformers checkpoint.")
    if (folder / "adapter_config.json").is_file() and not (folder / "adapter_model.safetensors").is_file():
        raise BadInput(
            f"Folder {folder} holds an adapter without adapter_model.safetensors; pickled ones are not loaded."
        )
    if any(folder.glob("model*.safetensors")):
        return
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        raise BadInput(
            f"Folder {folder} has its weights in a pickle format ({pickled[0]}), which can run code when loaded; save "
            "them as safetensors (with model.save_pretrained) and load that."
        )
    raise BadInput(f"Folder {folder} has a config.json but no safetensors weights.")


def _sentence(error: BaseException) -> str:
    """Return the first line of an error as a sentence."""
    if isinstance(error, StrictDataclassError) and error.__cause__ is not None:
        error = error.__cause__
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return first.rstrip(".:, ") + "."


def _why_not(name: str, where: str, error: BaseException) -> str:
    if "trust_remote_code" in str(error):
        return f"Model {name!r} brings its own code; pass trust_remote_code=True (--trust-remote-code) to run it."
    if "safetensors" in str(error) and "does not appear to have" in str(error):
        return f"Model {name!r} has no safetensors weights, and pickled ones are not loaded. {_sentence(error)}"
    if isinstance(error, SafetensorError):
        return f"The safetensors weights of model {name!r} are damaged: {_sentence(error)} Fetch or save them again."
    problem = f"Model {name!r} could not be loaded: {_sentence(error)}"
    if Path(where).is_dir():
        return problem
    known = ", ".join(known_models())
    return f"{problem} Bundled names: {known}; otherwise give a folder or a Hub id that can be reached."


def _is_bundled(model: PreTrainedModel) -> bool:
    return str(BUNDLED) in str(model.config._name_or_path)


def model_name(model: PreTrainedModel) -> str:
    """Return a model's bundled name, or else the path or Hub id that it was loaded from."""
    path = str(model.config._name_or_path)
    return Path(path).name if _is_bundled(model) else path


def load_as(
    source: Mapping[str, str], *, device: str | torch.device | None = None, trust_remote_code: bool = False
) -> LoadedModel:
    """Return the model that a `provenance` names, at the same revision and dtype.

    Raises:
        BadInput: It cannot be loaded.
    """
    revision = source.get("revision", "")
    return load_model(
        source["model"],
        device=device,
        dtype=source.get("dtype"),
        revision=None if revision in ("", "bundled") else revision,
        trust_remote_code=trust_remote_code,
    )


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the tokens that end a response: those of the generation config and the tokenizer's own."""
    of_model = model.generation_config.eos_token_id
    listed = of_model if isinstance(of_model, list) else [of_model]
    return {int(e) for e in (*listed, tokenizer.eos_token_id) if e is not None}


def provenance(model: PreTrainedModel) -> dict[str, str]:
    """Return what identifies a model in a result: name, revision, type, dtype, shape and a fingerprint."""
    from chainwright._version import __version__

    parts = anatomy(model)
    bundled = _is_bundled(model)
    return {
        "model": model_name(model),
        "revision": str(getattr(model.config, "_commit_hash", None) or ("bundled" if bundled else "")),
        "model_type": str(parts.model.config.model_type),
        "dtype": str(parts.model.dtype).removeprefix("torch."),
        "shape": f"{parts.n_layers} layers x {parts.n_heads} heads, d {parts.d_model}",
        "fingerprint": fingerprint(parts.model),
        "chainwright": __version__,
        "torch": str(torch.__version__),
    }
