"""Filtering, sorting and paging, in one place for every query of every store.

Works on pydantic models and on plain objects alike: fields are read with ``getattr``, and the
``model`` class says which fields there are and what they hold.

Decisions where the older behaviour surprised:

* No condition at all matches everything, with ``"or"`` as with ``"and"``.
* An unset ``*_time`` comes last in both directions: newest first does not begin with "never".
  Other unset values count as ``""`` or 0.
* What cannot be ordered (a dict, a nested model) or does not exist is refused by name and type,
  with a ValueError, whether or not the items at hand would have shown it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from types import NoneType, UnionType
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from ..errors import InvalidInput
from .rollout import FilterOptions, PaginatedResult
from .scalars import plain_scalar

__all__ = ["IncompletePage", "compile_filter", "page", "sort_items"]

T = TypeVar("T")

Predicate = Callable[[Any], bool]

_OPERATORS = ("exact", "within", "contains")
_AGGREGATE = "_aggregate"
_MUST = "_must"


class IncompletePage(PaginatedResult[T], Generic[T]):
    """A page of what is still there, where the log has lost, or may have lost, some of what was acknowledged.

    Dumps like every page, with ``"incomplete": true`` beside the other fields. ``getattr(page, "incomplete", False)``
    asks any page. ``total`` counts what is there.
    """

    incomplete: Literal[True] = True


def page(
    items: Iterable[T],
    *,
    filters: FilterOptions | None = None,
    sort_by: str | None = None,
    sort_order: str = "asc",
    limit: int = -1,
    offset: int = 0,
    model: type[Any],
    incomplete: bool = False,
) -> PaginatedResult[T]:
    """The part of ``items`` that a caller asked for, as the items themselves (not copied).

    Args:
        items: in stored order, which stays the order of items that sort equal.
        filters: see :data:`FilterOptions`; None for all.
        sort_by: a field of ``model``; None keeps the stored order, and ``sort_order`` is moot.
        sort_order: ``"asc"`` or ``"desc"``.
        limit: -1 for all; 0 gives no item, but counts.
        offset: how many matches to skip; beyond the end gives no item.
        model: the class whose fields can be named.
        incomplete: mark the page as an :class:`IncompletePage`.

    Raises:
        InvalidInput: (a ValueError) an unknown field, operator or order, a negative offset or a
            limit below -1.
        TypeError: a filter of the wrong shape.
    """
    limit, offset = plain_scalar(limit), plain_scalar(offset)
    for name, value in (("limit", limit), ("offset", offset)):
        if not isinstance(cast(object, value), int):
            raise InvalidInput(f"The {name} must be a whole number, not {value!r:.100}")
    if limit < -1:
        raise InvalidInput(f"The limit must be -1 (none) or at least 0, not {limit}")
    if offset < 0:
        raise InvalidInput(f"The offset must be at least 0, not {offset}")
    matches = compile_filter(filters, model=model) if filters else None
    found = list(items) if matches is None else [item for item in items if matches(item)]
    _check_order(sort_order)
    if sort_by is not None:
        found = sort_items(found, sort_by=sort_by, sort_order=sort_order, model=model)
    end = None if limit == -1 else offset + limit
    shown = found if offset == 0 and end is None else found[offset:end]
    # Past validation: it would copy the list and check every item again.
    unvalidated = cast(type[PaginatedResult[T]], IncompletePage if incomplete else PaginatedResult)
    return unvalidated.model_construct(items=shown, limit=limit, offset=offset, total=len(found))


def compile_filter(filters: FilterOptions, *, model: type[Any]) -> Predicate | None:
    """One function that says whether an item matches; None where everything does.

    Raises as :func:`page`, before the first item is looked at.
    """
    aggregate = filters.get(_AGGREGATE, "and")
    if aggregate not in ("and", "or"):
        raise InvalidInput(f"{_AGGREGATE} must be 'and' or 'or', not {aggregate!r}")
    optional = [
        predicate
        for name, conditions in filters.items()
        if name not in (_AGGREGATE, _MUST)
        for _, predicate in _conditions(name, conditions, model)
    ]
    required = _must_conditions(filters.get(_MUST), model)
    if aggregate == "or" and len(optional) > 1:
        required.append(_any_of(optional))
    else:
        required.extend(optional)
    if not required:
        return None
    return required[0] if len(required) == 1 else _all_of(required)


def _must_conditions(must: Any, model: type[Any]) -> list[Predicate]:
    if must is None:
        return []
    if not isinstance(must, (Mapping, Sequence)) or isinstance(must, str):
        raise TypeError(f"{_MUST} must be a mapping or a sequence of mappings, not {type(must).__name__}")
    groups = cast(Sequence[Any], [must] if isinstance(must, Mapping) else must)
    seen: set[tuple[str, str]] = set()
    required: list[Predicate] = []
    for group in groups:
        if not isinstance(group, Mapping):
            raise TypeError(f"{_MUST} must hold mappings, not {type(group).__name__}")
        for name, conditions in cast(Mapping[str, Any], group).items():
            for operation, predicate in _conditions(name, conditions, model):
                if (name, operation) in seen:
                    raise InvalidInput(f"{_MUST} has two conditions {operation!r} on {name!r}")
                seen.add((name, operation))
                required.append(predicate)
    return required


def _conditions(name: str, conditions: Any, model: type[Any]) -> Iterable[tuple[str, Predicate]]:
    if not isinstance(conditions, Mapping):
        raise TypeError(f"The filter of {name!r} must be a mapping, not {type(conditions).__name__}")
    if name not in _fields(model):
        raise InvalidInput(f"Failed to filter items by '{name}': field does not exist on {model.__name__}")
    for operation, operand in cast(Mapping[str, Any], conditions).items():
        if operation not in _OPERATORS:
            raise InvalidInput(f"Unknown filter operator {operation!r} on {name!r}: use one of {_OPERATORS}")
        if operand is not None:
            yield operation, _predicate(name, operation, operand)


def _predicate(name: str, operation: str, operand: Any) -> Predicate:
    read = operator.attrgetter(name)
    if operation == "exact":
        return lambda item: read(item) == operand
    if operation == "within":
        members = _members(operand)
        return lambda item: read(item) in members

    def contains(item: Any) -> bool:
        value = read(item)
        if value is None:
            return False
        try:
            return operand in value
        except TypeError:
            raise InvalidInput(f"Failed to filter items by '{name}': it has no parts to look into") from None

    return contains


def _members(operand: Iterable[Any]) -> Collection[Any]:
    if isinstance(operand, (str, bytes)):
        raise InvalidInput(f"A list of values was expected, not the {type(operand).__name__} {operand!r:.100}")
    members = list(operand)
    try:
        return frozenset(members)
    except TypeError:
        return members


def _any_of(predicates: list[Predicate]) -> Predicate:
    return lambda item: any(predicate(item) for predicate in predicates)


def _all_of(predicates: list[Predicate]) -> Predicate:
    return lambda item: all(predicate(item) for predicate in predicates)


def sort_items(items: Iterable[T], *, sort_by: str, sort_order: str = "asc", model: type[Any]) -> list[T]:
    """A new list in the order of a field; stable in both directions. Raises as :func:`page`."""
    _check_order(sort_order)
    unset = _unset_value(model, sort_by)
    read = operator.attrgetter(sort_by)
    descending = sort_order == "desc"
    if unset is None:
        never: list[T] = []
        dated: list[T] = []
        for item in items:
            (never if read(item) is None else dated).append(item)
        return [*sorted(dated, key=read, reverse=descending), *never]

    def key(item: T) -> Any:
        value = read(item)
        return unset if value is None else value

    return sorted(items, key=key, reverse=descending)


def _check_order(sort_order: str) -> None:
    if sort_order not in ("asc", "desc"):
        raise InvalidInput(f"The sort order must be 'asc' or 'desc', not {sort_order!r}")


@lru_cache(maxsize=256)
def _unset_value(model: type[Any], name: str) -> str | float | None:
    """What None counts as when sorting by a field; None: it comes last."""
    if name not in _fields(model):
        raise InvalidInput(f"Failed to sort items by '{name}': field does not exist on {model.__name__}")
    kinds = _kinds(_fields(model)[name])
    if kinds <= {int, float, bool} and kinds:
        return None if name.endswith("_time") else 0
    if kinds == {str}:
        return ""
    raise InvalidInput(f"Failed to sort items by '{name}': its type on {model.__name__} has no order")


@lru_cache(maxsize=64)
def _fields(model: type[Any]) -> dict[str, Any]:
    """Field name -> annotation."""
    if issubclass(model, BaseModel):
        return {name: field.annotation for name, field in model.model_fields.items()}
    return get_type_hints(model)


def _kinds(annotation: Any) -> set[Any]:
    """The types that an annotation allows besides None, literals by the type of their values."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return {kind for part in get_args(annotation) for kind in _kinds(part)}
    if origin is Literal:
        return {type(value) for value in get_args(annotation)}
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if annotation is NoneType:
        return set()
    return {origin or annotation}
