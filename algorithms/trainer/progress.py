"""What a person sees while a fit runs: one line that is kept up to date on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Collection
from typing import Any, TextIO

from ...core.errors import AgentLightningError
from ...core.loop_thread import LoopTask
from ...core.model.store_interface import LightningStore
from ...runners.pool.pickling import pickled_copy
from ..runs.recorder import run_store_of
from ..runs.recording_store import position_of

__all__ = ["Progress"]

_log = logging.getLogger(__name__)
LIVE_SECONDS = 0.5
PLAIN_SECONDS = 10.0
LOOK_SECONDS = 0.1
AGAIN_SECONDS = 1.0
JOIN_SECONDS = 2.0
WIDTH = 100
_TYPES = ["attempt.claimed", "rollout.completed"]


class Progress:
    """``with Progress(store, run_id, rollout_ids, workers):`` shows how far the rollouts of a run are.

    It follows the facts of the store, from a thread of its own: an algorithm may block its event loop. Nothing is shown
    for a store without facts.

    Args:
        rollout_ids: those of the run; it grows while the algorithm enqueues.
        workers: how many start with the run; 0 where they are elsewhere.
        output: where to; standard error when None.
    """

    def __init__(
        self,
        store: LightningStore,
        run_id: str,
        rollout_ids: Collection[str],
        workers: int,
        output: TextIO | None = None,
    ) -> None:
        self._store = store
        self._run_id = run_id
        self._ids = rollout_ids
        self._workers = workers
        self._output = output
        self._began = time.monotonic()
        self._shown_at = float("-inf")
        self._first_claim: float | None = None
        self._done: dict[str, str] = {}
        self._over = threading.Event()
        self._part = LoopTask("progress", self._run)

    def __enter__(self) -> Progress:
        if self._store.capabilities.get("subscribe", False):
            self._part.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._store.capabilities.get("subscribe", False):
            self._part.done.wait(JOIN_SECONDS)

    def line(self) -> str:
        """How far the run is."""
        seconds = time.monotonic() - self._began
        ids = frozenset(self._ids)
        ended = [status for rollout_id, status in self._done.items() if rollout_id in ids]
        text = f"{self._run_id}: {len(ended):,} of {len(ids):,} rollouts are over"
        failed = sum(status != "succeeded" for status in ended)
        if failed:
            text += f", {failed:,} did not succeed"
        if self._first_claim is None and self._workers:
            text += f"; {self._workers} worker{'s' * (self._workers != 1)} start{'s' * (self._workers == 1)}"
        return f"{text} ({seconds:.0f} s)"

    async def _run(self) -> None:
        from ...rest.client.client import LightningStoreClient

        away = isinstance(self._store, LightningStoreClient)
        store = pickled_copy(self._store) if away else self._store
        following = asyncio.ensure_future(self._follow(store))
        try:
            while not self._over.is_set():
                self._show()
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            following.cancel()
            await asyncio.wait({following})
            self._clear()
            if away:
                closing: Any = store
                await closing.close()

    async def _follow(self, store: LightningStore) -> None:
        since = position_of(run_store_of(self._store)) - 1  # what happened before the subscription begins counts too
        while True:
            try:
                async for fact in store.subscribe(_TYPES, since=since if since >= 0 else None):
                    since = fact.position
                    if fact.type == "rollout.completed" and fact.rollout_id is not None:
                        self._done[fact.rollout_id] = str(fact.data.get("status", ""))
                    elif self._first_claim is None and fact.rollout_id in self._ids:
                        self._first_claim = time.monotonic() - self._began
                        _log.info("%s: the first rollout began after %.1f s.", self._run_id, self._first_claim)
            except AgentLightningError as error:
                _log.debug("The store tells no facts for now: %s", error)
            await asyncio.sleep(AGAIN_SECONDS)

    def _show(self) -> None:
        output = self._output or sys.stderr
        live = output.isatty()
        now = time.monotonic()
        if not live and self._shown_at < 0:
            self._shown_at = self._began  # a fit that is over soon needs no line
        if now - self._shown_at < (LIVE_SECONDS if live else PLAIN_SECONDS):
            return
        self._shown_at = now
        self._write(f"\x1b[2K{self.line()[: _width(output)]}\r" if live else f"{self.line()}\n")

    def _clear(self) -> None:
        if self._shown_at > self._began and (self._output or sys.stderr).isatty():
            self._write("\x1b[2K")

    def _write(self, text: str) -> None:
        output = self._output or sys.stderr
        try:
            output.write(text)
            output.flush()
        except (OSError, ValueError) as error:
            _log.debug("The progress cannot be shown: %s", error)
            self._over.set()


def _width(output: TextIO) -> int:
    """How much of a line a terminal shows without wrapping it: what is wrapped cannot be overwritten."""
    try:
        columns = os.get_terminal_size(output.fileno()).columns
    except (OSError, ValueError):  # no real terminal
        columns = 0
    return min(WIDTH, columns - 1) if columns > 1 else WIDTH
