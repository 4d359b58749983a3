"""`agl subscribe`: delivers the facts of a store to a Python function, in a process of its own that may die at any time."""

from __future__ import annotations

import asyncio
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..core.errors import InvalidInput
from ..core.log.open_log import shown
from ..core.logging_setup import setup_logging
from ..runners.stop_events import InterruptHandler, ThreadingEvent, until_set
from .log_source import refuse_bare_port
from .terminal import announce, echo_json, examples, json_option, log_level_option

DEFAULT_STORE = "http://127.0.0.1:4747"
DEFAULT_STATE = "./.agl/subscribers"
TAKEN_GROUPS = frozenset({"runners", "timekeeper"})
_GROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}").fullmatch


@dataclass(frozen=True)
class Options:
    """What the loops need to know: see the command's options of these names."""

    spec: str
    url: str
    group: str
    retries: int
    backoff_seconds: float
    state: Path
    token: str | None
    as_json: bool
    run: str | None = None


@click.command(
    epilog=examples("agl subscribe app.py:curate", "agl subscribe app:curate --store kafka://localhost:9092/dev --group two")
)
@click.argument("spec", metavar="MODULE:FUNCTION")
@click.option("--store", "--log", "url", default=DEFAULT_STORE, show_default=True, metavar="URL",
              help="The store, or its Kafka.")  # fmt: skip
@click.option("--group", metavar="GROUP", help="Under this name the position is kept; the function's name if left out.")
@click.option("--retries", type=click.IntRange(min=0), default=5, show_default=True, help="Further tries of a fact.")
@click.option("--backoff-seconds", type=click.FloatRange(min=0.01), default=0.5, show_default=True,
              help="Pause before the second try; it doubles with each, up to 30.")  # fmt: skip
@click.option("--state", type=click.Path(file_okay=False, path_type=Path), default=DEFAULT_STATE, show_default=True,
              help="Where positions are kept; on a Kafka the group keeps them.")  # fmt: skip
@click.option("--token", envvar="AGL_TOKEN", metavar="TOKEN", help="The store's token; also read from AGL_TOKEN.")
@click.option("--run", metavar="NAME", help="Record what the function enqueues and publishes as this run, for `agl replay`.")
@log_level_option
@json_option
def subscribe(
    spec: str,
    url: str,
    group: str | None,
    retries: int,
    backoff_seconds: float,
    state: Path,
    token: str | None,
    run: str | None,
    log_level: str,
    as_json: bool,
) -> int:
    """Hand facts to a function marked with @agl.subscriber, from the start of the log or where its group stopped.

    Each fact is delivered at least once, in order for each rollout. What the function never takes lies in `dead` with the
    reason (`agl dead ls`), and the next one follows. With kafka:// any number of processes share a group; a store at http://
    or in a file (sqlite:///) gives a group one process. Ctrl+C ends after the fact that is being handled.
    """
    setup_logging(log_level)
    from ..algorithms.subscribers.decorator import load_subscriber

    refuse_bare_port(url)
    if not url.startswith(("http://", "https://", "kafka://", "sqlite:///")):
        raise InvalidInput(
            f"{shown(url)!r} is no store to subscribe to; it looks like http://host:4747 or kafka://host:9092/prefix"
        )
    name = group if group is not None else _name_of(spec)
    if not _GROUP(name) or name in TAKEN_GROUPS:
        raise InvalidInput(f"{name!r} cannot name a group of subscribers; letters, digits, dots and dashes do, but not runners")
    found = load_subscriber(spec)
    options = Options(spec, url, name, retries, backoff_seconds, state, token, as_json, run)
    stop = ThreadingEvent()
    with InterruptHandler(stop.set) as interrupts:
        asyncio.run(_run(found, options, stop))
    if as_json:
        echo_json({"event": "stopped", "exit_code": interrupts.exit_code})
    return interrupts.exit_code


def _name_of(spec: str) -> str:
    """`package.module:function` as it is, a file by its name."""
    where, _, function = spec.rpartition(":")
    module = Path(where).stem if where.endswith(".py") else where
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{module}.{function}").strip("-.") or "subscriber"


