"""What loading by Transformers raises and prints, turned into one sentence and into silence."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers.utils import logging as hf_logging

LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError, SafetensorError, StrictDataclassError, struct.error)


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


def sentence(error: BaseException) -> str:
    """Return the first line of an error as a sentence."""
    if isinstance(error, StrictDataclassError) and error.__cause__ is not None:
        error = error.__cause__
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return first.rstrip(".:, ") + "."
