"""Loading a model by name, folder, GGUF file or Hub id; models that Chainwright cannot read are refused here."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
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

from chainwright._errors import BadInput, SlowDtype, see
from chainwright.models.adapters import with_merged
from chainwright.models.anatomy import anatomy
from chainwright.models.fingerprint import fingerprint
from chainwright.models.half_precision import multiplies_bfloat16
from chainwright.models.hf_errors import LOADING_ERRORS, quiet, sentence
from chainwright.models.places import Place, locate
from chainwright.models.sources import BUNDLED, known_models, shots_of_recipe
from chainwright.models.spreading import MERGE_FIRST, check_spread, spread_options

OWN_SHOTS = "chainwright_shots"
"""Setting of a tokenizer: how many demonstrations its model was trained to be asked with."""


class LoadedModel(NamedTuple):
    """A model and its tokenizer, both ordinary Transformers objects."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_model(
    name: str | Path,
    *,
    adapter: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    tp_plan: Literal["auto"] | None = None,
    device_map: str | Mapping[str, str | int] | None = None,
) -> LoadedModel:
    """Return a model in evaluation mode and its tokenizer, after checking that its heads can be read and edited.

    Args:
        name: A known name (bundled, fetched or registered by a plugin; `chainwright models` lists them), a folder with
            a checkpoint, a GGUF file or a folder with only one, or a Hub id. A known name takes precedence over a
            folder, and a folder over a Hub id. A GGUF file is converted into a checkpoint in the user's cache once.
        adapter: Folder of a PEFT adapter (LoRA and others), which is merged into the weights: the model is a plain one,
            with heads of its own.
        device: Where to put the model; None means CUDA if available, otherwise the CPU.
        dtype: Number type of the weights; None means that of the checkpoint.
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Run code that comes with the checkpoint.
        tp_plan: "auto" spreads the model over the ranks of torchrun by the plan of its family (tensor parallelism);
            every rank makes the same calls. Alone in its group, or outside of one, a process refuses it.
        device_map: Spreads the layers over several devices as accelerate does: "auto", another of its names, or the
            device of each module. What has no room is offloaded.

    Returns:
        (model, tokenizer); the tokenizer pads on the left.

    Raises:
        BadInput: The model does not exist or was not fetched, the folder has no config, the weights are only in a
            pickle format, damaged, incomplete or do not fit the config, the GGUF file cannot be read or the cache not
            be written, the adapter belongs on another base or cannot be merged, or there is no usable tokenizer.
        UnsupportedModel: Its layers do not call the registered attention function.

    Warns:
        SlowDtype: It is in bfloat16, which this processor emulates.
    """
    check_spread(tp_plan, device_map, device, adapter)
    device = check_device(device)
    place = locate(str(name), revision, adapter)
    where, revision = place.where, place.revision
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    with quiet():
        try:
            config = AutoConfig.from_pretrained(where, **options)
            spread = spread_options(config, tp_plan, device_map)
            model, report = _auto_class(config).from_pretrained(
                where,
                config=config,
                dtype=dtype or "auto",
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
                **spread,
            )
        except LOADING_ERRORS as error:
            raise BadInput(_why_not(str(name), where, error)) from error
        _check_weights(str(name), report)
    if place.adapters and spread:
        raise BadInput(f"Model {name!r} has an adapter, which is merged on one device; {MERGE_FIRST}")
    for folder in place.adapters:
        model = with_merged(model, folder, str(name))
    tokenizer = _tokenizer_at(str(name), place, trust_remote_code)
    model = model.eval() if spread else model.to(device).eval()
    _warn_if_slow(model, str(name))
    model.chainwright_origin = dict(place.origin)
    anatomy(model)
    return LoadedModel(model, tokenizer)


def _warn_if_slow(model: PreTrainedModel, name: str) -> None:
    """Warn of a number type that is slow here."""
    if model.dtype == torch.bfloat16 and not multiplies_bfloat16(model.device):
        warnings.warn(
            f"Model {name!r} is in bfloat16, for which this processor has no instructions: it emulates them, several "
            "times slower than float32; load it with dtype='float32' (--dtype float32).",
            SlowDtype,
            stacklevel=3,
        )


