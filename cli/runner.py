"""`agl runner`: executes an agent on the rollouts of a store, in one process or several that are replaced when they die."""

from __future__ import annotations

import asyncio
import os

import click

from ..algorithms.execution.runner_processes import RunnerOptions, run_runner, run_runner_processes
from ..core.errors import AgentLightningError, InvalidInput
from ..core.log.open_log import shown
from ..core.logging_setup import setup_logging
from ..runners.agent.loading import load_agent
from ..runners.stop_events import InterruptHandler, ThreadingEvent
from .log_source import refuse_bare_port
from .terminal import announce, echo_json, examples, json_option, log_level_option

DEFAULT_STORE = "http://127.0.0.1:4747"
TOKEN_VARIABLE = "AGL_TOKEN"


@click.command(
    epilog=examples("agl runner app.py:agent -n 4", "agl runner app:agent --store kafka://localhost:9092/dev --slots 8")
)
@click.argument("agent", metavar="MODULE:AGENT")
@click.option("--store", "--log", "url", default=DEFAULT_STORE, show_default=True, metavar="URL",
              help="http://, kafka:// or a file.")  # fmt: skip
@click.option("-n", "--n", "processes", type=click.IntRange(1, 1024), default=1, show_default=True, help="Processes.")
@click.option("--slots", type=click.IntRange(1, 1024), default=1, show_default=True, help="Rollouts at a time, each process.")
@click.option("--group", default="runners", show_default=True, help="Consumer group that shares the work (kafka:// only).")
@click.option("--max-rollouts", type=click.IntRange(min=0), help="End each process after so many rollouts.")
@click.option("--token", envvar=TOKEN_VARIABLE, metavar="TOKEN", help="The store's token; also read from AGL_TOKEN.")
@click.option("--worker-id", type=click.IntRange(min=0), help="Number of the first worker; host and process id if left out.")
@log_level_option
@json_option
def runner(
    agent: str,
    url: str,
    processes: int,
    slots: int,
    group: str,
    max_rollouts: int | None,
    token: str | None,
    worker_id: int | None,
    log_level: str,
    as_json: bool,
) -> int:
    """Run an agent on the rollouts of a store, and wait for the store where it is not there yet.

    MODULE:AGENT names a LitAgent, an @rollout function or a plain function: package.module:name or path/to/file.py:name.
    The store is one that serves (http://host:port), a log on Kafka (kafka://host:port/prefix), which any number of
    runners share, or a file that no other process has open (sqlite:///path).
    The first Ctrl+C ends after the rollouts that run; a second one ends at once, and the store gives them to others.
    """
    setup_logging(log_level)
    _check_store(url, processes)
    options = RunnerOptions(url, token, worker_id, max_rollouts, slots, group, dict(os.environ))
    loaded = load_agent(agent)  # here also for several processes: a wrong name is one sentence, not one of every process
    stop = ThreadingEvent()
    with InterruptHandler(stop.set) as interrupts:
        done = 0
        if processes == 1:
            asyncio.run(run_runner(loaded, options, stop, _announce_stopping))
        else:
            try:
                asyncio.run(run_runner_processes(agent, options, processes, stop, _announce_stopping))
            except AgentLightningError as error:
                announce(f"agl: {error.message}")
                done = 1
    done = done or interrupts.exit_code
    if as_json:
        echo_json({"event": "stopped", "exit_code": done})
    return done


def _check_store(url: str, processes: int) -> None:
    """Refuse addresses that so many processes cannot share."""
    refuse_bare_port(url)
    if not url.startswith(("http://", "https://", "kafka://", "sqlite:///")):
        raise InvalidInput(
            f"{shown(url)!r} is not the store of a runner; it looks like http://host:port, kafka://host:9092/prefix or "
            "sqlite:///path"
        )
    if processes > 1 and url.startswith("sqlite:"):
        raise InvalidInput("one process writes a file: use --slots instead of -n, or `agl store` and its http:// address")


def _announce_stopping(busy: bool) -> None:
    announce("Stopping after the rollouts that run; press Ctrl+C again to end at once." if busy else "Stopping.")
