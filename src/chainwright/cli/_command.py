"""How the command line is put together from commands, and their options from config classes.

A command is a function marked `@register("command", "diagnose")`, in a file of its own; a dot places it in a group:
`"fit.tcr"` is `chainwright fit tcr`. A command may have others below it, as `models` has `models fetch`. Commands of
the package and of plugins come from the registry, which imports the one that is called and no other. Mistakes and
interruptions of every command are reported in the same way (`_shared`).

`ConfigOptions` as the default of a parameter turns fields of a config class into options: flag, type, default and help
come from the field, and the parameter receives the values by field name. So a default is written once, in its class.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from importlib import import_module
from operator import attrgetter
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from chainwright import _registry
from chainwright.cli import _options, _parse
from chainwright.cli._shared import clear_errors

Values = dict[str, Any]
ASKED: ContextVar[tuple[str, ...]] = ContextVar("ASKED")
"""The arguments of the command that is running, as they were typed."""
_PASSES_ON: dict[Callable[..., None], dict[str, Any]] = {}


class Field(NamedTuple):
    """What a field of a config class says of itself."""

    annotation: Any
    default: Any
    help: str | None


class Option(NamedTuple):
    """An option that a field became: the field, the command's parameter, its flag, and whether it lists numbers."""

    field: str
    parameter: inspect.Parameter
    flag: str
    is_list: bool

    def value(self, text: Any) -> Any:
        """Return what was passed as the config class takes it."""
        return _parse.parse_numbers(text, self.flag) if self.is_list else text


class ConfigOptions(dict[str, Any]):
    """The default of a parameter that takes fields of a config class as options.

    Args:
        place: The config class, or a function with such parameters, as "module:name"; imported when the options are
            needed.
        names: The fields.
        flags: Flags that are not made from the field's name, by field.
        helps: Help texts by field, where the class has none or it does not suit a command line.
    """

    def __init__(
        self, place: str, *names: str, flags: Mapping[str, str] | None = None, helps: Mapping[str, str] | None = None
    ):
        super().__init__()
        self.place, self.names, self.flags, self.helps = place, names, flags or {}, helps or {}

    def flag(self, field: str) -> str:
        """Return the flag of a field, as it is typed to change the default."""
        return self.flags.get(field, f"--{field.replace('_', '-')}").rpartition("/")[2]

    def default(self, field: str) -> Any:
        """Return the value that a command receives where the option of a field is not used."""
        module, _, name = self.place.partition(":")
        return field_of(attrgetter(name)(import_module(module)), field).default

    def options(self, prefix: str) -> Iterator[Option]:
        """Yield the option of each field; their parameters begin with the name of the parameter that they replace."""
        module, _, name = self.place.partition(":")
        owner = attrgetter(name)(import_module(module))
        for field in self.names:
            known, flag = field_of(owner, field), self.flags.get(field, f"--{field.replace('_', '-')}")
            kinds = (known.annotation, *_parts(known))
            is_list = any(get_origin(kind) in (tuple, Sequence) and str not in get_args(kind) for kind in kinds)
            default = ",".join(map(str, known.default)) if isinstance(known.default, tuple) else known.default
            parameter = inspect.Parameter(
                f"{prefix}__{field}",
                inspect.Parameter.KEYWORD_ONLY,
                default=str(default) if is_list else default,
                annotation=self._annotation(field, known, flag),
            )
            yield Option(field, parameter, flag, is_list)

    def _annotation(self, name: str, field: Field, flag: str) -> Any:
        """Return the type of the parameter that a field becomes, with its flags and help."""
        if name not in self.flags and name not in self.helps and name in _options.BY_FIELD:
            return _options.BY_FIELD[name]
        kinds = [part for part in _parts(field) if part is not NoneType]
        choices = get_args(kinds[0]) if get_origin(kinds[0]) is Literal else ()
        kind: Any = kinds[0] if len(kinds) == 1 and kinds[0] in (bool, int, float) else str
        if get_origin(kinds[0]) is tuple and str in get_args(kinds[0]):
            kind = list[str]  # an option that may be repeated
        flags = [flag] if "/--no-" in flag else flag.split("/")  # a switch that is on by default, or two names
        option = typer.Option(*flags, help=self.helps.get(name, field.help), metavar="|".join(choices) or None)
        return Annotated[kind | None if NoneType in _parts(field) else kind, option]


