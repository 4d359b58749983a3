"""What an adapter is: spans in, an algorithm's data out, and a count of what was odd on the way."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ...core.model.span import Span, SpanCoreFields

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
else:
    # At run time any object with the attributes of an OpenTelemetry span will do.
    ReadableSpan = Any

__all__ = ["Adapter", "OtelTraceAdapter", "TraceAdapter", "as_spans"]

T_from = TypeVar("T_from")
T_to = TypeVar("T_to")

_log = logging.getLogger(__name__)
# Not in the instances: adapters travel to other processes, and locks do not.
_MERGING = threading.Lock()


class Adapter(ABC, Generic[T_from, T_to]):
    """Turns one form of data into another. Instances can be called: ``adapter(source)``.

    The adapters of this package are total: one odd message, span or value is left out or mended,
    counted in :attr:`oddities` and named in one warning per call; it never costs the others.
    """

    _oddities: Mapping[str, int] = MappingProxyType({})

    @abstractmethod
    def adapt(self, source: T_from, /) -> T_to:
        """``source`` in the other form; ``source`` itself is not changed."""

    def __call__(self, source: T_from, /) -> T_to:
        """The same as :meth:`adapt`."""
        return self.adapt(source)

    @property
    def oddities(self) -> Counter[str]:
        """What was left out or mended in all calls so far: reason -> how often. A copy."""
        with _MERGING:
            return Counter(self._oddities)

    def report(self, odd: Counter[str]) -> None:
        """Add the counts of one call and say them in one warning; silent without any."""
        if not odd:
            return
        with _MERGING:
            # A new object, since the one of the class belongs to every adapter that counted nothing yet.
            self._oddities = Counter(self._oddities) + odd
        reasons = "; ".join(f"{reason} ({number})" for reason, number in sorted(odd.items()))
        _log.warning("%s left out or mended: %s", type(self).__name__, reasons)


class TraceAdapter(Adapter[Sequence[Span], T_to], Generic[T_to]):
    """An adapter of stored spans, in the order of ``query_spans``."""


class OtelTraceAdapter(Adapter[Sequence["ReadableSpan"], T_to], Generic[T_to]):
    """An adapter of OpenTelemetry's own spans."""


def as_spans(source: Sequence[Any], odd: Counter[str]) -> list[Span]:
    """Every item as a :class:`Span`; OpenTelemetry's spans get dummy ids and their place as number.

    What is no span at all is counted and left out.
    """
    spans: list[Span] = []
    for place, item in enumerate(source):
        if isinstance(item, Span):
            spans.append(item)
            continue
        try:
            if isinstance(item, SpanCoreFields):
                spans.append(Span.from_core_fields(item, sequence_id=place))
            else:
                spans.append(Span.from_opentelemetry(item, "rollout-dummy", "attempt-dummy", place))
        except (AttributeError, TypeError, ValueError) as error:
            _log.debug("Item %d is no span: %s", place, error)
            odd[f"item of type {type(item).__name__} that is no span"] += 1
    return spans
