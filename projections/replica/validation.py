"""What callers pass, checked at the door: a wrong type is one sentence for its caller and never a record of the log.

A record that nobody can decode is refused by every fold alike and has no command id to answer to, so whatever goes into
an event as text or number passes through here first. Everything raises `InvalidInput` (a ValueError).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from ...core.credentials import mask_attributes, mask_text
from ...core.errors import InvalidInput
from ...core.model import scalars
from ...core.model.rollout import EnqueueRolloutRequest, RolloutConfig
from ...core.model.scalars import plain_scalar
from ...core.model.span import ReceivedSpan, Span
from ...core.spans.rewards import checked_reward

NAME_LIMIT = 1000
"""Characters of an id or name: they travel in every record, in headers and as keys."""
SEQUENCE_LIMIT = 2**53 - 1
"""The largest number that every reader of JSON keeps exact."""
_ATTEMPTS_LIMIT = 2**31
"""`core.events.Count` holds no more."""


def text(value: object, name: str) -> str:
    """A name or id: a string of at most `NAME_LIMIT` characters that has bytes in UTF-8."""
    if type(value) is str and len(value) <= NAME_LIMIT and value.isascii():
        return value
    if not isinstance(value, str):
        raise InvalidInput(f"{name} must be a string, not {type(value).__name__}")
    if len(value) > NAME_LIMIT:
        raise InvalidInput(f"{name} has {len(value):,} characters; it takes {NAME_LIMIT:,} at most")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidInput(f"{name} holds half of a surrogate pair, which has no bytes in UTF-8") from None
    return value if type(value) is str else cast(str, plain_scalar(value))


def text_or_none(value: object, name: str) -> str | None:
    """As `text`; None stays None."""
    return None if value is None else text(value, name)


def named(value: object, name: str) -> str:
    """As `text`, and not empty."""
    found = text(value, name)
    if not found:
        raise InvalidInput(f"{name} must not be empty")
    return found


def some_of(values: object, allowed: frozenset[str], name: str) -> list[str] | None:
    """Texts each of which is one of `allowed`; None stays None."""
    found = texts_or_none(values, name)
    for value in found or ():
        if value not in allowed:
            raise InvalidInput(f"{name} takes {', '.join(sorted(allowed))}, not {value!r}")
    return found


def id_or_none(value: object, name: str) -> str | None:
    """As `named`; None stays None."""
    return None if value is None else named(value, name)


def texts(values: object, name: str) -> list[str]:
    """A list of names. A lone string is refused: it would be taken for the list of its letters."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise InvalidInput(f"{name} must be a list of strings, not {type(cast(object, values)).__name__}")
    return [text(value, f"an item of {name}") for value in cast("Iterable[object]", values)]


def texts_or_none(values: object, name: str) -> list[str] | None:
    """As `texts`; None stays None."""
    return None if values is None else texts(values, name)


def number(value: object, name: str) -> float:
    """A number, infinity too; NaN is refused: no comparison with it comes true, so nothing would ever end."""
    found = scalars.number(value)
    if found is None or math.isnan(found):
        raise InvalidInput(f"{name} must be a number, not {value!r:.100}")
    return found


def whole(value: object, name: str) -> int:
    """A whole number, of any type that stands for one."""
    try:
        return int(operator.index(cast(Any, value)))
    except TypeError:
        raise InvalidInput(f"{name} must be a whole number, not {value!r:.100}") from None


def one_of(value: object, allowed: frozenset[Any], name: str) -> Any:
    """One of the words allowed."""
    if not (value is None or isinstance(value, str)) or value not in allowed:
        words = ", ".join(sorted(str(one) for one in allowed if one is not None))
        raise InvalidInput(f"{name} is {value!r:.100}; it takes one of {words}")
    return plain_scalar(value)


