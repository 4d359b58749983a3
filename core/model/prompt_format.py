"""Filling prompts: what a template may do with the values it is given, engine by engine.

Prompts are often written by a model or published by somebody else, so a template is data and not a program. An f-string
template reads plain values, items of mappings and sequences, and declared fields of models; nothing else of an object can be
reached, and widths, precisions and the result are bounded. Jinja runs in its sandbox. POML can read files and run commands
on this machine, so a process has to allow it.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import importlib
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, cast

from ..credentials import mask_text
from ..errors import InvalidInput, OptionalDependencyError, PayloadTooLarge

__all__ = ["allow_poml"]

MOST_WIDTH = 10_000
"""The largest number in a format specification: a width, or how many digits."""
MOST_CHARACTERS = 64_000_000
"""The longest prompt; a store takes no larger payload by default."""
_STEP = re.compile(r"\.([^.\[\]]+)|\[([^\]]+)\]")
_DATED = ("year", "month", "day", "hour", "minute", "second", "microsecond")
_poml_allowed = False

Secret = Mapping[type, frozenset[str]]
"""Fields of a class that no template may read."""


def allow_poml() -> None:
    """Let this process fill prompts whose engine is "poml"; there is no way back.

    Such a prompt is a program: it can read files and run commands as the user of this process. Call it, where the agent is
    defined, only if everybody who can publish resources to your store may do that.
    """
    global _poml_allowed
    _poml_allowed = True


class MissingValue(KeyError):
    """A prompt names a value that `format` was not given; `str` is the sentence."""

    def __str__(self) -> str:
        return str(self.args[0])


_BRACES = "braces that are text, as those of JSON, are written {{ and }}"


class _Formatter(string.Formatter):
    """`str.format` without what an object does not declare, and within bounds."""

    def __init__(self, secret: Secret) -> None:
        self._secret = secret
        self._length = 0

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, int | str]:
        """The value that a field names. Raises KeyError for an unknown first name, `InvalidInput` for what is refused."""
        end = min((at for at in (field_name.find("."), field_name.find("[")) if at >= 0), default=len(field_name))
        first, rest = field_name[:end], field_name[end:]
        key: int | str = int(first) if first.isdecimal() else first
        if not isinstance(key, str):
            raise IndexError(f"the prompt has a placeholder without a name, {{}}; name it, {_BRACES}")
        if key not in kwargs:
            given = ", ".join(kwargs) or "none"
            raise MissingValue(f"the prompt asks for {key!r}, and the values that are given are: {given}; {_BRACES}")
        value: Any = kwargs[key]
        at = 0
        while at < len(rest):
            step = _STEP.match(rest, at)
            if step is None:
                raise ValueError(
                    f"{field_name!r} is not the name of a value: only '.field' and '[item]' may follow a name"
                )
            value = self._item(value, step[2]) if step[1] is None else self._field(value, step[1])
            at = step.end()
        return value, key

    def format_field(self, value: Any, format_spec: str) -> Any:
        """The text of a value, counted."""
        if any(len(number) > 9 or int(number) > MOST_WIDTH for number in re.findall(r"[0-9]+", format_spec)):
            raise InvalidInput(f"{format_spec!r:.60} asks for more than {MOST_WIDTH:,} characters; a prompt may not")
        text = format(value, format_spec)
        self._length += len(text)
        if self._length > MOST_CHARACTERS:
            raise _too_long()
        return text

    @staticmethod
    def _item(value: Any, key: str) -> Any:
        if not isinstance(value, Mapping | Sequence):
            raise InvalidInput(
                f"a prompt reads items of mappings and sequences only, and [{key}] is asked of {_kind(value)}; pass the item "
                "itself to format()"
            )
        return cast("Any", value)[int(key) if key.isdecimal() else key]

    def _field(self, value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            raise InvalidInput(f"a prompt reads items of {_kind(value)} as {{name[{name}]}}, not as {{name.{name}}}")
        if _is_secret(self._secret, value, name) or name not in _declared(value):
            raise InvalidInput(
                f"a prompt may not read {name!r} of {_kind(value)}: only declared fields of models are read, and no secrets; "
                "pass the value itself to format()"
            )
        found = getattr(value, name)
        return mask_text(found) if isinstance(found, str) else found


def _declared(value: Any) -> Sequence[str]:
    """The fields that the class of a value declares, without private ones."""
    kind = cast("Any", type(value))
    if isinstance(value, enum.Enum):
        return ("name", "value")
    if isinstance(value, datetime.date | datetime.time):
        return _DATED
    named: Any = ()
    if dataclasses.is_dataclass(kind):
        named = [one.name for one in dataclasses.fields(kind)]
    elif isinstance(value, tuple):
        named = getattr(kind, "_fields", ())
    else:  # pydantic's models, msgspec's structures
        named = getattr(kind, "model_fields", None) or getattr(kind, "__struct_fields__", ())
    return [str(one) for one in named if not str(one).startswith("_")]


def _is_secret(secret: Secret, value: Any, name: str) -> bool:
    return any(isinstance(value, of) and name in names for of, names in secret.items())


def _too_long() -> PayloadTooLarge:
    return PayloadTooLarge(f"The prompt becomes longer than {MOST_CHARACTERS:,} characters")


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


def fill_f_string(template: str, values: Mapping[str, Any], secret: Secret) -> str:
    """Fill `{name}` placeholders.

    Raises `MissingValue` for a value that is not there, IndexError and ValueError for a template that is none, and
    `InvalidInput`.
    """
    try:
        return _Formatter(secret).vformat(template, (), values)
    except InvalidInput:
        raise
    except ValueError as error:
        raise ValueError(f"{error}; in an f-string prompt {_BRACES}") from error


def fill_jinja(template: str, values: Mapping[str, Any], secret: Secret) -> str:
    """Fill a Jinja template in the sandbox. Raises KeyError for a value that is not there, and `InvalidInput`."""
    jinja2 = optional("jinja2", "The jinja engine")
    environment = _sandbox(secret)(undefined=jinja2.StrictUndefined)
    pieces: list[str] = []
    length = 0
    try:
        for piece in environment.from_string(template).generate(dict(values)):
            pieces.append(piece)
            length += len(piece)
            if length > MOST_CHARACTERS:
                raise _too_long()
    except jinja2.UndefinedError as error:
        raise KeyError(str(error)) from error
    return "".join(pieces)


def _sandbox(secret: Secret) -> Any:
    """The class of Jinja's sandbox, without secrets and with bounded repetition."""

    base = optional("jinja2.sandbox", "The jinja engine").SandboxedEnvironment

    class Sandbox(base):
        intercepted_binops = frozenset(("*", "**"))

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            return not _is_secret(secret, obj, attr) and bool(base.is_safe_attribute(self, obj, attr, value))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**" and abs(right) > 1_000:
                raise _too_long()
            for text, times in ((left, right), (right, left)):
                repeats = isinstance(text, str | Sequence) and not isinstance(times, str | Sequence)
                if repeats and len(cast("Any", text)) * cast("Any", times) > MOST_CHARACTERS:
                    raise _too_long()
            return base.call_binop(self, context, operator, left, right)

    return Sandbox


def fill_poml(template: str, values: Mapping[str, Any]) -> str:
    """The contents of a POML document's messages. Raises `InvalidInput` unless this process allows such programs."""
    if not _poml_allowed:
        raise InvalidInput(
            'a prompt with engine "poml" is a program that can read files and run commands here, so it is refused; where you '
            "trust everybody who publishes resources, call agentlightning.allow_poml() in the module of the agent"
        )
    poml = optional("poml", "The poml engine")
    messages = poml.poml(template, context=dict(values))
    return "\n\n".join(str(message["content"]) for message in messages)


def optional(module: str, feature: str) -> Any:
    """Import a library that is not always installed. Raises `OptionalDependencyError` with the command to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise OptionalDependencyError(feature, install=module.partition(".")[0]) from error
