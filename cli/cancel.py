"""`agl cancel`: the rollouts of a run that are not over are cancelled, so that no runner executes them any more."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import click

from ..core.errors import LogLocked
from .finding_runs import located
from .reading import address_of, log_option
from .terminal import counted, echo_json, examples, json_option, printable


@click.command(epilog=examples("agl cancel run-1f3c", "agl cancel capitals --store http://127.0.0.1:4747 --json"))
@click.argument("name", metavar="RUN")
@log_option(None)
@json_option
def cancel(name: str, url: str | None, token: str | None, as_json: bool) -> None:
    """Cancel every rollout of RUN that is not over: those that wait in the queue, and those that runners work on.

    RUN is the id of a run, the beginning of it, or its name. The run itself stays in the log with all its results. The
    store has to be reachable for writing: give its http:// address where a process serves the file.
    """
    with located(name, url, token, ("run",)) as found:
        address, run_id = address_of(found.url), found.id
    done = asyncio.run(_cancel(run_id, address, token))
    if as_json:
        echo_json({"event": "cancelled", **done})
        return
    ids = done["rollout_ids"]
    what = f"{counted(len(ids), 'rollout')} cancelled." if ids else "nothing was open."
    click.echo(f"{printable(done['run_id'])}: {what}")


async def _cancel(run_id: str, address: str, token: str | None) -> dict[str, Any]:
    from ..projections.store.runs import cancel_run
    from ..rest.open_store import open_store

    try:
        store: Any = await asyncio.to_thread(open_store, address, token=token, environment=os.environ)
    except LogLocked as locked:
        if locked.address is None:
            raise
        store = open_store(locked.address, token=token)
    try:
        return await cancel_run(store, run_id)
    finally:
        closed = store.close()
        if closed is not None:
            await closed
