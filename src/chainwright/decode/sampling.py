"""How tokens are drawn: the settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from chainwright._config import Config, MustBe
from chainwright._errors import BadInput

if TYPE_CHECKING:
    from torch import nn

# what a generation config holds besides, with the value at which it does nothing
_OTHERS = {
    "num_beams": 1,
    "typical_p": 1.0,
    "top_h": None,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "penalty_alpha": None,
    "guidance_scale": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "exponential_decay_length_penalty": None,
    "watermarking_config": None,
}
SHAPES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


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

    @classmethod
    def of_model(cls, model: nn.Module) -> Sampling:
        """Return the sampling that the generation config of a checkpoint states.

        What it does not state stays off: Transformers itself would then draw from the 50 likeliest tokens, which no
        other engine does.

        Raises:
            BadInput: It states none, or something that Chainwright does not do.
        """
        from chainwright.models.seam import causal_lm

        config: Any = causal_lm(model).generation_config
        if not config.do_sample:
            raise BadInput(
                "The generation config of this checkpoint states no sampling (do_sample is off), so sampling='model' "
                "has nothing to take; set temperature, top_p ... yourself."
            )
        for name, off in _OTHERS.items():
            if (value := getattr(config, name, None)) is not None and value != off and value != []:
                raise BadInput(
                    f"The generation config of this checkpoint also sets {name} to {value!r}, which Chainwright does "
                    "not do; set temperature, top_p ... yourself."
                )
        stated = {name: value for name in SHAPES if (value := getattr(config, name, None)) is not None}
        if stated.get("top_k") == 0:
            del stated["top_k"]
        stops = config.stop_strings or ()
        return cls(**{"temperature": 1.0, **stated}, stop=[stops] if isinstance(stops, str) else list(stops))

    def info(self) -> dict[str, str | int | float]:
        """Return what a trace says about how it was drawn; what is off is not mentioned."""
        shapes = {name: getattr(self, name) for name in SHAPES}
        said = {name: value for name, value in shapes.items() if value is not None}
        return {**said, "temperature": float(self.temperature)}
