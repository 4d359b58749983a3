"""`agl replay`: the state of a log at a position and its fingerprint; a run in order; or a run played to an algorithm."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from typing import Any

import click

from ..core.errors import NotFound
from ..core.events.run_events import AlgorithmDecided, RunClosed, RunOpened
from ..core.fold.state import State
from ..core.log.interface import Log
from ..projections.history.record_view import Decoder
from ..projections.history.replay import Replayed, position_at
from ..projections.history.replay import replay as fold_log
from ..projections.history.run_table import runs_in
from ..projections.history.timelines import RunStep, run_timeline
from ..projections.history.topic_reader import Bound
from .log_source import DEFAULT_LOG, BoundType, located, log_option, open_reading
from .terminal import (
    by_status,
    counted,
    echo_json,
    examples,
    fit,
    json_lines_option,
    no_records,
    printable,
    short,
    status,
    when,
)

DEPARTED = 1


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


def play(log: Log, name: str, to: int | None, speed: float | None, as_json: bool) -> int:
    """Print what happened in the run up to position `to`, `speed` times as fast as it was; None: at once."""
    (found,) = runs_in(log, only=name)
    run, decoder = found.run, Decoder(log)
    before: float | None = None
    count = 0
    for step in run_timeline(log, run.run_id, set(run.rollout_ids), run.closed_at):
        if to is not None and step.position >= to:
            break
        if speed is not None and before is not None and step.time > before:
            sys.stdout.flush()
            time.sleep((step.time - before) / speed)
        before = step.time
        count += 1
        if as_json:
            echo_json({key: getattr(step, key) for key in ("position", "time", "type", "rollouts", "detail")})
        else:
            text = _text(step, decoder)
            click.echo(fit(f"{step.position:>8,}  {step.time - run.opened_time:>+10.3f} s  {step.type:20} {text}".rstrip()))
    if not count and as_json:
        no_records()
    elif not count:
        click.echo(f"Nothing of {printable(run.run_id)} happened before position {to}.")
    return 0


def _text(step: RunStep, decoder: Decoder) -> str:
    event, detail = step.event, step.detail
    if isinstance(event, RunOpened):
        words = (event.name, event.algorithm, "" if event.seed is None else f"seed {event.seed}")
        return ", ".join(printable(word) for word in words if word)
    if isinstance(event, AlgorithmDecided):
        return f"{printable(event.kind)} {short(detail.get('content'), 100)}"
    if isinstance(event, RunClosed):
        best = f", best {event.resources_id} version {event.resources_version or '-'}" if event.resources_id else ""
        return status(printable(event.outcome)) + printable(best)
    verdict = detail["verdict"]
    judged = {"accepted": "", "duplicate": "a duplicate"}.get(verdict, f"refused: {verdict}")
    kinds = (fact["type"] for fact in detail["facts"])
    followed = dict.fromkeys(kind for kind in kinds if kind not in (step.type, "rollout.enqueued"))
    return ", ".join(filter(None, (_subject(event, step.rollouts, decoder), judged, *followed)))


def _subject(event: Any, about: list[str], decoder: Decoder) -> str:
    if hasattr(event, "resources"):
        return f"{printable(event.resources_id)} {short(decoder.payload(bytes(event.resources)), 100)}"
    several = getattr(event, "rollouts", None)
    if several is not None:
        first = short(decoder.payload(bytes(several[0].input)), 80)
        return f"{printable(about[0])} {first}" if len(several) == 1 else f"{len(about)} rollouts from {printable(about[0])} on"
    claim = getattr(event, "claim", None)
    worker = f" by {printable(claim.worker_id)}" if claim is not None and claim.worker_id else ""
    number = getattr(event, "sequence_id", None)
    word = getattr(event, "status", None)
    attempt = f" attempt {number}" if number else ""
    return f"{printable(about[0])}{attempt}{worker}" + (f" {status(str(word))}" if word else "")


def play_to(log: Log, name: str, spec: str, datasets: tuple[str | None, str | None], as_json: bool) -> int:
    """Play the run to the algorithm or subscriber that `spec` names; 1 where it departs from the record."""
    from ..algorithms.runs.replayer import Replayer, load_algorithm, load_dataset

    algorithm = load_algorithm(spec)
    train, val = (None if one is None else load_dataset(one) for one in datasets)
    # What the algorithm prints is not part of the one JSON document.
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        report = asyncio.run(Replayer(log).replay(name, algorithm, train_dataset=train, val_dataset=val))
    departed, ended = report.departed, report.ended
    if as_json:
        echo_json(
            {
                "run_id": report.run_id,
                "same": report.same,
                "decisions": report.decisions,
                "recorded": report.recorded,
                "departed": departed and {key: getattr(departed, key) for key in ("position", "expected", "got")},
                "ended": ended and {"position": ended.position, "why": str(ended)},
            }
        )
    elif departed is not None:
        where = f"position {departed.position:,}" if departed.position >= 0 else "the end of the record"
        click.echo(f"{spec} departs from {report.run_id} at {where}, after {report.decisions:,} equal decisions.")
        click.echo(f"  expected  {printable(departed.expected)}")
        click.echo(f"  got       {printable(departed.got)}")
    else:
        rest = f" as far as the record goes: {printable(str(ended))}" if ended is not None else ""
        click.echo(f"{spec} makes the same decisions as {report.run_id}: {report.decisions:,} of {report.recorded:,}{rest}.")
    return 0 if report.same else DEPARTED
