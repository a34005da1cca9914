"""Models with fresh LoRA adapters, by PEFT."""

from __future__ import annotations

import warnings

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel


def with_adapters(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """Return the model wrapped with adapters, which change nothing before they are trained.

    PEFT reads a property of Transformers by its former name; the resulting warning, about which a user can do nothing,
    is suppressed.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(model, config)
