"""What the configs of all studies that decode cells of problems have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from chainwright import tasks
from chainwright._config import Config, MustBe
from chainwright._errors import BadInput, unknown_name
from chainwright.decode.sampling import SHAPES, MinP, Penalty, Sampling, TopK, TopP

if TYPE_CHECKING:
    from torch import nn

Count = Annotated[int, Field(ge=1)]
Place = Annotated[str, MustBe("a name, a folder or a Hub id")]
Temperature = Annotated[
    float,
    Field(ge=0, description="Sampling temperature; 0 is greedy."),
    MustBe("0 (greedy) or a positive number"),
]
NewTokens = Annotated[
    Count | None, Field(description="Maximum new tokens (default: 1.5 x the gold chain's length + 16).")
]
BatchSize = Annotated[Count | None, Field(description="Rows decoded together (default: chosen by length).")]


def _known_tasks(hops: Mapping[str, Sequence[int]]) -> Mapping[str, Sequence[int]]:
    if unknown := [task for task in hops if task not in tasks.known()]:
        raise unknown_name("task", unknown[0], tasks.known())
    return hops


def _different(seeds: Sequence[int]) -> Sequence[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError
    return seeds


Hops = Annotated[
    Mapping[str, Sequence[Count]], AfterValidator(_known_tasks), MustBe("lists of whole numbers from 1, by task")
]
Seeds = Annotated[
    Sequence[int], Field(min_length=1), AfterValidator(_different), MustBe("a list of different whole numbers")
]


class CellsConfig(Config):
    """Which problems a study asks: `n` of every task, hop count and seed; a cell is a task at one hop count.

    Raises:
        BadInput: An unknown task, no cell at all, or a value that does not fit.
    """

    model: Place = Field(description="Model: a known name, a folder, a GGUF file or a Hub id.")
    hops: Hops = Field(description="Hop counts by task.")
    n: Count = Field(default=40, description="Problems per task, hop count and seed.")
    seeds: Seeds = Field(default=(0,), description="Seeds of the problems; each draws its own sample.")
    rendering: tasks.Rendering = Field(
        default="short", description="Wording: short for models trained by Chainwright, natural for instruction models."
    )

    @model_validator(mode="after")
    def _has_cells(self) -> Self:
        if not self.cells():
            raise BadInput("No hops were asked for; a study needs at least one hop count of one task.")
        return self

    def cells(self) -> list[tuple[str, int]]:
        """Return every (task, hops), tasks in their usual order and hop counts rising."""
        return cells_of(self.hops)


def cells_of(hops: Mapping[str, Sequence[int]]) -> list[tuple[str, int]]:
    """Return every (task, hops) of a mapping of hop counts by task, tasks in their usual order."""
    return [(task, count) for task in tasks.known() if task in hops for count in sorted(set(hops[task]))]


class DecodeSettings(Config):
    """How traces are decoded; see `generate`."""

    max_new_tokens: NewTokens = None
    max_thinking_tokens: Count | None = Field(
        default=None, description="Thinking still open after so many tokens ends the response, which counts as cut."
    )
    batch_size: BatchSize = None
    n_samples: Count = Field(default=1, description="Responses per problem; more than 1 needs sampling.")
    sampling: Literal["model"] | None = Field(
        default=None,
        description="Take sampling settings that are not given here from the checkpoint's generation config.",
    )
    temperature: Annotated[float | None, Field(ge=0), MustBe("0 (greedy) or a positive number, or none")] = Field(
        default=None,
        description="Sampling temperature; 0 is greedy.",
    )
    top_p: TopP = None
    top_k: TopK = None
    min_p: MinP = None
    repetition_penalty: Penalty = None
    stop: Annotated[
        tuple[str, ...] | None,
        Field(description="Text before which a response ends; may be repeated. It does not count while thinking."),
    ] = None
    seed: int = Field(default=0, description="Seed of the sampling noise.")

    def draws(self, model: nn.Module) -> Sampling:
        """Return how tokens are drawn; what is set here goes before what the checkpoint states.

        Raises:
            BadInput: The checkpoint states no sampling, or the settings contradict each other.
        """
        names = (*SHAPES, "stop")
        stated = {name: value for name in names if (value := getattr(self, name)) is not None}
        return Sampling.of_model(model).replace(**stated) if self.sampling == "model" else Sampling(**stated)

    def options(self, model: nn.Module) -> dict[str, Any]:
        """Return the arguments of `generate` that these settings make."""
        names = ("max_new_tokens", "max_thinking_tokens", "batch_size", "n_samples", "seed")
        return {**{name: getattr(self, name) for name in names}, "sampling": self.draws(model)}

    def identity(self, model: nn.Module) -> dict[str, Any]:
        """Return what identifies the traces that these settings make.

        What is not used is not mentioned, so that files which were begun before there was such a setting are resumed.
        """
        drawn = self.draws(model).record()
        old = {"max_new_tokens": self.max_new_tokens, "batch_size": self.batch_size}
        old |= {"temperature": drawn.pop("temperature"), "seed": self.seed}
        if self.n_samples > 1:
            drawn["n_samples"] = self.n_samples
        return old | {name: value for name, value in drawn.items() if value} | self._thinking()

    def _thinking(self) -> dict[str, int]:
        most = self.max_thinking_tokens
        return {} if most is None else {"max_thinking_tokens": most}
