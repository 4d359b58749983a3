"""The store's methods about spans: add, number, read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from ...core.errors import InvalidInput, NotFound
from ...core.events.schema import AnyEvent
from ...core.fold import commands
from ...core.fold.state import Rollout, State
from ...core.model.query import page
from ...core.model.rollout import PaginatedResult
from ...core.model.span import Span, reads_like_a_span
from ...core.model.status import FINISHED
from ...core.model.store_interface import FilterLogic, LightningStore, SortOrder
from ..replica import validation
from ..replica.command_context import current_call
from ..spans.span_log import last_sign_us
from .engine import Engine

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

logger = logging.getLogger(__name__)

LATE_US = 5 * 60 * 1_000_000
"""A span that comes so much later than the last sign of life of its finished rollout is one itself."""


class SpanMethods(LightningStore):
    """Part of `EventLogStore` (store.py)."""

    engine: Engine

    async def add_span(self, span: Span) -> Span | None:
        return (await self._add([validation.span(span)]))[0]

    async def add_many_spans(self, spans: Sequence[Span]) -> Sequence[Span]:
        checked = validation.spans(spans)
        return [span for span in await self._add(checked) if span is not None] if checked else []

    async def add_otel_span(
        self, rollout_id: str, attempt_id: str, readable_span: ReadableSpan, sequence_id: int | None = None
    ) -> Span | None:
        if not reads_like_a_span(readable_span):
            raise InvalidInput(f"readable_span must be an OpenTelemetry span, not {type(readable_span).__name__}")
        number = 0 if sequence_id is None else validation.whole(sequence_id, "sequence_id")
        return await self.add_span(Span.from_opentelemetry(readable_span, rollout_id, attempt_id, number))

    async def _add(self, checked: Sequence[validation.CheckedSpan]) -> list[Span | None]:
        """All must belong to known attempts, or none is stored. Signs of life follow the spans into the log.

        The log of a single writer keeps the order of its appends, so a sign of life is appended right behind the spans there.
        """
        attempts = {(one.span.rollout_id, one.span.attempt_id) for one in checked}
        await self._check_known(sorted(attempts))
        edges: list[asyncio.Future[Any]] = []
        try:
            stored = await self.engine.spans.add(checked, partial(self._alive, edges))
        except BaseException:
            for edge in edges:
                edge.cancel()  # nobody waits for it
            raise
        for sent in (sent.span for sent, one in zip(checked, stored) if one is None):
            logger.error(
                "Duplicated span added for rollout=%s, attempt=%s, span=%s. Skipping.",
                sent.rollout_id, sent.attempt_id, sent.span_id,
            )  # fmt: skip
        if self.engine.shared:
            await self._late(attempts)
        for edge in edges:
            await edge
        return stored

    def _alive(self, edges: list[asyncio.Future[Any]], attempts: set[tuple[str, str]]) -> None:
        for rollout_id, attempt_id in sorted(attempts):
            edge = self.engine.observing(rollout_id, attempt_id, "running")[1]
            if edge is not None:
                edges.append(edge)

    async def _late(self, attempts: set[tuple[str, str]]) -> None:
        """Spans came long after their rollout's outcome: readers look for them as long as the control log has a sign
        of life, so it gets this one.
        """
        now_us = self.engine.time_us()
        for rollout_id, attempt_id in sorted(attempts):
            rollout = await self.engine.read(rollout_id)
            if rollout is None or rollout.status not in FINISHED or now_us - last_sign_us(rollout) < LATE_US:
                continue

            def noted(state: State, _: str, rollout_id: str = rollout_id, attempt_id: str = attempt_id) -> AnyEvent:
                rollout = commands.find(state, rollout_id)
                return commands.update_attempt(
                    rollout, commands.find_attempt(rollout, attempt_id), status=None, worker_id=None, metadata=None,
                    beat_us=now_us, watermark=None, lag_ms=0,
                )  # fmt: skip

            part = f"{current_call().command_id}/late/{rollout_id}/{attempt_id}"
            await self.engine.command(noted, lambda _: None, part=part)

    async def _check_known(self, attempts: Sequence[tuple[str, str]]) -> None:
        """Raise `NotFound` for the first attempt that there is not."""
        archived: list[tuple[str, str]] = []
        state = self.engine.node.state
        with self.engine.node.lock:
            for rollout_id, attempt_id in attempts:
                rollout = state.rollouts.get(rollout_id)
                if rollout is None and state.archived.get(rollout_id) is not None:
                    archived.append((rollout_id, attempt_id))
                else:
                    _check_attempt(rollout_id, rollout, attempt_id)
        for rollout_id, attempt_id in archived:
            _check_attempt(rollout_id, await self.engine.read(rollout_id), attempt_id)

    async def get_next_span_sequence_id(self, rollout_id: str, attempt_id: str) -> int:
        pair = (validation.text(rollout_id, "rollout_id"), validation.text(attempt_id, "attempt_id"))
        await self._check_known([pair])
        return (await self.engine.spans.reserve([pair[0]]))[0]

    async def get_many_span_sequence_ids(self, rollout_attempt_ids: Sequence[tuple[str, str]]) -> Sequence[int]:
        pairs = validation.pairs(rollout_attempt_ids, "rollout_attempt_ids")
        if not pairs:
            return []
        await self._check_known(pairs)
        return await self.engine.spans.reserve([rollout_id for rollout_id, _ in pairs])

    async def query_spans(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"] | None = None,
        *,
        trace_id: str | None = None,
        trace_id_contains: str | None = None,
        span_id: str | None = None,
        span_id_contains: str | None = None,
        parent_id: str | None = None,
        parent_id_contains: str | None = None,
        name: str | None = None,
        name_contains: str | None = None,
        filter_logic: FilterLogic = "and",
        limit: int = -1,
        offset: int = 0,
        sort_by: str | None = "sequence_id",
        sort_order: SortOrder = "asc",
    ) -> PaginatedResult[Span]:
        rollout_id = validation.text(rollout_id, "rollout_id")
        if attempt_id == "latest":
            rollout = await self.engine.read(rollout_id)
            attempt_id = rollout.attempts[-1].attempt_id if rollout is not None and rollout.attempts else ""
        filters: Any = {
            "trace_id": {"exact": trace_id, "contains": trace_id_contains},
            "span_id": {"exact": span_id, "contains": span_id_contains},
            "parent_id": {"exact": parent_id, "contains": parent_id_contains},
            "name": {"exact": name, "contains": name_contains},
            "_aggregate": filter_logic,
            "_must": {"attempt_id": {"exact": attempt_id}},
        }
        spans, lost = await asyncio.to_thread(self._read, rollout_id)
        return page(
            spans, filters=filters, sort_by=sort_by, sort_order=sort_order, limit=limit, offset=offset, model=Span,
            incomplete=lost,
        )  # fmt: skip

    def _read(self, rollout_id: str) -> tuple[list[Span], bool]:
        """The spans that are there, and whether some that were acknowledged are not."""
        lost: list[str] = []
        spans = self.engine.spans.read(rollout_id, lost)
        rollout = self.engine.load(rollout_id)
        if rollout is None or not rollout.attempts:
            return spans, bool(lost)
        created_us, marks = rollout.created_us, [attempt.watermark or 0 for attempt in rollout.attempts]
        if not self.engine.spans.lost(rollout_id, created_us, max(marks)):
            return spans, bool(lost)
        logger.warning("Spans of rollout %s are gone from the log; what is left is marked incomplete.", rollout_id)
        return spans, True


def _check_attempt(rollout_id: str, rollout: Rollout | None, attempt_id: str) -> None:
    if rollout is None:
        raise NotFound.rollout(rollout_id)
    if all(attempt.attempt_id != attempt_id for attempt in reversed(rollout.attempts)):
        raise NotFound.attempt(attempt_id, rollout_id)
