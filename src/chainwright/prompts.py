"""How a model is asked."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from chainwright._errors import BadInput
from chainwright.models.load import bundled_models
from chainwright.tasks.base import Rendering


def rendering_for(asked: str, model: str) -> Rendering:
    """Return the rendering to use: as asked, or for "auto" the one that the model was made for.

    A bundled model, or a folder with the `recipe.json` that Chainwright's training writes, reads the short rendering.
    """
    if asked == "auto":
        is_ours = model in bundled_models() or (Path(model) / "recipe.json").is_file()
        return "short" if is_ours else "natural"
    if asked not in get_args(Rendering):
        raise BadInput(f"--rendering must be auto, {' or '.join(get_args(Rendering))}; got {asked!r}.")
    return asked  # type: ignore[return-value]
