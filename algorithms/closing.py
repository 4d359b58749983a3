"""Noticing the end of a run from afar: runners on other machines stop when it is closed."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import Any

from ..core.contract import LightningStore
from ..core.errors import NotFound
from ..runners.patience import patiently
from .execution import LOOK_SECONDS, ExecutionEvent

__all__ = ["until_run_closes"]

_log = logging.getLogger(__name__)
POLL_SECONDS = 1.0


async def until_run_closes(store: LightningStore, event: ExecutionEvent, looked: ExecutionEvent) -> None:
    """Return when the run that is open, or else the next one that opens, is closed; or when ``event`` is set.

    ``looked`` is set when it is known which run is open: whoever works from then on works for a run whose end will be
    noticed. A store that keeps no runs never closes one.
    """
    query: Any = getattr(store, "query_runs", None)
    if query is None:
        looked.set()
        await _pause(event, None)
        return
    known: set[str] | None = None
    watched: str | None = None
    while not event.is_set():
        if watched is None:
            runs = await patiently(partial(query, brief=True), "The end of the run")
            opened = [run["run_id"] for run in runs if run["closed_at"] is None]
            # A run that was opened and closed between two looks was the one to wait for.
            passed = known is not None and any(
                run["run_id"] not in known and run["closed_at"] is not None for run in runs
            )
            known = known if known is not None else {run["run_id"] for run in runs}
            looked.set()
            if opened:
                watched = opened[-1]
            elif passed:
                return
        else:
            try:
                [run] = await patiently(partial(query, watched, brief=True), "The end of the run")
            except NotFound:  # the store was begun anew
                watched, known = None, None
                continue
            if run["closed_at"] is not None:
                return
        await _pause(event, POLL_SECONDS)


async def _pause(event: ExecutionEvent, seconds: float | None) -> None:
    end = None if seconds is None else time.monotonic() + seconds
    while not event.is_set() and (end is None or time.monotonic() < end):
        await asyncio.sleep(LOOK_SECONDS if end is not None else 0.5)
