"""How tokens are drawn: the settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from chainwright._config import Config, MustBe
from chainwright._errors import BadInput


def _stops(texts: Sequence[str]) -> Sequence[str]:
    if not all(texts):
        raise BadInput("A stop string is a text of at least one character; got ''.")
    return texts


TopP = Annotated[
    float | None,
    Field(gt=0, le=1, description="Draw from the likeliest tokens whose probabilities sum to this."),
    MustBe("a number above 0 and to 1, or none"),
]
TopK = Annotated[int | None, Field(ge=1, description="Draw from this many likeliest tokens.")]
MinP = Annotated[
    float | None,
    Field(ge=0, le=1, description="Draw from tokens at least this likely relative to the likeliest."),
    MustBe("a number from 0 to 1, or none"),
]
Penalty = Annotated[
    float | None,
    Field(gt=0, description="Above 1, tokens that are in the prompt or response already become less likely."),
    MustBe("a positive number, or none"),
]
Stops = Annotated[
    Sequence[str],
    AfterValidator(_stops),
    Field(description="Text before which a response ends; not looked for while the model thinks."),
]


class Sampling(Config):
    """How each token is drawn, and what ends a response besides its end token.

    Raises:
        BadInput: A value out of its range, an empty stop string, or a truncation of the distribution with greedy
            decoding, which it does not change.
    """

    temperature: Annotated[
        float, Field(ge=0, description="Sampling temperature; 0 is greedy."), MustBe("0 (greedy) or a positive number")
    ] = 0.0
    top_p: TopP = None
    top_k: TopK = None
    min_p: MinP = None
    repetition_penalty: Penalty = None
    stop: Stops = ()

    @model_validator(mode="after")
    def _draws(self) -> Self:
        for name in ("top_p", "top_k", "min_p"):
            if self.temperature == 0 and getattr(self, name) is not None:
                raise BadInput(
                    f"{name} limits what is drawn, but temperature 0 (greedy) draws nothing; set a temperature, such "
                    f"as 1.0, or take {name} out."
                )
        return self
