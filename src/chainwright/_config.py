"""The base class of all configs: a setting's type, bounds, default and description are written once, as a field.

    class DiagnoseConfig(Config):
        model: Annotated[str, MustBe("a name, a folder or a Hub id")] = Field(description="Model to diagnose.")
        n: int = Field(default=40, ge=1, description="Problems per task, hop count and seed.")
        seeds: tuple[int, ...] = Field(default=(0,), min_length=1, description="Each draws its own sample.")

    DiagnoseConfig(model="reasoner", n=0)   # BadInput: n must be a whole number from 1; got 0.
    DiagnoseConfig(model="reasoner", m=3)   # BadInput: Unknown setting 'm'; known: model, n, seeds. Did you mean 'n'?

Checks come from the fields; a check that needs several settings is a `@model_validator(mode="after")`, and one that
needs more than a type and bounds an `AfterValidator` in the annotation. Both raise `BadInput` with a whole sentence,
which reaches the caller as it is. The help of command-line options (`settings_of`), the JSON schema (`json_schema`) and
the error messages are all made of the same fields.

Types are strict: True is no number, 3 no text and "3" no whole number. Two conversions lose nothing and are made: a
list becomes a tuple, and a whole number becomes a float where one is declared. Write `Field(default=...)` with the
keyword, without which type checkers take the setting to be required.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, ErrorDetails

from chainwright._errors import BadInput, unknown_name

_PHRASE = "must_be"

Positions = Literal["all", "last"]
"""Where heads are silenced or read: at all positions of a pass, or at its last. Here, where configs can name it
without PyTorch."""


class Config(BaseModel):
    """Settings that are checked when they are made and cannot be changed afterwards; keyword arguments only.

    Raises:
        BadInput: A setting is unknown, missing, of a wrong type or out of bounds; one sentence per setting.
    """

    # Defaults are validated as well: a default that its own bounds forbid is a mistake worth a failing import.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )

    def __init__(self, /, **settings: Any) -> None:
        try:
            super().__init__(**{n: v if _is_any(type(self), n) else _immutable(v) for n, v in settings.items()})
        except ValidationError as error:
            raise BadInput(_sentences(type(self), settings, error)) from error

    def replace(self, /, **changes: Any) -> Self:
        """Return a copy with some settings changed, checked like a new one."""
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | changes)

    def record(self) -> dict[str, Any]:
        """Return every setting as plain JSON values, in the order of the fields."""
        return self.model_dump(mode="json")

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Return the config that `record` returned, or that a JSON or TOML file holds.

        Raises:
            BadInput: As for a new one, or `record` is no mapping.
        """
        if not isinstance(record, Mapping):
            raise BadInput(f"The settings must be a table of names and values; got {record!r}.")
        return cls(**record)

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Return the JSON schema: each setting's type, bounds, default and description."""
        return cls.model_json_schema()


@dataclass(frozen=True)
class MustBe:
    """States what a value must be where its type does not say it: `Annotated[str, MustBe("a Hub id")]`.

    Attributes:
        words: Continues "model must be", such as "a name, a folder or a Hub id".
    """

    words: str

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Add the words to the JSON schema, where the error messages find them."""
        return {**handler(schema), _PHRASE: self.words}


@dataclass(frozen=True)
class Flag:
    """Names the command-line options of a setting: `Annotated[int, Flag("-n", "--problems")]`."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", names)


class Setting(NamedTuple):
    """One setting of a config, with all that a command-line option or a table in the docs needs.

    Attributes:
        name: Name of the field.
        annotation: Its type without metadata, such as `int`, `int | None`, `tuple[int, ...]` or `Literal["a", "b"]`.
        is_required: Whether there is no default.
        default: The default; None where the setting is required.
        description: One sentence on what it does, with a full stop.
        must_be: What a value must be, such as "a whole number from 1, or none".
        flags: Its command-line options: those of `Flag`, otherwise "-n" for a one-letter name and "--max-new-tokens"
            for others. A bool that is on by default also has its "--no-..." form to be added by the command line.
    """

    name: str
    annotation: Any
    is_required: bool
    default: Any
    description: str
    must_be: str
    flags: tuple[str, ...]


def settings_of(config: type[Config]) -> list[Setting]:
    """Return every setting of a config class in the order of its fields, for command lines and docs.

    A command line makes one option per setting (`flags`, `description`, `default`) and passes what was typed to the
    config by name. Values that do not fit need no check there: the config refuses them in one sentence.
    """
    words, annotations = _words_by_name(config), get_type_hints(config)  # type hints come without `Annotated`
    settings = []
    for name, field in config.model_fields.items():
        flags = next((mark.names for mark in field.metadata if isinstance(mark, Flag)), None)
        default = None if field.is_required() else field.get_default(call_default_factory=True, validated_data={})
        settings.append(
            Setting(
                name,
                annotations[name],
                field.is_required(),
                default,
                field.description or "",
                words[name],
                flags or (f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}",),
            )
        )
    return settings


