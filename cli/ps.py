"""`agl ps`: the runs of a log or a store: what was fitted, how far it is, and what it reached."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping

import click

from ..core.log.open_log import shown
from ..core.model.status import FINISHED
from .finding_runs import RunSummary, runs_at
from .reading import log_option, logs_here
from .terminal import duration, echo_json, examples, json_option, printable, short, status, table, when

NAME_WIDTH = 40


@click.command(epilog=examples("agl ps", "agl ps --log runs.db --json", "agl ps --log http://127.0.0.1:4747"))
@log_option(default=None)
@json_option
def ps(url: str | None, token: str | None, as_json: bool) -> None:
    """Every run, the oldest first: its id, name, algorithm, state, rollouts, mean reward, and when it began.

    The mean is over finished rollouts that have a reward; n is the number of rollouts, 4/6 while only 4 are finished. A log is
    read while a store writes it. With --json one list.
    """
    urls = logs_here(url)
    found = [one for each in urls for one in runs_at(each, token)]
    if as_json:
        echo_json([one.summary() for one in found])
        return
    if not found:
        click.echo(f"No runs in {', '.join(shown(one) for one in urls)}")
        return
    heads = ["run", "name", "algorithm", "state", "n", "reward", "began", "took"]
    rows = [_row(one) for one in found]
    if len(urls) > 1:
        heads.append("log")
        rows = [[*row, printable(shown(one.url))] for row, one in zip(rows, found)]
    click.echo("\n".join(table(rows, heads)))


def _row(found: RunSummary) -> list[str]:
    run = found.run
    ended = run.closed_time if run.closed_time is not None else time.time()
    reward = found.mean_reward
    missing = f" ({found.missing_rewards} without)" if found.missing_rewards else ""
    return [
        printable(run.run_id),
        short(run.name, NAME_WIDTH) or "-",
        short(run.algorithm, NAME_WIDTH) or "-",
        status(printable(found.state)),
        _count(found.statuses),
        "-" if reward is None else f"{reward:.3f}" + missing,
        _began(run.opened_time),
        duration(max(ended - run.opened_time, 0.0)),
    ]


def _count(statuses: Mapping[str, str]) -> str:
    """`6`, `4/6` while some are not finished, `6, 2 failed`."""
    over = sum(word in FINISHED for word in statuses.values())
    failed = sum(word == "failed" for word in statuses.values())
    counts = f"{over:,}" if over == len(statuses) else f"{over:,}/{len(statuses):,}"
    return counts + (f", {failed:,} failed" if failed else "")


def _began(seconds: float) -> str:
    """Date and time to the minute; without the year where it is this year."""
    text = when(seconds)[:16]
    return text.removeprefix(f"{datetime.date.today().year}-")
