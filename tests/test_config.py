from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, Field, ValidationError, model_validator

from chainwright._config import Config, Flag, MustBe, Setting, settings_of
from chainwright._errors import BadInput


def _even(value: int) -> int:
    if value % 2:
        raise BadInput(f"width is even, or heads would not fit; got {value}.")
    return value


class Recipe(Config):
    model: Annotated[str, MustBe("a name, a folder or a Hub id")] = Field(description="Which model.")
    hops: Mapping[str, Sequence[int]] = Field(default={}, description="Hops by task.")
    n: Annotated[int, Flag("-n", "--problems")] = Field(default=40, ge=1, description="Problems per cell.")
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    rendering: Literal["short", "natural"] = "short"
    kinds: tuple[Literal["heads", "steps"], ...] = ("heads",)
    lr: float = Field(default=1e-3, gt=0, lt=1)
    betas: tuple[float, float] = (0.9, 0.95)
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    width: Annotated[int, AfterValidator(_even)] = 8
    is_quick: bool = False

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.is_quick and self.n > 100:
            raise BadInput("A quick run takes at most 100 problems.")
        return self


class Study(Config):
    recipe: Recipe = Recipe(model="reasoner")
    steps: int | None = None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"n": 0}, "n must be a whole number from 1; got 0."),
        ({"n": True}, "n must be a whole number from 1; got True."),
        ({"n": "3"}, "n must be a whole number from 1; got '3'."),
        ({"n": 3.0}, "n must be a whole number from 1; got 3.0."),
        ({"model": 3}, "model must be a name, a folder or a Hub id; got 3."),
        ({"model": None}, "model must be a name, a folder or a Hub id; got None."),
        ({"seeds": []}, "seeds must be a list of whole numbers, at least one; got []."),
        ({"seeds": [0, False]}, "seeds must be a list of whole numbers, at least one; got [0, False]."),
        ({"seeds": "01"}, "seeds must be a list of whole numbers, at least one; got '01'."),
        ({"hops": {"clf": 4}}, "hops must be a table of lists of whole numbers; got {'clf': 4}."),
        ({"hops": {"clf": "45"}}, "hops must be a table of lists of whole numbers; got {'clf': '45'}."),
        ({"lr": 0}, "lr must be a number above 0 and below 1; got 0."),
        ({"lr": float("nan")}, "lr must be a number above 0 and below 1; got nan."),
        ({"lr": True}, "lr must be a number above 0 and below 1; got True."),
        ({"betas": [0.9]}, "betas must be a list of 2 numbers; got [0.9]."),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number from 1, or none; got 0."),
        ({"is_quick": 1}, "is_quick must be true or false; got 1."),
        ({"rendering": "shrot"}, "Unknown rendering 'shrot'; known: short, natural. Did you mean 'short'?"),
        ({"rendering": 4}, "rendering must be one of 'short', 'natural'; got 4."),
        ({"kinds": ["heads", "step"]}, "Unknown kind 'step'; known: heads, steps. Did you mean 'steps'?"),
        ({"width": 3}, "width is even, or heads would not fit; got 3."),
        ({"is_quick": True, "n": 101}, "A quick run takes at most 100 problems."),
        ({"n": 0, "lr": 2}, "n must be a whole number from 1; got 0. lr must be a number above 0 and below 1; got 2."),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_in_one_sentence(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput) as caught:
        Recipe(**{"model": "reasoner", **settings})
    assert str(caught.value) == says


def test_unknown_and_missing_settings_are_named() -> None:
    with pytest.raises(BadInput, match=r"^Unknown setting 'sedes'; known: model, hops, .*\. Did you mean 'seeds'\?$"):
        Recipe(model="reasoner", sedes=[1])  # type: ignore[call-arg]
    with pytest.raises(BadInput, match=r"^model is missing; it must be a name, a folder or a Hub id\.$"):
        Recipe()  # type: ignore[call-arg]
    with pytest.raises(BadInput, match="The settings must be a table of names and values; got 3"):
        Recipe.from_record(3)  # type: ignore[arg-type]


