"""Hugging Face models: loading, anatomy, and the seam through which they are read and edited."""

from chainwright.models.anatomy import Anatomy, anatomy
from chainwright.models.capture import Capture, capture
from chainwright.models.load import LoadedModel, load_model, provenance
from chainwright.models.sources import bundled_models, known_models

__all__ = [
    "Anatomy",
    "Capture",
    "LoadedModel",
    "anatomy",
    "bundled_models",
    "capture",
    "known_models",
    "load_model",
    "provenance",
]
