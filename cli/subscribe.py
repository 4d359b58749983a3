"""`agl subscribe`: delivers the facts of a store to a Python function, in a process of its own that may die at any time."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..algorithms.subscribers.consumers import SubscriberOptions, run_subscriber
from ..algorithms.subscribers.decorator import load_subscriber
from ..algorithms.subscribers.delivery import Delivered
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
    refuse_bare_port(url)
    if not url.startswith(("http://", "https://", "kafka://", "sqlite:///")):
        raise InvalidInput(
            f"{shown(url)!r} is no store to subscribe to; it looks like http://host:4747 or kafka://host:9092/prefix"
        )
    name = group if group is not None else _name_of(spec)
    if not _GROUP(name) or name in TAKEN_GROUPS:
        raise InvalidInput(f"{name!r} cannot name a group of subscribers; letters, digits, dots and dashes do, but not runners")
    found = load_subscriber(spec)
    options = SubscriberOptions(spec, url, name, retries, backoff_seconds, state, token, run, os.environ)
    stop = ThreadingEvent()
    with InterruptHandler(stop.set) as interrupts:
        asyncio.run(_run(found, options, stop, _echo_delivered if as_json else None))
    if as_json:
        echo_json({"event": "stopped", "exit_code": interrupts.exit_code})
    return interrupts.exit_code


def _name_of(spec: str) -> str:
    """`package.module:function` as it is, a file by its name."""
    where, _, function = spec.rpartition(":")
    module = Path(where).stem if where.endswith(".py") else where
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{module}.{function}").strip("-.") or "subscriber"


async def _run(
    subscriber: Any, options: SubscriberOptions, stop: ThreadingEvent, on_delivered: Callable[[Delivered], None] | None
) -> None:
    """Until ``stop`` is set."""
    work = asyncio.ensure_future(run_subscriber(subscriber, options, stop, on_delivered))
    stopped = asyncio.ensure_future(until_set(stop))
    try:
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set() and not work.done():
            announce("Stopping after the fact that is being handled; press Ctrl+C again to end at once.")
        await work
    finally:
        stopped.cancel()


def _echo_delivered(delivered: Delivered) -> None:
    event = "given_up" if delivered.error else "handled"
    more = {"reason": delivered.error} if delivered.error else {}
    fact = delivered.fact.model_dump(mode="json")
    echo_json({"event": event, "fact": fact, "tries": delivered.tries, "seconds": delivered.seconds, **more})
