"""`agl replay`: the state of a log at a position, folded from its first event, and the fingerprint that proves it."""

from __future__ import annotations

from typing import Any

import click

from ..core.state import State
from ..projections.replay import Replayed
from ..projections.replay import replay as fold_log
from .reading import DEFAULT_LOG, open_reading
from .terminal import by_status, counted, echo_json, json_option, printable, when


@click.command()
@click.argument("log", default=DEFAULT_LOG)
@click.option("--to", type=click.IntRange(min=0), metavar="POSITION", help="Stop after so many events; all if left out.")
@json_option
def replay(log: str, to: int | None, as_json: bool) -> int:
    """Fold LOG (an address or a file) from its first event and say what the state is then.

    The position is the number of control events that were folded. It and the fingerprint are those of every store that
    holds the same log. No snapshot is used and nothing is written. Exit code 1 where this release cannot fold on.
    """
    with open_reading(log) as source:
        state, met = fold_log(source, to=to)
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
