"""`agl ps`: the runs of a log or a store: what was fitted, how far it is, and what it reached."""

from __future__ import annotations

import time

import click

from .finding_runs import Found, runs_at
from .reading import logs_here
from .terminal import by_status, duration, echo_json, json_option, printable, short, status, table, when

NAME_WIDTH = 40


@click.command()
@click.option(
    "--log", "--store", "url", metavar="URL", help="The log, or a store at http://; all logs in ./.agl/ if left out."
)
@click.option("--token", envvar="AGL_TOKEN", metavar="TOKEN", help="The store's token; also AGL_TOKEN.")
@json_option
def ps(url: str | None, token: str | None, as_json: bool) -> None:
    """Every run, the oldest first: its id, name, algorithm, state, rollouts, mean reward, and when it began.

    The mean is over finished rollouts that have a reward. A log is read while a store writes it; a run that was killed
    stays open.
    """
    urls = logs_here(url)
    found = [one for each in urls for one in runs_at(each, token)]
    if as_json:
        for one in found:
            echo_json(one.summary())
        return
    if not found:
        click.echo(f"No runs in {', '.join(urls)}")
        return
    heads = ["run", "name", "algorithm", "state", "rollouts", "reward", "began", "took"]
    rows = [_row(one) for one in found]
    if len(urls) > 1:
        heads.append("log")
        rows = [[*row, printable(one.url)] for row, one in zip(rows, found)]
    click.echo("\n".join(table(rows, heads)))


def _row(found: Found) -> list[str]:
    run, summary = found.run, found.summary()
    ended = run.closed_time if run.closed_time is not None else time.time()
    reward = found.mean_reward
    missing = f" ({found.missing_rewards} without)" if found.missing_rewards else ""
    return [
        printable(run.run_id),
        short(run.name, NAME_WIDTH) or "-",
        short(run.algorithm, NAME_WIDTH) or "-",
        status(printable(found.state)),
        by_status(summary["rollouts"]),
        "-" if reward is None else f"{reward:.3f}" + missing,
        when(run.opened_time),
        duration(max(ended - run.opened_time, 0.0)),
    ]
