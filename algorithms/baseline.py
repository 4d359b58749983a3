"""Algorithms that are quick enough to try an agent out with, and the one that only runs and reports."""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal

from ..core.errors import AgentLightningError, InvalidInput, InvalidPayload, PayloadTooLarge
from ..core.model.rollout import AttemptedRollout, Dataset, Rollout, RolloutMode
from ..core.model.span import Span
from ..core.model.status import QUEUING
from ..core.model.store_interface import LightningStore, is_finished
from ..core.retry import patiently
from ..core.spans.rewards import attempt_spans, find_final_reward
from .algorithm import Algorithm, with_llm_proxy
from .datasets import Row, Rows

__all__ = ["Baseline", "FastAlgorithm"]

_log = logging.getLogger(__name__)
_FACT_TYPES = (
    "attempt.claimed",
    "attempt.running",
    "rollout.running",
    "rollout.claimable",
    "rollout.completed",
    "rollout.updated",
)
FIRST_SECONDS = 0.2
"""How long a wait takes at most before the first fact came: a subscription that just begins may have missed one."""
AGAIN_SECONDS = 1.0


class FastAlgorithm(Algorithm):
    """Base of algorithms that ``Trainer.dev`` takes."""


class Baseline(FastAlgorithm):
    """Runs the agent on every sample, and says what came of it; nothing is tuned.

    Args:
        n_epochs: passes over both datasets.
        train_split: part of the older interface; ValueError outside (0, 1).
        polling_interval: seconds between looks at a store that does not tell its facts.
        max_queue_length: samples are enqueued while no more rollouts than this wait in the queue.
        span_verbosity: what is logged of a span: its attributes, their names, or nothing at all.
    """

    def __init__(
        self,
        *,
        n_epochs: int = 1,
        train_split: float = 0.5,
        polling_interval: float = 5.0,
        max_queue_length: int = 4,
        span_verbosity: Literal["keys", "key_values", "none"] = "keys",
    ) -> None:
        if not 0 < train_split < 1:
            raise InvalidInput("train_split must be between 0 and 1.")
        self.n_epochs = n_epochs
        self.train_split = train_split
        self.polling_interval = polling_interval
        self.max_queue_length = max_queue_length
        self.span_verbosity = span_verbosity
        self._finished = 0
        self._rewards: list[float | None] = []

    async def run(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, train_dataset: Dataset[Any] | None = None, val_dataset: Dataset[Any] | None = None
    ) -> None:
        """Train samples in mode ``train``, then validation samples in mode ``val``, once an epoch.

        Datasets of any form are taken (see ``Rows`` in datasets.py), and each sample is read when its turn comes. One that
        cannot be used is logged and left out; ValueError where there are some and none can.
        """
        given: list[tuple[RolloutMode, Any]] = [("train", train_dataset), ("val", val_dataset)]
        await self._with_proxy([(mode, Rows(one, keep=self.n_epochs > 1)) for mode, one in given if one is not None])

    @with_llm_proxy()
    async def _with_proxy(self, llm_proxy: Any, sides: Sequence[tuple[RolloutMode, Rows]]) -> None:
        store, resources, resources_id = self.get_store(), self.get_initial_resources(), None
        if resources is None:
            _log.warning("No initial resources are set; rollouts use the latest of the store, if any.")
        else:
            resources_id = (await store.update_resources("default", resources)).resources_id
            _log.info("Initial resources set: %s", resources)
        self._finished, self._rewards = 0, []
        async with ChangeNotifier(store, _FACT_TYPES, self.polling_interval) as changes:
            for epoch in range(self.n_epochs):
                _log.info("Proceeding epoch %d/%d.", epoch + 1, self.n_epochs)
                if not await self._epoch(sides, resources_id, changes):
                    _log.error("Neither train_dataset nor val_dataset has a sample; there is nothing to run.")
                    return
        known = [reward for reward in self._rewards if reward is not None]
        mean = f"{sum(known) / len(known):.4g}" if known else "unknown"
        missing = len(self._rewards) - len(known)
        _log.info("Mean reward: %s, of %d rollouts; %d have no reward.", mean, len(known), missing)

    async def _epoch(self, sides: Sequence[tuple[RolloutMode, Rows]], resources_id: str | None, changes: ChangeNotifier) -> int:
        """One pass; the number of its rollouts. InvalidInput where there are samples and none can be used."""
        harvests: set[asyncio.Task[None]] = set()
        failed: list[str] = []
        try:
            for mode, rows in sides:
                for row in rows:
                    await self._room(changes)
                    rollout = await self._enqueued(mode, row, resources_id, failed)
                    if rollout is not None:
                        harvests.add(asyncio.create_task(self._harvest(rollout.rollout_id, changes)))
            await asyncio.gather(*harvests)
        finally:
            for harvest in harvests:
                harvest.cancel()
        if failed and not harvests:
            raise InvalidInput(f"No sample can be used. The first: {failed[0]}")
        return len(harvests)

    async def _enqueued(
        self, mode: RolloutMode, row: Row, resources_id: str | None, failed: list[str]
    ) -> Rollout | None:
        error = row.error
        if error is None:
            try:
                rollout = await self.get_store().enqueue_rollout(row.value, mode, resources_id)
                _log.info("Enqueued rollout %s in %s mode with sample: %s", rollout.rollout_id, mode, row.value)
                return rollout
            except (InvalidPayload, PayloadTooLarge) as refused:
                error = refused
        failed.append(f"row {row.number} of the {mode} dataset: {type(error).__name__}: {error}")
        _log.error("Left out: %s", failed[-1])
        return None

    async def _room(self, changes: ChangeNotifier) -> None:
        """Wait until the queue is short enough."""
        store = self.get_store()
        while True:
            mark = changes.mark()
            waiting = await patiently(
                lambda: store.query_rollouts(status_in=sorted(QUEUING), limit=1), "The queue"
            )
            if waiting.total <= self.max_queue_length:
                return
            await changes.wait(mark)

    async def _harvest(self, rollout_id: str, changes: ChangeNotifier) -> None:
        """Follow one rollout to its end and say what came of it. What fails here costs this report, not the run."""
        store, status = self.get_store(), None
        try:
            while True:
                mark = changes.mark(rollout_id)
                rollout = await patiently(lambda: store.get_rollout_by_id(rollout_id), f"[Rollout {rollout_id}]")
                if rollout is None:
                    _log.warning("[Rollout %s] It is gone from the store.", rollout_id)
                    break
                if rollout.status != status:
                    how = "is initialized" if status is None else "changed"
                    _log.info("[Rollout %s] Status %s to %s.", rollout_id, how, rollout.status)
                    status = rollout.status
                if is_finished(rollout):
                    await self._report(rollout)
                    break
                await changes.wait(mark)
        except Exception:
            _log.exception("[Rollout %s] It could not be followed to its end.", rollout_id)
        finally:
            changes.forget(rollout_id)
        self._finished += 1
        _log.info("Finished %d rollouts.", self._finished)

    async def _report(self, rollout: Rollout | AttemptedRollout) -> None:
        rollout_id, store = rollout.rollout_id, self.get_store()
        seconds = (rollout.end_time or rollout.start_time) - rollout.start_time
        _log.info("[Rollout %s] Finished with status %s in %.2f seconds.", rollout_id, rollout.status, seconds)
        stored, spans = await store.query_spans(rollout_id), list[Span]()
        for attempt in await store.query_attempts(rollout_id):
            where = f"[Rollout {rollout_id} | Attempt {attempt.sequence_id}]"
            _log.info("%s ID: %s. Status: %s. Worker: %s", where, attempt.attempt_id, attempt.status, attempt.worker_id)
            spans = attempt_spans(stored, attempt.attempt_id)  # the last one's are what the adapter gets
            for span in spans if self.span_verbosity != "none" else ():
                self._say(span)
        self._rewards.append(find_final_reward(spans))
        try:
            adapted = self.get_adapter().adapt(spans)
        except Exception as error:
            _log.warning("[Rollout %s] The adapter made nothing of %d span(s): %s", rollout_id, len(spans), error)
            return
        _log.info("[Rollout %s] Adapted data: %s", rollout_id, adapted)

    def _say(self, span: Span) -> None:
        attributes: Any = span.attributes
        what = f"Attribute keys: {list(attributes)}" if self.span_verbosity == "keys" else f"Attributes: {attributes}"
        start, end = span.start_time, span.end_time
        _log.info(
            "[Rollout %s | Attempt %s | Span %s] #%d (%s) From %s, to %s, %s seconds. %s",
            span.rollout_id,
            span.attempt_id,
            span.span_id,
            span.sequence_id,
            span.name,
            _iso(start),
            _iso(end),
            "unknown" if start is None or end is None else f"{end - start:.3f}",
            what,
        )


