"""Span buffer: the spans of one attempt, collected as they end and sent to the store in batches, in order."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

from ...core.errors import InvalidInput
from ...core.model.semconv import LightningResourceAttributes
from ...core.model.span import Attributes, Span
from ...core.model.store_interface import LightningStore
from ...core.retry import patiently

__all__ = ["CURRENT_BUFFER", "SpanBuffer"]

_log = logging.getLogger(__name__)
LINGER_SECONDS = 0.05
"""How long the first span of a batch waits for others."""
BATCH_SPANS = 256
"""Most spans in one call of the store."""


class SpanBuffer:
    """Takes spans from any thread; sends them from the event loop on which it was opened.

    Without a store the spans are only kept. ``spans`` holds the stored ones,
    as the store returned them. ``open`` holds OpenTelemetry spans that have not ended, by span id.
    """

    def __init__(self, rollout_id: str, attempt_id: str, store: LightningStore | None) -> None:
        self.rollout_id = rollout_id
        self.attempt_id = attempt_id
        self.store = store
        self.resource_attributes: Attributes = {
            LightningResourceAttributes.ROLLOUT_ID.value: rollout_id,
            LightningResourceAttributes.ATTEMPT_ID.value: attempt_id,
        }
        self.spans: list[Span] = []
        self.open: dict[int, Any] = {}
        self.closed = False
        self._waiting: list[Span] = []
        self._sent: list[Span] = []
        self._last: list[Span] = []
        self._lock = threading.Lock()
        self._sending = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to send in the background."""
        if self.store is not None:
            self._task = asyncio.create_task(self._send_in_background(), name=f"spans-of-{self.rollout_id}")

    def add(self, spans: Sequence[Span]) -> None:
        """Queue ended spans; those that come after the close are dropped."""
        with self._lock:
            if self.closed:
                _log.debug("%d span(s) of %s ended after their attempt.", len(spans), self.rollout_id)
                return
            self._waiting.extend(spans)
        if self.store is not None:
            self._loop.call_soon_threadsafe(self._wake.set)

    def add_last(self, span: Span) -> None:
        """Queue a span that is to come after all others, and is sent with them when the buffer closes."""
        self._last.append(span)

    def all(self) -> list[Span]:
        """``spans``, and after them those that are being sent to the store, whose ``sequence_id`` is 0."""
        with self._lock:
            return [*self.spans, *self._sent, *self._waiting]

    async def close(self) -> None:
        """Take no more spans and store the rest; raises what the store raised."""
        with self._lock:
            self.closed = True
            self._waiting.extend(self._last)
        async with self._sending:
            # Nothing is being sent, so the cancellation cannot hit a call of the store.
            if self._task is not None:
                self._task.cancel()
            await self._send()

    async def _send_in_background(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(LINGER_SECONDS)
            self._wake.clear()
            async with self._sending:
                try:
                    await self._send()
                except Exception as error:
                    # The spans stay queued: close() sends them again, and raises.
                    _log.debug("Spans of %s could not be stored yet: %s", self.rollout_id, error)
                    return

    async def _send(self) -> None:
        while True:
            with self._lock:
                batch, self._waiting = self._waiting[:BATCH_SPANS], self._waiting[BATCH_SPANS:]
                self._sent = batch
            if not batch:
                return
            try:
                stored = await self._store(batch)
            except BaseException:
                with self._lock:
                    self._waiting, self._sent = batch + self._waiting, []
                raise
            with self._lock:
                self.spans.extend(stored)
                self._sent = []

    async def _store(self, batch: list[Span]) -> list[Span]:
        store = self.store
        if store is None:
            return batch
        try:
            stored = await patiently(lambda: store.add_many_spans(batch), f"Spans of {self.rollout_id}")
        except InvalidInput as error:
            if len(batch) == 1:
                _log.error("The store refuses span %r of %s: %s", batch[0].name, self.rollout_id, error)
                return []
            # One span that is refused must not keep the others from being stored.
            return [span for one in batch for span in await self._store([one])]
        answered = {span.span_id: span for span in stored}
        return [answered.get(span.span_id, span) for span in batch]


CURRENT_BUFFER: ContextVar[SpanBuffer | None] = ContextVar("agentlightning_recording", default=None)
"""The buffer of the attempt that this task or thread works for."""
