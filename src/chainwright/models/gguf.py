"""GGUF files as ordinary checkpoints: converted once by Transformers, then read from the cache.

1. The head of the file is read and checked: architecture, parts, length (`gguf_header`).
2. Transformers dequantises the weights to float32, which holds every value of the file exactly, and builds the
   tokenizer from the metadata. Both need the package `gguf`, the extra `chainwright[gguf]`.
3. What Transformers does not take from the file is put right: the scaling of rotary positions, the way in which
   words are split, the tokens that end a turn (`gguf_details`). The leftover quantization config, which
   would refuse `save_pretrained`, is taken off.
4. Model and tokenizer are saved under the cache folder, in a folder named by the file's SHA-256 and by what converted
   it. A lock keeps other processes from doing the same work; the folder appears when it is whole. Sizes and checksums
   are noted, and a folder that does not fit them is made again.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from chainwright._errors import BadInput, PartlyRead
from chainwright._files import atomic_folder, read_json, write_json
from chainwright._progress import progress_bar
from chainwright.models.cache import cache_folder, check_room, sha256_of, writing_cache
from chainwright.models.gguf_details import complete_config, complete_tokenizer, end_tokens
from chainwright.models.gguf_header import GGUFHeader, read_header
from chainwright.models.hf_errors import LOADING_ERRORS, quiet, sentence

_SCHEME = 1  # counted up whenever the same file would be converted into something else
_NOTE = "converted.json"
_CHUNK = 2**22


def converted(path: Path) -> Path:
    """Return the folder with the checkpoint that a GGUF file was converted into, converting it if need be.

    Args:
        path: The file.

    Raises:
        BadInput: The file is damaged, cut off or no GGUF file, Transformers cannot read its architecture, the package
            `gguf` is missing, or the cache cannot be written.
    """
    header, converter = read_header(path), _converter()
    _check_header(header)
    folder = cache_folder() / "gguf" / f"{sha256_of(path)[:32]}-{converter}"
    if not _is_whole(folder):
        with writing_cache(folder), FileLock(folder.with_name(f"{folder.name}.lock")):
            if not _is_whole(folder):  # another process may have made it meanwhile
                _convert(header, folder)
    for message in read_json(folder / _NOTE)["warnings"]:
        warnings.warn(message, PartlyRead, stacklevel=4)
    return folder


def is_reader_installed() -> bool:
    """Return whether the package `gguf`, which conversions need, is installed."""
    return find_spec("gguf") is not None


def _converter() -> str:
    """Return what a conversion depends on besides the file, as a short name."""
    parts = [str(_SCHEME), *(f"{name} {_version(name)}" for name in ("transformers", "gguf", "tokenizers"))]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:8]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError as error:
        raise BadInput(
            f"Reading a GGUF file needs the package {package}; run pip install 'chainwright[gguf]'."
        ) from error


def _check_header(header: GGUFHeader) -> None:
    from gguf import GGML_QUANT_SIZES

    n_parts = int(header.metadata.get("split.count", 1))
    if n_parts > 1:
        raise BadInput(
            f"{header.path} is one of {n_parts} parts of a model; join them with llama.cpp's `gguf-split --merge`."
        )
    if not header.tensors:
        raise BadInput(f"{header.path} holds no weights (a vocabulary alone); give the file of the model.")
    sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
    size, end = header.path.stat().st_size, header.data_start
    for tensor in header.tensors:
        if tensor.kind not in sizes:
            raise BadInput(
                f"{header.path}: the number type {tensor.kind} of {tensor.name} is unknown to the installed gguf "
                f"({_version('gguf')}); update it, or give a file with another quantisation."
            )
        block, n_bytes = sizes[tensor.kind]
        n = 1
        for length in tensor.shape:
            n *= length
        end = max(end, header.data_start + tensor.offset + n // block * n_bytes)
    if size < end:
        raise BadInput(f"{header.path} is cut off: it has {size:,} of {end:,} bytes; fetch it again.")


def _is_whole(folder: Path) -> bool:
    """Return whether a converted folder is there with every file as it was written.

    A file is read for its checksum only if its size or its time of change is another than noted.
    """
    try:
        note = read_json(folder / _NOTE)
        return all(_is_same(folder / name, known) for name, known in note["files"].items()) and bool(note["files"])
    except (BadInput, OSError, KeyError, TypeError, AttributeError):
        return False


def _is_same(path: Path, known: dict[str, int]) -> bool:
    status = path.stat()
    if status.st_size != known["size"]:
        return False
    return status.st_mtime_ns == known["changed"] or _checksum(path) == known["crc32"]


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def _convert(header: GGUFHeader, folder: Path) -> None:
    """Convert a file into a folder of the cache."""
    check_room(folder.parent, 4 * header.n_numbers + 2**26, f"The converted model of {header.path.name}")
    with progress_bar(f"converting {header.path.name} (once)", None), quiet():
        tokenizer = _tokenizer(header)
        model, messages = _model(header, tokenizer)
        with atomic_folder(folder) as draft:
            model.save_pretrained(draft)
            tokenizer.save_pretrained(draft)
            files = {
                path.name: {"size": path.stat().st_size, "changed": path.stat().st_mtime_ns, "crc32": _checksum(path)}
                for path in sorted(draft.iterdir())
            }
            note = {"gguf_sha256": sha256_of(header.path), "name": header.path.name, "warnings": messages}
            write_json(draft / _NOTE, {**note, "files": files})


def _model(header: GGUFHeader, tokenizer: PreTrainedTokenizerBase) -> tuple[PreTrainedModel, list[str]]:
    """Return the model of a file in float32, and what of the file is not in it, in sentences."""
    options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, report = _by_transformers(header, AutoModelForCausalLM, **options)
    wrong = sorted(map(str, [*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])]))
    if wrong:
        raise BadInput(
            f"{header.path} lacks {len(wrong)} weights of a {header.architecture} model, or has them in another shape, "
            f"such as {wrong[0]}."
        )
    bad = [name for name, weight in model.named_parameters() if not bool(torch.isfinite(weight).all())]
    if bad:
        raise BadInput(f"{header.path} is damaged: {bad[0]} holds numbers that are not finite; fetch it again.")
    for name in ("quantization_config", "_model_name_or_path"):
        model.config.__dict__.pop(name, None)
    for name in ("hf_quantizer", "quantization_method"):
        model.__dict__.pop(name, None)
    model.is_quantized = False
    model.generation_config.eos_token_id = end_tokens(header, tokenizer)
    return model, complete_config(header, model)


def _tokenizer(header: GGUFHeader) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = _by_transformers(header, AutoTokenizer)
    complete_tokenizer(header, tokenizer)
    return tokenizer


def _by_transformers(header: GGUFHeader, kind: Any, **options: Any) -> Any:
    """Return what a class of Transformers loads from a file."""
    with tempfile.TemporaryDirectory() as place:  # alone in a folder, beside no config that would be read as well
        (Path(place) / "model.gguf").symlink_to(header.path.resolve())
        try:
            with _without_bars():
                return kind.from_pretrained(place, gguf_file="model.gguf", **options)
        except (*LOADING_ERRORS, NotImplementedError, AttributeError, TypeError, IndexError, RuntimeError) as error:
            if "not supported" in str(error) or "Unknown gguf model_type" in str(error):
                raise BadInput(
                    f"{header.path} is of the architecture {header.architecture!r}, which Transformers "
                    f"{version('transformers')} cannot read from GGUF files; give the model as safetensors."
                ) from error
            raise BadInput(
                f"{header.path} (architecture {header.architecture}) could not be read: {sentence(error)}"
            ) from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """Suppress the progress bar that Transformers draws for GGUF files whatever its settings are."""
    from transformers import modeling_gguf_pytorch_utils as reader

    bars = reader.tqdm
    reader.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        reader.tqdm = bars
