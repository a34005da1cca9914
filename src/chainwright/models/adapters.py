"""Models with fresh LoRA adapters, by PEFT."""

from __future__ import annotations

import warnings

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel


def with_adapters(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """Return the model with adapters, which change nothing before they are trained; the model itself is wrapped.

    PEFT asks Transformers for a property under its former name, which warns a reader who can do nothing about it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(model, config)