def _iso(moment: float | None) -> str:
    return "unknown" if moment is None else datetime.datetime.fromtimestamp(moment).isoformat()


class ChangeNotifier:
    """``async with ChangeNotifier(store, types, interval) as changes``: waits that end with the next fact of these types.

    ``interval``: seconds after which a wait ends in any case. Mark first, then look, then wait: a fact that comes in
    between ends the wait at once.
    """

    def __init__(self, store: LightningStore, types: Sequence[str], interval: float) -> None:
        self._store = store
        self._types = list(types)
        self._interval = interval
        self._live = False
        self._any = asyncio.Event()
        self._of: dict[str, asyncio.Event] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> ChangeNotifier:
        if self._store.capabilities.get("subscribe", False):
            self._task = asyncio.create_task(self._listen())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def mark(self, rollout_id: str | None = None) -> asyncio.Event:
        """What the next :meth:`wait` is about: one rollout, or any; its facts so far are seen."""
        event = self._any if rollout_id is None else self._of.setdefault(rollout_id, asyncio.Event())
        event.clear()
        return event

    def forget(self, rollout_id: str) -> None:
        """No more waits are about this rollout."""
        self._of.pop(rollout_id, None)

    async def wait(self, mark: asyncio.Event) -> None:
        """Return at the next fact, or after the interval."""
        listening = self._task is not None and not self._task.done()
        seconds = min(self._interval, FIRST_SECONDS) if listening and not self._live else self._interval
        try:
            await asyncio.wait_for(mark.wait(), seconds)
        except asyncio.TimeoutError:
            return

    async def _listen(self) -> None:
        while True:
            try:
                async for fact in self._store.subscribe(self._types):
                    self._live = True
                    self._any.set()
                    if fact.rollout_id in self._of:
                        self._of[fact.rollout_id].set()
            except AgentLightningError as error:
                # The waits go on by their interval; facts that were missed meanwhile are seen that way.
                _log.debug("The store has no subscription for now: %s", error)
            self._live = False
            await asyncio.sleep(AGAIN_SECONDS)
