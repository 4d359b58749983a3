"""`agl replay RUN`: what happened in a run, in order and at any speed; or the run played to an algorithm."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import click
import msgspec

from ..core.errors import InvalidInput
from ..core.events.codec import type_of
from ..core.events.run_events import AlgorithmDecided, RunClosed, RunOpened, RunRecord, decode_run
from ..core.fold.apply import Outcome, apply
from ..core.fold.state import State
from ..core.log.interface import Log
from ..projections.facts.derived_topic import batch_of, facts_of
from ..projections.history.replay import control_records
from ..projections.history.rollout_history import rollouts_of
from .finding_runs import runs_in
from .records import Decoder
from .terminal import echo_json, fit, no_records, printable, short, status

DEPARTED = 1


@dataclass
class Happening:
    """One record of a run. `position` in the control log, `time` Unix seconds, `detail` decoded, `text` in one line."""

    position: int
    time: float
    type: str
    rollouts: list[str]
    detail: Any
    text: str


def play(log: Log, name: str, to: int | None, speed: float | None, as_json: bool) -> int:
    """Print what happened in the run up to position `to`, `speed` times as fast as it was; None: at once."""
    (found,) = runs_in(log, log.url, only=name)
    before: float | None = None
    began = found.run.opened_time
    count = 0
    for one in happenings(log, found.run.run_id, set(found.run.rollout_ids), found.run.closed_at):
        if to is not None and one.position >= to:
            break
        if speed is not None and before is not None and one.time > before:
            sys.stdout.flush()
            time.sleep((one.time - before) / speed)
        before = one.time
        count += 1
        if as_json:
            echo_json({key: getattr(one, key) for key in ("position", "time", "type", "rollouts", "detail")})
        else:
            click.echo(fit(f"{one.position:>8,}  {one.time - began:>+10.3f} s  {one.type:20} {one.text}".rstrip()))
    if not count and as_json:
        no_records()
    elif not count:
        click.echo(f"Nothing of {printable(found.run.run_id)} happened before position {to}.")
    return 0


def happenings(log: Log, run_id: str, rollouts: set[str], last: int | None) -> Iterator[Happening]:
    """What the control log holds of a run, in order, with what the fold made of it. Refused proposals say so."""
    state, decoder = State(), Decoder(log)
    for record in control_records(log):
        position = state.position
        if last is not None and position > last:
            return
        outcome = apply(state, record.value)
        said = decode_run(record.value)
        if said is not None:
            if said.event.run_id == run_id:
                yield _of_run(position, said, decoder)
        elif outcome.proposal is not None:
            one = _of_store(outcome, state, rollouts, decoder, log.log_id)
            if one is not None:
                yield one


def _of_run(position: int, said: RunRecord, decoder: Decoder) -> Happening:
    event = said.event
    detail: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(event))
    for field in ("parameters", "summary", "content"):
        if field in detail:
            detail[field] = decoder.payload(bytes(getattr(event, field)))
    detail.pop("datasets", None)
    if isinstance(event, RunOpened):
        words = (event.name, event.algorithm, "" if event.seed is None else f"seed {event.seed}")
        text = ", ".join(printable(word) for word in words if word)
    elif isinstance(event, AlgorithmDecided):
        text = f"{printable(event.kind)} {short(detail.get('content'), 100)}"
    else:
        assert isinstance(event, RunClosed)
        best = f", best {event.resources_id} version {event.resources_version or '-'}" if event.resources_id else ""
        text = status(printable(event.outcome)) + printable(best)
    return Happening(position, said.time_us / 1_000_000, str(detail["t"]), [], detail, text)


def _of_store(outcome: Outcome, state: State, mine: set[str], decoder: Decoder, log_id: str) -> Happening | None:
    """A record about rollouts of the run, or about resources, which belong to whoever uses them."""
    proposal, verdict = outcome.proposal, outcome.verdict
    if proposal is None or verdict is None:
        return None
    event: Any = proposal.event
    kind = type_of(event)
    about = [one for one in rollouts_of(event) if one in mine]
    if not about and kind != "resources.published":
        return None
    facts = facts_of(batch_of(outcome), log_id)
    words = [_subject(event, about, decoder)]
    if verdict.reason or outcome.duplicate:
        words.append("a duplicate" if outcome.duplicate else f"refused: {verdict.reason}")
    words += dict.fromkeys(fact.type for fact in facts if fact.type not in (kind, "rollout.enqueued"))
    detail = {
        "verdict": "duplicate" if outcome.duplicate else verdict.reason or "accepted",
        "facts": [{"id": fact.id, "type": fact.type, "rollout_id": fact.rollout_id, "data": fact.data} for fact in facts],
    }
    return Happening(outcome.position, proposal.time_us / 1_000_000, kind, about, detail, ", ".join(filter(None, words)))


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
    from ..algorithms.runs.replayer import Replayer

    algorithm = load_algorithm(spec)
    train, val = (None if one is None else _dataset(one) for one in datasets)
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


def load_algorithm(spec: str) -> Any:
    """An `Algorithm`, an instance of a class of such, or a subscriber. Raises `InvalidInput` for anything else."""
    from ..algorithms.algorithm import Algorithm
    from ..algorithms.subscribers.decorator import Subscriber
    from ..core.importing import find

    found = find(spec, "An algorithm", "algo")
    if isinstance(found, type) and issubclass(found, Algorithm):
        try:
            found = found()
        except TypeError as error:
            raise InvalidInput(f"{spec} is a class that needs arguments ({error}); name an instance of it") from error
    if not isinstance(found, (Algorithm, Subscriber)):
        raise InvalidInput(f"{spec} is neither an algorithm (mark it with @agl.algo) nor a subscriber")
    return cast("Any", found)


def _dataset(spec: str) -> Any:
    from ..core.importing import find

    found = find(spec, "A dataset", "name")
    return found() if callable(found) else found
