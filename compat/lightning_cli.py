"""lightning_cli: a command line made of the constructors of classes, as the first releases had it."""

from __future__ import annotations

import argparse
import inspect
import types
from collections.abc import Callable
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

__all__ = ["lightning_cli"]

_NONE = ("none", "null", "~", "nil")
_TRUE = ("yes", "true", "t", "y", "1")
_FALSE = ("no", "false", "f", "n", "0")


def lightning_cli(*classes: type[Any]) -> Any:
    """Instances of `classes`, made of the options ``--<class>.<parameter>`` of this process's command line.

    One class gives its instance, several a tuple, none the empty tuple. Parameters without a default are required
    unless they may be None. Optional values may be written none, null, ~ or nil, truth values yes and no, lists as
    several words; other types than numbers are texts. Wrong options end the process with code 2, as argparse does.
    """
    if not classes:
        return ()
    parser = argparse.ArgumentParser()
    parameters: dict[type[Any], list[str]] = {}
    for kind in classes:
        parameters[kind] = _add(parser, kind)
    given = vars(parser.parse_args())
    made = tuple(
        kind(**{name: given[_key(kind, name)] for name in names if _key(kind, name) in given})
        for kind, names in parameters.items()
    )
    return made[0] if len(made) == 1 else made


def _key(kind: type[Any], name: str) -> str:
    return f"{kind.__name__.lower()}.{name}"


def _add(parser: argparse.ArgumentParser, kind: type[Any]) -> list[str]:
    """Add the options of one class; the names of its parameters."""
    group = parser.add_argument_group(f"{kind.__name__} options")
    try:
        hints = get_type_hints(kind.__init__)
    except NameError:  # a name that only type checkers see: the values stay texts
        hints = {}
    names: list[str] = []
    for name, parameter in list(inspect.signature(kind.__init__).parameters.items())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        names.append(name)
        required = parameter.default is parameter.empty
        convert, many, optional = _converter(hints.get(name, str))
        group.add_argument(
            f"--{kind.__name__.lower()}.{name.replace('_', '-')}",
            dest=_key(kind, name),
            type=convert,
            nargs="*" if many else None,
            required=required and not optional,
            default=None if required and optional else argparse.SUPPRESS,
            help="" if required else f"default: {parameter.default}".replace("%", "%%"),
        )
    return names


def _converter(hint: Any) -> tuple[Callable[[str], Any], bool, bool]:
    """How to read a value, whether there are several, and whether it may be None."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    optional = type(None) in options
    kinds = [option for option in options if option is not type(None)]
    kind: Any = kinds[0] if len(kinds) == 1 else str
    many = get_origin(kind) is list
    if many:
        kind = (*get_args(kind), str)[0]
    if kind is bool:
        read: Callable[[str], Any] = _truth
    else:
        read = cast("Callable[[str], Any]", kind) if kind in (int, float) else str

    def convert(text: str) -> Any:
        return None if optional and text.lower() in _NONE else read(text)

    convert.__name__ = getattr(kind, "__name__", "value")  # argparse names it where a value is wrong
    return convert, many, optional


def _truth(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError(text)