def test_lists_become_tuples_and_whole_numbers_floats() -> None:
    recipe = Recipe(model="m", hops={"clf": [4, 5]}, seeds=[1, 2], betas=[0, 1])  # type: ignore[arg-type]
    assert (recipe.hops, recipe.seeds, recipe.betas) == ({"clf": (4, 5)}, (1, 2), (0.0, 1.0))
    assert isinstance(recipe.betas[0], float)
    assert recipe == Recipe(model="m", hops={"clf": (4, 5)}, seeds=(1, 2), betas=(0.0, 1.0))


def test_a_config_cannot_be_changed_but_replaced_with_the_same_checks() -> None:
    recipe = Recipe(model="m")
    with pytest.raises(ValidationError, match="frozen"):
        recipe.n = 3
    assert recipe.replace(n=3) == Recipe(model="m", n=3) != recipe
    with pytest.raises(BadInput, match="n must be a whole number from 1; got 0"):
        recipe.replace(n=0)
    with pytest.raises(BadInput, match="Unknown setting 'm'"):
        recipe.replace(m=0)


def test_a_record_is_plain_json_and_gives_the_config_back() -> None:
    study = Study(recipe=Recipe(model="m", hops={"clf": (4,)}, max_new_tokens=7), steps=2)
    record = study.record()
    assert record == json.loads(json.dumps(record))
    assert record["recipe"]["hops"] == {"clf": [4]}
    assert list(record["recipe"]) == list(Recipe.model_fields)
    assert Study.from_record(record) == study == pickle.loads(pickle.dumps(study))
    with pytest.raises(BadInput, match="n must be a whole number from 1; got 0"):
        Study.from_record({"recipe": {"model": "m", "n": 0}})
    with pytest.raises(BadInput, match="recipe must be a table; got 3"):
        Study.from_record({"recipe": 3})


def test_settings_that_may_hold_anything_keep_it_as_it_is() -> None:
    class Anything(Config):
        values: Mapping[str, Any]

    made = Anything(values={"a": [1, {"b": [2]}], "c": None})
    assert made.values == {"a": [1, {"b": [2]}], "c": None} == made.record()["values"]
    with pytest.raises(BadInput, match=r"values must be a table; got \[\]\."):
        Anything(values=[])  # type: ignore[arg-type]


def test_equal_configs_have_equal_hashes() -> None:
    class Plain(Config):
        n: int = 3
        seeds: tuple[int, ...] = (0,)

    assert hash(Plain(n=4)) == hash(Plain(n=4, seeds=[0])) != hash(Plain())  # type: ignore[arg-type]


def test_the_schema_has_bounds_defaults_and_descriptions() -> None:
    schema = Recipe.json_schema()
    assert schema["required"] == ["model"]
    assert schema["additionalProperties"] is False
    n = schema["properties"]["n"]
    assert (n["minimum"], n["default"], n["description"]) == (1, 40, "Problems per cell.")


def test_settings_for_a_command_line_come_from_the_fields() -> None:
    by_name = {setting.name: setting for setting in settings_of(Recipe)}
    assert list(by_name) == list(Recipe.model_fields)
    assert by_name["n"] == Setting(
        "n", int, False, 40, "Problems per cell.", "a whole number from 1", ("-n", "--problems")
    )
    assert by_name["model"][:4] == ("model", str, True, None)
    assert by_name["max_new_tokens"].annotation == int | None
    assert by_name["max_new_tokens"].flags == ("--max-new-tokens",)
    assert by_name["hops"].default == {}


def test_a_default_that_its_own_bounds_forbid_fails_at_once() -> None:
    class Wrong(Config):
        n: int = Field(default=0, ge=1)

    with pytest.raises(BadInput, match=r"n must be a whole number from 1; got 0\."):
        Wrong()