def mapping_or_none(value: object, name: str) -> dict[str, Any] | None:
    """Metadata: a fresh dict with string keys, or None."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{name} must be a dict, not {type(value).__name__}")
    found = dict(cast("Mapping[Any, Any]", value))
    for key in found:
        if not isinstance(key, str):
            raise InvalidInput(f"{name} has the key {key!r:.100}; its keys must be strings")
    return found


def config(value: object) -> RolloutConfig:
    """A config, also as a dict. It is checked again: fields of a model may be assigned without a check."""
    fields = value.model_dump(warnings=False) if isinstance(value, RolloutConfig) else value
    checked = RolloutConfig.model_validate(fields)
    if checked.max_attempts > _ATTEMPTS_LIMIT:
        raise InvalidInput(f"max_attempts is {checked.max_attempts:,}; it takes {_ATTEMPTS_LIMIT:,} at most")
    return checked


def requests(values: object) -> list[EnqueueRolloutRequest]:
    """What is to be enqueued, also as dicts."""
    if isinstance(values, (str, bytes, Mapping, EnqueueRolloutRequest)) or not isinstance(values, Iterable):
        raise InvalidInput(f"rollouts must be a list of EnqueueRolloutRequest, not {type(cast(object, values)).__name__}")
    return [
        value if isinstance(value, EnqueueRolloutRequest) else EnqueueRolloutRequest.model_validate(value)
        for value in cast("Iterable[object]", values)
    ]


def pairs(values: object, name: str) -> list[tuple[str, str]]:
    """(rollout_id, attempt_id) each."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise InvalidInput(f"{name} must be a list of (rollout_id, attempt_id), not {type(cast(object, values)).__name__}")
    found: list[tuple[str, str]] = []
    for value in cast("Iterable[object]", values):
        if isinstance(value, str) or not isinstance(value, Sequence) or len(cast("Sequence[object]", value)) != 2:
            raise InvalidInput(f"{name} must hold pairs (rollout_id, attempt_id), not {value!r:.100}")
        rollout_id, attempt_id = cast("Sequence[object]", value)
        found.append((text(rollout_id, "rollout_id"), text(attempt_id, "attempt_id")))
    return found


class CheckedSpan(NamedTuple):
    """A span of our own that reads back, and what the log is given of it."""

    span: Span
    body: dict[str, Any]
    """Its fields as plain data, without those that its record carries itself."""
    reward: float | None
    """Its primary reward."""


_IN_RECORD = {"rollout_id", "attempt_id", "span_id", "sequence_id"}


def span(value: object) -> CheckedSpan:
    """A copy that reads back: the caller's attributes and fields may have been changed since it was made, or may be yet.

    A `ReceivedSpan` was checked when it was decoded, and nobody else holds it: it is kept as it is.
    """
    if not isinstance(value, Span):
        raise InvalidInput(f"a span must be a Span, not {type(value).__name__}")
    checked = value if isinstance(value, ReceivedSpan) else Span.model_validate(value.model_dump(warnings=False))
    for part in (checked, *checked.events):
        mask_attributes(part.attributes)
    if checked.status.description is not None:  # instrumentations repeat the message of an exception there
        checked.status.description = mask_text(checked.status.description)
    text(checked.rollout_id, "rollout_id")
    text(checked.attempt_id, "attempt_id")
    text(checked.span_id, "span_id")
    reward = checked_reward(checked.name, checked.attributes, f"The reward of rollout {checked.rollout_id}")
    if abs(checked.sequence_id) > SEQUENCE_LIMIT:
        raise InvalidInput(f"sequence_id is {checked.sequence_id}; it takes a number between 0 and {SEQUENCE_LIMIT}")
    return CheckedSpan(checked, checked.model_dump(exclude=_IN_RECORD, warnings=False), reward)


def spans(values: object) -> list[CheckedSpan]:
    """A list of spans, each as in `span`."""
    if isinstance(values, (str, bytes, Mapping, Span)) or not isinstance(values, Iterable):
        raise InvalidInput(f"spans must be a list of Span, not {type(cast(object, values)).__name__}")
    return [span(value) for value in cast("Iterable[object]", values)]
