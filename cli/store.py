"""`agl store`: opens the log, serves the store over HTTP, and reports at its start what it opened."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..core.errors import AgentLightningError, InvalidInput
from ..core.log.open_log import shown
from ..core.logging_setup import setup_logging
from ..runners.stop_events import InterruptHandler, ThreadingEvent, until_set
from .log_source import DEFAULT_LOG, address_of
from .terminal import by_status, counted, duration, echo_json, examples, json_option, log_level_option

if TYPE_CHECKING:
    from ..rest.server.server import LightningStoreServer

logger = logging.getLogger(__name__)


class CannotServe(AgentLightningError):
    """The server could not begin: the port is taken, the address is not of this machine."""

    code = "cannot_serve"


@click.command(
    epilog=examples("agl store", "agl store --log runs.db --port 8000", "agl store --log kafka://localhost:9092/dev --init")
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind; others than loopback need a token.")
@click.option("--port", type=click.IntRange(0, 65535), default=4747, show_default=True, help="0 takes a free one.")
@click.option("--log", "--store", "url", default=DEFAULT_LOG, show_default=True, metavar="URL",
              help="The event log: a file, made if missing, or kafka://host:9092/prefix.")  # fmt: skip
@click.option("--init", is_flag=True, help="Make the topics of a log on Kafka that are missing, as `agl kafka init` does.")
@click.option("--token", envvar="AGL_TOKEN", metavar="TOKEN", help="Ask every caller for it; also read from AGL_TOKEN.")
@click.option("--cors-origin", "origins", multiple=True, metavar="ORIGIN", help="Let pages of this origin call; repeatable.")
@click.option("--allow-host", "allowed", multiple=True, metavar="NAME",
              help="Answer under this host name too, as a proxy passes it on; repeatable.")  # fmt: skip
@log_level_option
@click.option("--worker-lost-seconds", type=click.FloatRange(min=0, min_open=True), default=10.0, show_default=True,
              help="A worker that sent heartbeats and is silent for so long is lost.")  # fmt: skip
@click.option("--max-payload-mb", type=click.FloatRange(min=0, min_open=True), default=64.0, show_default=True,
              help="Larger inputs, resources and spans are refused.")  # fmt: skip
@json_option
def store(
    host: str,
    port: int,
    url: str,
    init: bool,
    token: str | None,
    origins: tuple[str, ...],
    allowed: tuple[str, ...],
    log_level: str,
    worker_lost_seconds: float,
    max_payload_mb: float,
    as_json: bool,
) -> int:
    """Serve the store over HTTP. Everything in it is kept in the log and is there at the next start.

    Ctrl+C or SIGTERM answers what is under way and closes the log. Exit code 5: the log is not the one that was folded
    any more (a broker lost records, a file was replaced); start again, and it is folded anew.
    """
    # Only now: the help of this command and wrong options need no server.
    from ..projections.replica.settings import StoreSettings
    from ..rest.open_store import open_store
    from ..rest.server.access_policy import AccessPolicy
    from ..rest.server.invoke import ACCESS_LOGGER
    from ..rest.server.server import LightningStoreServer, PythonServerLauncherArgs
    from ..rest.server.uvicorn_runner import check_bind, check_port

    began = time.perf_counter()
    setup_logging(log_level)
    if click.get_current_context().get_parameter_source("log_level") is ParameterSource.COMMANDLINE and log_level == "INFO":
        logging.getLogger(ACCESS_LOGGER).setLevel(logging.DEBUG)  # who asks for INFO wants to see the calls
    check_bind(host, token or None)
    AccessPolicy(host, allowed, origins)  # a wrong name is refused before a file is made
    url = address_of(url)
    if url.startswith(("http://", "https://")):
        raise InvalidInput(f"{shown(url)} is the address of a store; a store is served on a log such as {DEFAULT_LOG}")
    try:
        check_port(host, port)
    except RuntimeError as error:
        raise CannotServe(f"{error}; choose another with --port, 0 takes a free one") from None
    if init and url.startswith("kafka://"):
        from .kafka import make_topics

        make_topics(url)
    settings = StoreSettings(worker_lost_seconds=worker_lost_seconds, max_payload_mb=max_payload_mb)
    opened: Any = open_store(url, settings=settings, environment=os.environ)
    server = LightningStoreServer(
        opened,
        launcher_args=PythonServerLauncherArgs(port=port, host=host, launch_mode="asyncio"),
        cors_allow_origins=origins,
        allow_hosts=allowed,
        token=token or None,
        max_payload_mb=max_payload_mb,
    )
    stop = ThreadingEvent()
    try:
        with InterruptHandler(stop.set) as interrupts:
            asyncio.run(_serve(opened, server, began, as_json, stop))
        return interrupts.exit_code
    finally:
        opened.close()


async def _serve(opened: Any, server: LightningStoreServer, began: float, as_json: bool, stop: ThreadingEvent) -> None:
    """Serve until ``stop`` is set."""
    ended: list[Exception] = []

    def end(error: Exception) -> None:
        ended.append(error)
        stop.set()

    opened.on_end(end)
    try:
        await server.start()
    except RuntimeError as error:
        raise CannotServe(str(error)) from None
    # Another process that opens the file gets this address in its error; a log in memory has no file.
    set_address: Callable[[str], None] | None = getattr(opened.engine.log, "set_address", None)
    if set_address is not None:
        set_address(server.endpoint)
    # What is loaded by now stays: a full collection walked all of it, and every call waited for that. And the calls of a
    # moment make more objects than the usual limit, which began a collection with each batch and found no garbage.
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
    _report_start(opened.report(), server.endpoint, time.perf_counter() - began, as_json)
    await until_set(stop)
    await server.stop()
    if ended:
        await opened.end()
        raise ended[0]
    position, fingerprint = opened.fingerprint()
    # Here, since the end of this event loop waits for its threads, and they may wait for the log.
    await opened.end()
    if as_json:
        echo_json({"event": "stopped", "position": position, "fingerprint": fingerprint})
    else:
        logger.info("Stopped at position %d, fingerprint %s", position, fingerprint)


YOUNG_OBJECTS = 10_000
"""New objects at which the garbage collector looks for cycles; the usual 700 are the objects of 30 calls under way."""


def _report_start(report: dict[str, Any], endpoint: str, seconds: float, as_json: bool) -> None:
    if as_json:
        echo_json({"event": "serving", "endpoint": endpoint, "seconds_to_serve": seconds, **report})
        return
    total = sum(report["rollouts"].values())
    states = f" ({by_status(report['rollouts'])})" if total else ""
    logger.info("Opened %s: %s, %s%s", report["url"], counted(report["events"], "event"), counted(total, "rollout"), states)
    if logger.isEnabledFor(logging.INFO):
        logger.info("Serving %s after %s", endpoint, duration(seconds))
    else:
        click.echo(f"Serving {endpoint}", err=True)
