"""A study of one model whose units follow from one config: what such plans share."""

from __future__ import annotations

from typing import ClassVar, Generic, Self, TypeVar, cast

from torch import nn
from transformers import PreTrainedTokenizerBase

from chainwright._config import Config
from chainwright.models.anatomy import anatomy
from chainwright.models.load import load_as, provenance
from chainwright.studies.manifest import Manifest
from chainwright.studies.plan import Plan

C = TypeVar("C", bound=Config)


class ModelPlan(Plan, Generic[C]):
    """A plan that is made from a model, its tokenizer and a config, and so can be resumed from its folder.

    Attributes:
        settings: Class of the config.
        asked: The config.
    """

    settings: ClassVar[type[Config]]
    again = "chainwright study run {folder}"

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, config: C):
        self.model = model
        self.tokenizer = tokenizer
        self.asked = config
        self.config = config.record()
        self.source = provenance(anatomy(model).model)

    @classmethod
    def resumed(cls, known: Manifest, *, device: str | None = None, trust_remote_code: bool = False) -> Self:
        """Return the plan of a study that was begun; loads its model."""
        loaded = load_as(known.model, device=device, trust_remote_code=trust_remote_code)
        return cls(loaded.model, loaded.tokenizer, cast(C, cls.settings.from_record(known.config)))
