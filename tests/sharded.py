"""What the ranks of `run_ranks` do with models that are spread over them."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.distributed import DistributedConfig

from chainwright import KnockOut, edit
from chainwright._errors import ChainwrightError
from chainwright.models import capture
from chainwright.models.fingerprint import fingerprint


def split(folder: str) -> PreTrainedModel:
    """Return a model with tensor parallelism over all ranks."""
    config = DistributedConfig(tp_plan="auto")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, distributed_config=config).eval()


def refusals(folder: str) -> list[str]:
    model, ids = split(folder), torch.tensor([[3, 4, 5]])

    def edited() -> None:
        with edit(model, KnockOut({(0, 2)})):
            model(ids)

    said = []
    for call in (edited, lambda: capture(model, ids), lambda: fingerprint(model)):
        try:
            call()
        except ChainwrightError as error:
            said.append("is spread over 2 processes" if "is spread over 2 processes" in str(error) else str(error))
    return said
