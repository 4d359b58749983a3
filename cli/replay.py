"""`agl replay`: the state of a log at a position, and the fingerprint that proves it; or a run as it happened."""

from __future__ import annotations

import os
from typing import Any

import click

from ..core.errors import NotFound
from ..core.fold.state import State
from ..core.log.interface import Log
from ..projections.history.replay import Replayed, position_at
from ..projections.history.replay import replay as fold_log
from .finding_runs import located
from .reading import DEFAULT_LOG, Bound, BoundType, log_option, open_reading
from .terminal import by_status, counted, echo_json, examples, json_lines_option, printable, when


@click.command(
    epilog=examples(
        "agl replay latest", "agl replay .agl/log.db --to 2026-01-31T12:00", "agl replay nightly --algorithm app.py:search"
    )
)
@click.argument("what", metavar="[LOG|RUN]", required=False)
@click.option("--to", type=BoundType(), metavar="POSITION|TIME", help="Stop before this event, or before this time.")
@log_option(default=None)
@click.option("--speed", type=click.FloatRange(min=0, min_open=True), metavar="X", help="Of a run: X times as fast as it was.")
@click.option("--instant", is_flag=True, help="Of a run: everything at once, as without --speed.")
@click.option("--algorithm", metavar="MODULE:ALGO", help="Play the run to this algorithm or subscriber, and compare.")
@click.option("--train-dataset", metavar="MODULE:NAME", help="For --algorithm, where the run was recorded without it.")
@click.option("--val-dataset", metavar="MODULE:NAME", help="As --train-dataset.")
@json_lines_option
def replay(
    what: str | None,
    to: Bound | None,
    url: str | None,
    token: str | None,
    speed: float | None,
    instant: bool,
    algorithm: str | None,
    train_dataset: str | None,
    val_dataset: str | None,
    as_json: bool,
) -> int:
    """Fold LOG (an address or a file) from its first event and print the state; or replay a RUN.

    The position is the number of control events that were folded. It and the fingerprint are those of every store that
    holds the same log. No snapshot is used and nothing is written. Exit code 1 where this release cannot fold on.

    RUN is the id of a run, its beginning, its name, or `latest`: every event of it in order. With --algorithm its record is
    played to an algorithm, with no runner and no model: recorded completions and spans are what it sees, and its decisions
    are compared with the recorded ones. Exit code 1 where it departs; the first difference is named.
    """
    if speed is not None and instant:
        raise click.UsageError("--speed and --instant exclude each other")
    if algorithm is None and (train_dataset or val_dataset):
        raise click.UsageError("datasets are for --algorithm")
    if algorithm is not None and to is not None:
        raise click.UsageError("--algorithm plays a whole run; --to is for printing one")
    asked = speed is not None or instant or algorithm is not None
    if what is None or _is_address(what):
        if asked:
            raise click.UsageError("name a RUN; the address of its log goes to --log")
        return _fold(what or url or DEFAULT_LOG, token, to, as_json)
    from .replay_run import play, play_to

    try:
        with located(what, url, token, ("run",)) as place:
            assert place.run is not None
            if algorithm is not None:
                return play_to(place.log, place.id, algorithm, (train_dataset, val_dataset), as_json)
            return play(place.log, place.id, _position(place.log, to), speed, as_json)
    except NotFound:
        if asked or url is not None or not os.path.isfile(what):
            raise
    return _fold(what, token, to, as_json)


def _is_address(what: str) -> bool:
    """Whether the word can only be a log: other words are names of runs, and files where no run has the name."""
    return "://" in what or os.sep in what or what.endswith(".db")


def _position(log: Log, to: Bound | None) -> int | None:
    if to is None or to.time is None:
        return None if to is None else to.position
    return position_at(log, to.time)


def _fold(log: str, token: str | None, to: Bound | None, as_json: bool) -> int:
    with open_reading(log, token) as source:
        state, met = fold_log(source, to=_position(source, to))
        report = _report(source.url, source.log_id, state, met)
    if as_json:
        echo_json(report)
    else:
        _print(report)
    return 1 if met.halted is not None else 0


def _report(url: str, log_id: str, state: State, met: Replayed) -> dict[str, Any]:
    workers = [
        {"worker_id": one.worker_id, "status": one.status, "rollout_id": one.rollout_id, "attempt_id": one.attempt_id}
        for one in state.workers.values()
    ]
    resources = [{"resources_id": name, "versions": len(versions)} for name, versions in state.resources.items() if versions]
    return {
        "log": url,
        "log_id": log_id,
        "position": met.position,
        "fingerprint": met.fingerprint,
        "time": None if met.last_us is None else met.last_us / 1_000_000,
        "rollouts": met.rollouts,
        "queue": list(state.queue),
        "workers": workers,
        "resources": resources,
        "latest_resources": state.latest_resources,
        "refused": met.refused,
        "duplicates": met.duplicates,
        "halted": met.halted,
    }


def _print(report: dict[str, Any]) -> None:
    queue: list[str] = report["queue"]
    waiting = counted(len(queue), "rollout") + (f", next {printable(queue[0])}" if queue else "")
    lines = [
        ("log", report["log"]),
        ("position", f"{report['position']:,}"),
        ("fingerprint", report["fingerprint"] or "-"),
        ("time", when(report["time"])),
        ("rollouts", by_status(report["rollouts"])),
        ("queue", waiting),
        ("refused", ", ".join(f"{count:,} {reason}" for reason, count in report["refused"].items()) or "none"),
        ("duplicates", f"{report['duplicates']:,}"),
    ]
    for name, text in lines:
        click.echo(f"{name:12} {text}")
    for worker in report["workers"]:
        at = f" {worker['rollout_id']} {worker['attempt_id'] or ''}".rstrip() if worker["rollout_id"] else ""
        click.echo(f"{'worker':12} {printable(worker['worker_id'])}: {worker['status']}{printable(at)}")
    for entry in report["resources"]:
        latest = ", the latest" if entry["resources_id"] == report["latest_resources"] else ""
        click.echo(f"{'resources':12} {printable(entry['resources_id'])}: {counted(entry['versions'], 'version')}{latest}")
    if report["halted"]:
        click.echo(f"{'halted':12} {report['halted']}")