def _is_any(config: type[Config], name: str) -> bool:
    """Say whether a setting may hold any JSON value, such as `Mapping[str, Any]`; such a value is kept as it is."""
    field = config.model_fields.get(name)
    return field is None or Any in (field.annotation, *get_args(field.annotation))


def _immutable(value: Any) -> Any:
    """Return lists as tuples at every depth, so that strict types accept what JSON and TOML hold."""
    if isinstance(value, Mapping):
        return {key: _immutable(item) for key, item in value.items()}
    return tuple(map(_immutable, value)) if isinstance(value, (list, tuple)) else value


def _sentences(config: type[Config], settings: Mapping[str, Any], error: ValidationError) -> str:
    """Return one sentence for each setting that is wrong."""
    sentences: dict[str, str] = {}
    for problem in error.errors():
        name = str(problem["loc"][0]) if problem["loc"] else ""
        sentences.setdefault(name, _sentence(config, settings, problem))
    return " ".join(sentences.values())


def _sentence(config: type[Config], settings: Mapping[str, Any], problem: ErrorDetails) -> str:
    cause, kind, got = problem.get("ctx", {}).get("error"), problem["type"], problem["input"]
    if isinstance(cause, BadInput) or not problem["loc"]:
        return str(cause or problem["msg"])
    name = str(problem["loc"][0])
    if kind == "extra_forbidden":
        return str(unknown_name("setting", name, config.model_fields))
    if kind == "literal_error" and isinstance(got, str):
        names = _choices(config.model_fields[name].annotation)
        return str(unknown_name(name.removesuffix("s") if len(problem["loc"]) > 1 else name, got, names))
    words = _words_by_name(config)[name]
    if kind == "missing" and name not in settings:
        return f"{name} is missing; it must be {words}."
    return f"{name} must be {words}; got {settings.get(name, got)!r}."


def _choices(annotation: Any) -> list[str]:
    """Return the names in the `Literal` that a type is or has among its arguments."""
    if get_origin(annotation) is Literal:
        return list(map(str, get_args(annotation)))
    return [name for part in get_args(annotation) for name in _choices(part)]


def _words_by_name(config: type[Config]) -> dict[str, str]:
    schema = config.json_schema()
    return {name: _words(part, schema.get("$defs", {})) for name, part in schema["properties"].items()}


def _words(schema: Mapping[str, Any], parts: Mapping[str, Any], *, many: bool = False) -> str:
    """Return what a JSON schema demands, such as "a whole number from 1", or in the plural "whole numbers from 1"."""
    if _PHRASE in schema:
        return str(schema[_PHRASE])
    if "$ref" in schema:
        return _words(parts[schema["$ref"].rpartition("/")[2]], parts, many=many)
    if "anyOf" in schema:
        choices = [choice for choice in schema["anyOf"] if choice.get("type") != "null"]
        words = " or ".join(_words(choice, parts, many=many) for choice in choices)
        return words if len(choices) == len(schema["anyOf"]) else f"{words}, or none"
    if names := schema.get("enum", [schema["const"]] if "const" in schema else None):
        return ("some of " if many else "one of " if len(names) > 1 else "") + ", ".join(map(repr, names))
    kind = schema.get("type")
    if kind == "array" and "items" in schema:
        words = _words(schema["items"], parts, many=True) + (", at least one" if schema.get("minItems") == 1 else "")
        return f"lists of {words}" if many else f"a list of {words}"
    if kind == "array" and (items := schema.get("prefixItems")):
        return f"a list of {len(items)} {_words(items[0], parts, many=True)}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"{'tables' if many else 'a table'} of {_words(schema['additionalProperties'], parts, many=True)}"
    one, several = _NOUNS.get(str(kind), ("a fitting value", "fitting values"))
    return (several if many else one) + _bounds(schema)


_NOUNS = {
    "integer": ("a whole number", "whole numbers"),
    "number": ("a number", "numbers"),
    "string": ("a text", "texts"),
    "boolean": ("true or false", "true or false"),
    "array": ("a list", "lists"),
    "object": ("a table", "tables"),
}


def _bounds(schema: Mapping[str, Any]) -> str:
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    found = [f" {word} {schema[key]:g}" for key, word in words.items() if key in schema]
    return ("" if "minimum" in schema and "maximum" in schema else " and").join(found)
