"""Scalars: values of other classes as the plain Python numbers, texts and times that they stand for."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any, cast

from pydantic import BaseModel

__all__ = ["escaped", "items", "mapping", "model_data", "number", "plain_data", "plain_scalar"]

_EXACT: frozenset[type] = frozenset((str, bool, int, float, bytes, type(None)))
_TIMES: frozenset[type] = frozenset((datetime.datetime, datetime.date, datetime.time, datetime.timedelta))
_MISSING = frozenset(("NAType", "NaTType"))
"""Classes of pandas' missing values: subclasses of nothing, or of datetime without being a time."""


def plain_scalar(value: Any) -> Any:
    """The scalar as an object of exactly str, bool, int, float, bytes, or a class of `datetime`.

    A subclass of one of them becomes its base, a scalar of numpy, pandas or a tensor without dimensions its Python
    value, and a missing value of pandas None. What is no scalar is returned as it is, the same object.
    """
    if type(value) in _EXACT or type(value) in _TIMES:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__index__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, bytes):
        return bytes.__getitem__(value, slice(None))
    if type(value).__name__ in _MISSING and type(value).__module__.partition(".")[0] == "pandas":
        return None
    if isinstance(value, (datetime.date, datetime.time, datetime.timedelta)):
        return _plain_time(value)
    return _item(value)


def _plain_time(value: datetime.date | datetime.time | datetime.timedelta) -> Any:
    """Without the nanoseconds of pandas, which no class of `datetime` holds."""
    if isinstance(value, datetime.datetime):
        day = (value.year, value.month, value.day)
        clock = (value.hour, value.minute, value.second, value.microsecond)
        return datetime.datetime(*day, *clock, tzinfo=value.tzinfo, fold=value.fold)
    if isinstance(value, datetime.date):
        return datetime.date(value.year, value.month, value.day)
    if isinstance(value, datetime.time):
        clock = (value.hour, value.minute, value.second, value.microsecond)
        return datetime.time(*clock, tzinfo=value.tzinfo, fold=value.fold)
    return datetime.timedelta(days=value.days, seconds=value.seconds, microseconds=value.microseconds)


def _item(value: Any) -> Any:
    """The Python value of an array's scalar; `value` itself where it is none."""
    take = getattr(value, "item", None)
    if not callable(take) or getattr(value, "shape", None) != ():
        return value
    item = cast(Any, take())
    if type(item) is not type(value):
        return plain_scalar(item) if type(item) in _EXACT or isinstance(item, datetime.date) else item
    # numpy.longdouble has no Python value of its own precision: item() gives it back.
    return float(value) if isinstance(value, Real) else value


def escaped(text: str) -> str:
    """The text with the halves of surrogate pairs escaped: names of files may hold them, and UTF-8 has no bytes for them."""
    return text.encode("utf-8", "backslashreplace").decode()


def plain_data(value: Any, verb: str = "stored") -> Any:
    """For encoders: what they do not know as builtins (models, mappings, scalars, arrays), or TypeError."""
    plain = plain_scalar(value)
    if plain is not value:
        return plain
    if isinstance(value, BaseModel):
        return model_data(value)
    dump = getattr(value, "model_dump", None)  # what behaves like one of pydantic's models
    if callable(dump):
        return dump(mode="json")
    if isinstance(value, Mapping):
        return dict(cast("Mapping[Any, Any]", value))
    labels, as_dict = getattr(value, "index", None), getattr(value, "to_dict", None)
    if callable(as_dict) and getattr(value, "ndim", None) == 1 and type(labels).__name__ != "RangeIndex":
        return as_dict()  # a row of a pandas table
    tolist = getattr(value, "tolist", None)  # numpy arrays, pandas columns
    if callable(tolist) and getattr(value, "shape", None) != ():
        return tolist()
    raise TypeError(f"a {type(value).__qualname__} cannot be {verb}; pass JSON-like data")


def model_data(model: BaseModel) -> dict[str, Any]:
    """The fields of a model in JSON's types; values that pydantic does not know as :func:`plain_data` has them."""
    return model.model_dump(mode="json", warnings=False, fallback=plain_data)


def number(value: Any) -> float | None:
    """The value of a real number of any class, not finite ones too; None for what is no number.

    Numbers are bool, int, float, Decimal, Fraction, and what numpy and tensors have in their place (`numpy.bool_`).
    A text is no number, whatever it spells; one too large for a float is an infinity.
    """
    plain = plain_scalar(value)
    if not isinstance(plain, (Real, Decimal)):
        return None
    try:
        return float(plain)
    except OverflowError:
        return float("inf") if cast(Any, plain) > 0 else float("-inf")
    except ValueError:  # a signalling NaN of Decimal
        return float("nan")


def mapping(value: Any) -> Mapping[Any, Any] | None:
    """The value where it is a mapping, else None: decoded data has no types of its own."""
    return cast("Mapping[Any, Any]", value) if isinstance(value, Mapping) else None


def items(value: Any) -> Sequence[Any] | None:
    """The value where it is a list or a tuple, else None."""
    return cast("Sequence[Any]", value) if isinstance(value, (list, tuple)) else None