class Commands(TyperGroup):
    """A group whose commands are looked up in the registry when they are called."""

    def __init__(self, *, prefix: str = "", **settings: Any):
        super().__init__(**settings)
        self.prefix, self.only_lists = prefix, False

    def make_context(self, info_name: Any, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Return the context of a call, and remember what was typed."""
        if parent is None:
            ASKED.set(tuple(args))
        return super().make_context(info_name, args, parent, **extra)

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands and groups below this one, sorted."""
        below = [name for name in _registry.names("command") if name.startswith(self.prefix)]
        return sorted({name.removeprefix(self.prefix).partition(".")[0] for name in below})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command or group by its name, or None."""
        self.commands = dict.fromkeys(self.list_commands(ctx))  # type: ignore[assignment]  # for suggestions alone
        if cmd_name not in self.commands:
            return None
        full = self.prefix + cmd_name
        if full in _registry.names("command"):
            return built(cmd_name, _registry.load("command", full), with_options=not self.only_lists)
        return Commands(name=cmd_name, prefix=f"{full}.", help=_group_help(full), no_args_is_help=True)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that arguments call; a command such as `models` may have others below it as well."""
        name, command, rest = super().resolve_command(ctx, args)
        below = f"{self.prefix}{name}."
        if rest and below + rest[0] in _registry.names("command") and not isinstance(command, Commands):
            command = Commands(name=name, prefix=below, help=_group_help(below.rstrip(".")), no_args_is_help=True)
        return name, command, rest

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help, for which no command needs its options: their defaults may lie beside PyTorch."""
        self.only_lists = True
        super().format_help(ctx, formatter)


def passes_on(function: Callable[..., None]) -> Callable[..., None]:
    """Mark a command whose arguments, `--help` included, are for another program; they are in its `context.args`."""
    _PASSES_ON[function] = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    return function


def built(name: str, function: Callable[..., None], *, with_options: bool = True) -> TyperCommand:
    """Return a command as typer has it, with its options or, for a list of commands, without."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name, help=inspect.getdoc(function), context_settings=_PASSES_ON.get(function))(
        expanded(function) if with_options else lambda: None
    )
    command = typer.main.get_command(app)
    assert isinstance(command, TyperCommand)
    return command


def expanded(function: Callable[..., None]) -> Callable[..., None]:
    """Return a command with each `ConfigOptions` replaced by its options, and with mistakes reported in a sentence."""
    groups: dict[str, list[Option]] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        if isinstance(parameter.default, ConfigOptions):
            groups[name] = list(parameter.default.options(name))
            parameters += [option.parameter for option in groups[name]]
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @clear_errors
    def run(**passed: Any) -> None:
        values = {
            name: {option.field: option.value(passed.pop(option.parameter.name)) for option in options}
            for name, options in groups.items()
        }
        function(**passed, **values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def field_of(owner: Any, name: str) -> Field:
    """Return what a field of a config class, or a parameter of a function, says of itself."""
    if hasattr(owner, "model_fields"):
        from chainwright._config import settings_of

        (setting,) = (setting for setting in settings_of(owner) if setting.name == name)
        return Field(setting.annotation, setting.default, setting.description)
    return Field(get_type_hints(owner)[name], inspect.signature(owner).parameters[name].default, None)


def _parts(field: Field) -> Sequence[Any]:
    """Return the alternatives of a union type; a type alone is the only one."""
    return get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else [field.annotation]


def _group_help(name: str) -> str:
    """Return the first line of the docstring of the package that holds a group's commands."""
    try:
        module = import_module(f"chainwright.cli.{name}")
    except ModuleNotFoundError:
        return "Commands of a plugin."
    return (module.__doc__ or "").splitlines()[0]
