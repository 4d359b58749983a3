"""Heartbeats: a runner says every few seconds that it lives, and what it runs, whatever its agent does."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from ...core.errors import InvalidInput
from ...core.model.store_interface import LightningStore
from ...core.retry import patiently
from .system_snapshot import system_snapshot

__all__ = ["Heartbeat", "Life"]

_log = logging.getLogger(__name__)


class Life(NamedTuple):
    """Whose heartbeat it is; ``running`` gives (rollout_id, attempt_id) of what the worker runs at that moment."""

    worker_id: str
    incarnation: str
    running: Callable[[], Sequence[tuple[str, str]]]


class Heartbeat:
    """Calls ``store.update_worker`` for each life at once and then every ``interval`` seconds, until stopped.

    In mode ``thread`` a daemon thread keeps the rhythm, so an agent that blocks the event loop
    does not silence its runner. It calls a thread-safe store from an event loop of its own, any
    other on the loop on which :meth:`start` was called. Mode ``asyncio`` is a task of that loop.

    Args:
        lives: the workers of this process, at least one.
        interval: seconds; 0 or less sends nothing.
        extra: what a beat says beside the state of the machine.
        jitter: seconds by which a pause is made longer or shorter at random, at most half the interval.
    """

    def __init__(
        self,
        store: LightningStore,
        lives: Sequence[Life],
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
        self._lives = tuple(lives)
        self._name = self._lives[0].worker_id
        self._interval = interval
        self._jitter = min(jitter, interval / 2)
        self._mode = mode
        self._include_gpu = include_gpu
        self._extra = extra
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
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
            self._thread = threading.Thread(target=self._beat_in_thread, args=(loop,), name=name, daemon=True)
            self._thread.start()

    async def introduce(self, prefix: str) -> None:
        """The first beat of every life, before it takes any work: whoever dies from then on is missed by the store.

        Waits for a store that is away, as a claim would.
        """
        if self._interval <= 0:
            return
        for life in self._lives:
            try:
                await patiently(
                    lambda life=life: self._store.update_worker(
                        life.worker_id, {**system_snapshot(), **self._extra()}, incarnation=life.incarnation, attempts=[]
                    ),
                    prefix,
                )
            except Exception as error:  # a store that takes no heartbeats may still give work, else the claim says why not
                self._note_failure(str(error) or type(error).__name__, logging.WARNING)

    async def stop(self) -> None:
        """End; a beat on its way is given one interval to arrive."""
        self._stop.set()
        if self._own is not None and self._thread is not None and self._thread.is_alive():
            loop, stopped = self._own
            try:
                loop.call_soon_threadsafe(stopped.set)
            except RuntimeError as error:
                _log.debug("The heartbeat had ended: %s", error)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        thread, self._thread = self._thread, None
        # Joined in small steps: a beat may need this loop to arrive.
        deadline = asyncio.get_running_loop().time() + max(self._interval, 1.0)
        while thread is not None and thread.is_alive() and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.005)

    def _pause(self) -> float:
        return self._interval + random.uniform(-self._jitter, self._jitter)

    async def _beat(self) -> None:
        # The graphics cards are asked in another process, which takes too long for an event loop.
        machine = await asyncio.to_thread(system_snapshot, True) if self._include_gpu else system_snapshot()
        snapshot = {**machine, **self._extra()}
        try:
            beats = (
                self._store.update_worker(life.worker_id, snapshot, incarnation=life.incarnation, attempts=list(life.running()))
                for life in self._lives
            )
            await asyncio.wait_for(asyncio.gather(*beats), max(self._interval, 1.0))
        except asyncio.TimeoutError:
            # A store that never answered is not there yet: its client says in one line that it waits for it.
            self._note_failure("the store does not answer", logging.WARNING if self._arrived else logging.DEBUG)
        except Exception as error:
            self._note_failure(str(error) or type(error).__name__, logging.WARNING)
        else:
            self._arrived, self._failing = True, False

    def _note_failure(self, reason: str, level: int) -> None:
        """Say it, once until a beat arrives again."""
        if not self._failing and not self._stop.is_set():
            _log.log(level, "Heartbeat of %s failed: %s", self._name, reason)
        self._failing = True

    async def _beat_in_task(self) -> None:
        while not self._stop.is_set():
            await self._beat()
            await asyncio.sleep(self._pause())

    def _beat_in_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._store.capabilities.get("thread_safe", False):
            asyncio.run(self._beat_on_own_loop())
            return
        while not self._stop.is_set():
            beat = self._beat()
            try:
                asyncio.run_coroutine_threadsafe(beat, loop)
            except RuntimeError:
                beat.close()
                return
            self._stop.wait(self._pause())

    async def _beat_on_own_loop(self) -> None:
        stopped = asyncio.Event()
        self._own = (asyncio.get_running_loop(), stopped)
        while not self._stop.is_set():
            await self._beat()
            try:
                await asyncio.wait_for(stopped.wait(), self._pause())
            except asyncio.TimeoutError:
                continue
