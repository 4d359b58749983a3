"""Noticing the end of a run from afar: runners on other machines stop when it is closed."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any, cast

from ...core.errors import NotFound
from ...core.events.run_events import LOST
from ...core.model.store_interface import LightningStore
from ...core.retry import patiently
from ...runners.stop_events import ExecutionEvent, until_set

__all__ = ["open_run", "until_run_closes"]

_log = logging.getLogger(__name__)
POLL_SECONDS = 1.0
NEXT_SECONDS = 15.0
"""How long after a run was lost its program may take to be started again, before its runners stop."""


async def open_run(store: LightningStore, event: ExecutionEvent) -> str | None:
    """The newest run that is open, or else the next one that opens; None once ``event`` is set, or for a store without runs.

    A run that has runners of its own is none to work for.
    """
    query: Any = getattr(store, "query_runs", None)
    known: set[str] | None = None
    explained = False
    while query is not None and not event.is_set():
        found = await patiently(partial(query, brief=True), "The run")
        runs = _for_others(found)
        taken = [run["run_id"] for run in found if run["closed_at"] is None and run not in runs]
        if taken and not explained:
            explained = True
            _log.warning("Run %s has runners of its own, and no others get its rollouts; waiting for another run.", taken[-1])
        opened = [run["run_id"] for run in runs if run["closed_at"] is None]
        # A run that was opened and closed between two looks was the one to wait for.
        passed = [] if known is None else [run["run_id"] for run in runs if run["run_id"] not in known]
        if opened or passed:
            return (opened or passed)[-1]
        known = {run["run_id"] for run in runs}
        await until_set(event, POLL_SECONDS)
    return None


async def until_run_closes(store: LightningStore, run_id: str, event: ExecutionEvent) -> bool:
    """Return when the run is closed, or when ``event`` is set; whether there is another run to go on with.

    That is so where the run was lost, or is gone with its store, and its program was started again.
    """
    query: Any = cast(Any, store).query_runs
    lost_at: float | None = None
    while not event.is_set():
        try:
            [run] = await patiently(partial(query, run_id, brief=True), "The end of the run")
        except NotFound:  # the store was begun anew
            return True
        if run["closed_at"] is not None and run["outcome"] != LOST:
            return False
        if run["closed_at"] is not None:
            runs = _for_others(await patiently(partial(query, brief=True), "The end of the run"))
            later = [one for one in runs if one["opened_at"] > run["opened_at"]]
            lost_at = time.monotonic() if lost_at is None else lost_at
            if later or time.monotonic() - lost_at > NEXT_SECONDS:
                return any(one["closed_at"] is None for one in later)
        await until_set(event, POLL_SECONDS)
    return False


def _for_others(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without those that have runners of their own, which older stores do not know."""
    return [run for run in runs if not run.get("own_runners")]