def empty_model(
    name: str | Path, *, dtype: str | None = None, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Return a model without its weights, on the meta device, for estimates; only the config is read or downloaded.

    Besides the names that `load_model` takes, a config.json file can be named.

    Raises:
        BadInput: The model does not exist, or cannot be built from its config.
    """
    place = locate(str(name), revision, needs_weights=False)
    where, revision = place.where, place.revision
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    with quiet():
        try:
            config = AutoConfig.from_pretrained(where, **options)
            number = dtype or str(config.dtype or torch.float32).removeprefix("torch.")
            with torch.device("meta"):
                model: PreTrainedModel = _auto_class(config).from_config(
                    config, dtype=getattr(torch, number), trust_remote_code=trust_remote_code
                )
        except LOADING_ERRORS as error:
            raise BadInput(_why_not(str(name), where, error)) from error
    return model


def load_tokenizer(
    name: str | Path,
    *,
    adapter: str | Path | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """Return a model's tokenizer without the model, padding on the left; takes the names that `load_model` takes.

    Raises:
        BadInput: The model does not exist, or has no readable tokenizer.
    """
    return _tokenizer_at(str(name), locate(str(name), revision, adapter), trust_remote_code)


def _tokenizer_at(name: str, place: Place, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model that was located: that of its last adapter with one, else that of its base."""
    own = (str(folder) for folder in reversed(place.adapters) if (folder / "tokenizer_config.json").is_file())
    where = next(own, place.where)
    revision = place.revision if where == place.where else None
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(where, revision=revision, trust_remote_code=trust_remote_code)
        except LOADING_ERRORS as error:
            raise BadInput(f"Model {name!r} has no readable tokenizer: {sentence(error)}") from error
    for shots in filter(lambda n: n is not None, map(shots_of_recipe, place.adapters)):
        tokenizer.init_kwargs[OWN_SHOTS] = shots  # saved with the tokenizer
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


def _why_not(name: str, where: str, error: BaseException) -> str:
    if "trust_remote_code" in str(error):
        allow = "pass trust_remote_code=True (--trust-remote-code) to run it"
        return f"Model {name!r} brings its own code; {allow} {see('remote-code')}."
    if "safetensors" in str(error) and "does not appear to have" in str(error):
        return f"Model {name!r} has no safetensors weights, and pickled ones are not loaded. {sentence(error)}"
    if isinstance(error, SafetensorError):
        return f"The safetensors weights of model {name!r} are damaged: {sentence(error)} Fetch or save them again."
    problem = f"Model {name!r} could not be loaded: {sentence(error)}"
    if Path(where).is_dir():
        return problem
    known = ", ".join(known_models())
    return f"{problem} Bundled names: {known}; otherwise give a folder or a Hub id that can be reached."


def _is_bundled(model: PreTrainedModel) -> bool:
    return str(BUNDLED) in str(model.config._name_or_path)


def model_name(model: PreTrainedModel) -> str:
    """Return the name by which a model was loaded, or else the path or Hub id that it comes from."""
    origin: Mapping[str, str] = getattr(model, "chainwright_origin", {})
    if "model" in origin:
        return origin["model"]
    path = str(model.config._name_or_path)
    return Path(path).name if _is_bundled(model) else path


def source_of_model(model: PreTrainedModel) -> dict[str, str]:
    """Return the arguments with which `load_model` loads a model again: its name, and its adapter if it has one."""
    origin: Mapping[str, str] = getattr(model, "chainwright_origin", {})
    return {"model": model_name(model), **{name: origin[name] for name in ("adapter",) if name in origin}}


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
        adapter=source.get("adapter"),
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
    """Return what identifies a model in a result: name, revision, type, dtype, shape and a fingerprint.

    A model from a GGUF file or with a merged adapter has their SHA-256 as well (`gguf_sha256`, `adapter_sha256`), and
    the adapter's folder, so that `load_as` loads the same.
    """
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
        **getattr(parts.model, "chainwright_origin", {}),
    }
