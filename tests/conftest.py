"""Settings of the whole test set: no network, a wide terminal, and one thread, since the models are tiny."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# tables are printed whole then, whatever the terminal that the tests are started from
os.environ["COLUMNS"] = "200"

import pytest
import torch
import transformers
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("untimed", deadline=None)  # a busy machine fails no test
settings.load_profile("untimed")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