async def _run(subscriber: Any, options: Options, stop: ThreadingEvent) -> None:
    """Until ``stop`` is set."""
    work = asyncio.ensure_future((_on_kafka if options.url.startswith("kafka://") else _on_store)(subscriber, options, stop))
    stopped = asyncio.ensure_future(until_set(stop))
    try:
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set() and not work.done():
            announce("Stopping after the fact that is being handled; press Ctrl+C again to end at once.")
        await work
    finally:
        stopped.cancel()


def _delivery(subscriber: Any, options: Options, stop: ThreadingEvent, add_dead_letter: Any, store: Any) -> Any:
    from ..algorithms.subscribers.delivery import Delivered, Delivery

    def on_delivered(delivered: Delivered) -> None:
        if options.as_json:
            event = "given_up" if delivered.error else "handled"
            more = {"reason": delivered.error} if delivered.error else {}
            fact = delivered.fact.model_dump(mode="json")
            echo_json({"event": event, "fact": fact, "tries": delivered.tries, "seconds": delivered.seconds, **more})

    return Delivery(
        subscriber,
        name=options.spec,
        group=options.group,
        stop=stop,
        add_dead_letter=add_dead_letter,
        store=store,
        retries=options.retries,
        backoff_seconds=options.backoff_seconds,
        on_delivered=on_delivered,
    )


async def _on_store(subscriber: Any, options: Options, stop: ThreadingEvent) -> None:
    from ..algorithms.subscribers.consumers import Cursor, follow_store
    from ..rest.client.client import LightningStoreClient
    from ..rest.open_store import open_store

    cursor = Cursor(options.state, options.group)
    try:
        if options.url.startswith("sqlite:"):
            store: Any = await asyncio.to_thread(open_store, options.url)
        else:
            store = LightningStoreClient(options.url, token=options.token, patience_seconds=math.inf)
        mine = await _recorded(store, options, cursor)
        delivery = _delivery(subscriber, options, stop, store.add_dead_letter, mine)
        following = asyncio.ensure_future(follow_store(store, delivery, cursor))
        try:
            await _ended(following, delivery, stop)
        finally:
            closed = store.close()
            if closed is not None:
                await closed
    finally:
        cursor.close()


async def _recorded(store: Any, options: Options, cursor: Any = None) -> Any:
    """The store for the function: one that records, where a run was named. A second start goes on with the same run."""
    if options.run is None:
        return store
    from ..algorithms.runs.recorder import RunStart, recorder_for
    from ..core.fold.commands import run_id_of

    since = -1
    if cursor is not None:
        await store.statistics()  # an HTTP client knows the position after the first answer
        since = await asyncio.to_thread(cursor.open, str(store.position()).partition(":")[0])
    recorder = recorder_for(store)
    start = RunStart(options.run, options.spec, parameters={"group": options.group, "since": since})
    return recorder.bind(await recorder.opened(start, run_id_of(f"subscriber/{options.run}")))


async def _on_kafka(subscriber: Any, options: Options, stop: ThreadingEvent) -> None:
    from ..algorithms.subscribers.consumers import GroupFollower
    from ..core.log.dead_letter import DeadLetter
    from ..core.log.open_log import open_log
    from ..projections.store.dead_letters import write_letter
    from ..rest.open_store import open_store

    log = await asyncio.to_thread(open_log, options.url, environment=os.environ)
    store: Any = None
    try:
        if subscriber.wants_store:  # a folding node of its own, for nothing where the function needs none
            store = await asyncio.to_thread(open_store, options.url, environment=os.environ)

        async def add_dead_letter(letter: DeadLetter) -> None:
            await write_letter(log, letter)

        mine = await _recorded(store, options) if store is not None else None
        delivery = _delivery(subscriber, options, stop, add_dead_letter, mine)
        await GroupFollower(log, delivery, f"{options.group}-{os.getpid()}").run()
    finally:
        if store is not None:
            await asyncio.to_thread(store.close)
        await asyncio.to_thread(log.close)


async def _ended(work: asyncio.Future[None], delivery: Any, stop: ThreadingEvent) -> None:
    """Wait for the loop. One that was asked to end and only waits for a store that does not answer is cancelled."""
    stopped = asyncio.ensure_future(until_set(stop))
    try:
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        while not work.done():
            await asyncio.wait({work}, timeout=2.0)
            if not work.done() and not delivery.busy:
                work.cancel()
                await asyncio.wait({work})
                return
        work.result()
    finally:
        stopped.cancel()
