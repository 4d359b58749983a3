"""Heartbeats: a runner reports every few seconds that it is alive and what it runs, even while its agent blocks."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from ...core.errors import InvalidInput
from ...core.loop_thread import LoopTask
from ...core.model.store_interface import LightningStore
from ...core.retry import patiently
from .system_snapshot import system_snapshot

__all__ = ["Heartbeat", "HeartbeatSource"]

_log = logging.getLogger(__name__)


class HeartbeatSource(NamedTuple):
    """Whose heartbeat it is; ``running`` gives (rollout_id, attempt_id) of what the worker runs at that moment."""

    worker_id: str
    incarnation: str
    running: Callable[[], Sequence[tuple[str, str]]]


class Heartbeat:
    """Calls ``store.update_worker`` for each source at once and then every ``interval`` seconds, until stopped.

    In mode ``thread`` a daemon thread keeps the rhythm, so that heartbeats go on while an agent
    blocks the event loop. It calls a thread-safe store from an event loop of its own, any
    other on the loop on which :meth:`start` was called. Mode ``asyncio`` is a task of that loop.

    Args:
        sources: the workers of this process, at least one.
        interval: seconds; 0 or less sends nothing.
        extra: what a heartbeat reports beside the state of the machine.
        jitter: seconds by which a pause is made longer or shorter at random, at most half the interval.
    """

    def __init__(
        self,
        store: LightningStore,
        sources: Sequence[HeartbeatSource],
        *,
        interval: float = 2.0,
        jitter: float = 0.5,
        mode: Literal["asyncio", "thread"] = "thread",
        include_gpu: bool = False,
        extra: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        if mode not in ("asyncio", "thread"):
            raise InvalidInput(f"Unknown heartbeat launch mode: {mode!r}; it is 'asyncio' or 'thread'")
        self._store = store
        self._sources = tuple(sources)
        self._name = self._sources[0].worker_id
        self._interval = interval
        self._jitter = min(jitter, interval / 2)
        self._mode = mode
        self._include_gpu = include_gpu
        self._extra = extra
        self._stop = threading.Event()
        self._thread: LoopTask | None = None
        self._task: asyncio.Task[None] | None = None
        self._own: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._failing = False
        self._arrived = False

    def start(self) -> None:
        """Begin; needs a running event loop."""
        if self._interval <= 0:
            return
        loop = asyncio.get_running_loop()
        name = f"{self._name}-heartbeat"
        if self._mode == "asyncio":
            self._task = loop.create_task(self._beat_in_task(), name=name)
        else:
            self._thread = LoopTask(name, lambda: self._beat_in_thread(loop))
            self._thread.start()

    async def register(self, prefix: str) -> None:
        """The first heartbeat of every worker, before it claims: from then on the store notices when it dies.

        Waits for a store that cannot be reached, as a claim would.
        """
        if self._interval <= 0:
            return
        for source in self._sources:
            try:
                await patiently(
                    lambda source=source: self._store.update_worker(
                        source.worker_id, {**system_snapshot(), **self._extra()}, incarnation=source.incarnation, attempts=[]
                    ),
                    prefix,
                )
            except Exception as error:  # such a store may still have work; the claim raises otherwise
                self._note_failure(str(error) or type(error).__name__, logging.WARNING)

    async def stop(self) -> None:
        """End; a heartbeat that is being sent is given one interval."""
        self._stop.set()
        if self._own is not None:
            loop, stopped = self._own
            try:
                loop.call_soon_threadsafe(stopped.set)
            except RuntimeError as error:
                _log.debug("The heartbeat had ended: %s", error)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        thread, self._thread = self._thread, None
        # Joined in small steps: sending a heartbeat may need this loop.
        deadline = asyncio.get_running_loop().time() + max(self._interval, 1.0)
        while thread is not None and not thread.done.is_set() and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.005)

    def _pause(self) -> float:
        return self._interval + random.uniform(-self._jitter, self._jitter)

    async def _beat(self) -> None:
        # nvidia-smi is another process and takes too long for an event loop.
        machine = await asyncio.to_thread(system_snapshot, True) if self._include_gpu else system_snapshot()
        snapshot = {**machine, **self._extra()}
        try:
            beats = (
                self._store.update_worker(one.worker_id, snapshot, incarnation=one.incarnation, attempts=list(one.running()))
                for one in self._sources
            )
            await asyncio.wait_for(asyncio.gather(*beats), max(self._interval, 1.0))
        except asyncio.TimeoutError:
            # Before the first answer the client itself logs that it waits for the store.
            self._note_failure("the store does not answer", logging.WARNING if self._arrived else logging.DEBUG)
        except Exception as error:
            self._note_failure(str(error) or type(error).__name__, logging.WARNING)
        else:
            self._arrived, self._failing = True, False

    def _note_failure(self, reason: str, level: int) -> None:
        """Log it, once until a heartbeat succeeds again."""
        if not self._failing and not self._stop.is_set():
            _log.log(level, "Heartbeat of %s failed: %s", self._name, reason)
        self._failing = True

    async def _beat_in_task(self) -> None:
        while not self._stop.is_set():
            await self._beat()
            await asyncio.sleep(self._pause())

    async def _beat_in_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        stopped = asyncio.Event()
        self._own = (asyncio.get_running_loop(), stopped)
        while not self._stop.is_set():
            beat = self._beat()
            if self._store.capabilities.get("thread_safe", False):
                await beat
            else:
                try:
                    asyncio.run_coroutine_threadsafe(beat, loop)
                except RuntimeError:  # the loop of the runner is closed
                    beat.close()
                    return
            try:
                await asyncio.wait_for(stopped.wait(), self._pause())
            except asyncio.TimeoutError:
                continue
