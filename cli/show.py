"""`agl show`: a run, a rollout with its attempts, spans and rewards, or versions of resources, read from the log alone."""

from __future__ import annotations

import difflib
from typing import Any

import click

from ..algorithms.runs.report import LogReader
from ..core.events.codec import type_of
from ..core.fold.state import Attempt
from ..core.log.interface import Log
from ..core.model.span import Span
from ..projections.history.rollout_history import History, Step, history_of
from ..projections.spans.blobs import Blobs
from ..projections.spans.schema import key_range
from ..projections.spans.span_log import SpanBook
from ..projections.store.views import seconds
from .conversation import as_text, exchange
from .ending import ending_lines, ending_of
from .finding_runs import NO_LIMIT_MB, Located, located
from .reading import log_option
from .records import Decoder
from .show_run import content_lines, show_run
from .span_tree import lines_of
from .terminal import counted, duration, echo_json, examples, json_option, printable, short, status, table, when

LATE = "attempt.late"


@click.command(
    epilog=examples("agl show latest", "agl show ro-1d18988581cd --full", "agl show rs-04f1 --log http://127.0.0.1:4747")
)
@click.argument("name", metavar="ID")
@log_option(default=None)
@click.option("--full", is_flag=True, help="Inputs, prompts and answers in full instead of shortened, and every line.")
@json_option
def show(name: str, url: str | None, token: str | None, full: bool, as_json: bool) -> None:
    """One run, one rollout, or the versions of some resources, as a person wants to read it.

    ID is the id of a run, of a rollout, of one of its attempts, or of resources; its beginning is enough where no other id
    begins so. A run is found by its name too, and `latest` is the run that was opened last.
    """
    with located(name, url, token) as place:
        if place.kind == "run":
            show_run(place, full, as_json)
        elif place.kind == "resources":
            _show_resources(place, as_json)
        else:
            _show_rollout(place, full, as_json)


def _show_rollout(place: Located, full: bool, as_json: bool) -> None:
    history = history_of(place.log, place.id)
    spans = SpanBook(place.log, Blobs(place.log, NO_LIMIT_MB)).read(place.id, within=key_range(history.rollout))
    found = _gather(place.log, history, spans)
    if as_json:
        echo_json(found)
        return
    _print_head(found, full)
    _print_attempts(found)
    _print_events(found)
    _print_spans(spans, found)
    _print_talk(found, full)
    for attempt in found["attempts"]:
        click.echo("".join(f"{line}\n" for line in ending_lines(attempt, full)), nl=False)


def _show_resources(place: Located, as_json: bool) -> None:
    """Every version, the newest in full, each with what changed against the version before."""
    versions = LogReader(place.log).resources()[place.id]
    if as_json:
        echo_json(
            {
                "resources_id": place.id,
                "versions": [
                    {"version": one.version, "create_time": seconds(one.updated_us), "resources": content}
                    for one, content in versions
                ],
            }
        )
        return
    click.echo(f"{printable(place.id)}  {counted(len(versions), 'version')}")
    before: list[str] = []
    for one, content in versions:
        lines = content_lines(content)
        click.echo(f"\nVersion {one.version}  {when(seconds(one.updated_us))}")
        changed = difflib.unified_diff(before, lines, lineterm="", n=1) if before else [f" {line}" for line in lines]
        for line in changed:
            if not line.startswith(("---", "+++", "@@")):
                click.echo(f"  {click.style(line, fg={'+': 'green', '-': 'red'}.get(line[:1]))}")
        before = lines


def _gather(log: Log, history: History, spans: list[Span]) -> dict[str, Any]:
    """The document of `--json`, which is also what the text is written from."""
    rollout = history.rollout
    decoder = Decoder(log)
    ordered = sorted(spans, key=lambda span: span.sequence_id)
    return {
        "rollout_id": rollout.rollout_id,
        "status": rollout.status,
        "mode": rollout.mode,
        "input": decoder.payload(rollout.input),
        "metadata": decoder.payload(rollout.metadata),
        "resources_id": rollout.resources_id,
        "resources_version": rollout.resources_version,
        "start_time": seconds(rollout.created_us),
        "end_time": seconds(rollout.ended_us),
        "max_attempts": rollout.config.max_attempts,
        "retry_condition": list(rollout.config.retry_condition),
        "attempts": [_attempt(attempt, history, ordered, decoder) for attempt in rollout.attempts],
        "events": [_event(step, history) for step in history.steps],
        "rewards": _rewards(ordered),
        "spans": [span.model_dump() for span in ordered],
    }


def _attempt(attempt: Attempt, history: History, spans: list[Span], decoder: Decoder) -> dict[str, Any]:
    from ..core.spans.readers import attempt_spans, find_final_reward

    own = attempt_spans(spans, attempt.attempt_id)
    mine = [step for step in history.steps if getattr(step.proposal.event, "sequence_id", None) == attempt.sequence_id]
    return {
        "attempt_id": attempt.attempt_id,
        "sequence_id": attempt.sequence_id,
        "generation": attempt.generation,
        "status": attempt.status,
        "worker_id": attempt.worker_id,
        "start_time": seconds(attempt.started_us),
        "end_time": seconds(attempt.ended_us),
        "counted": attempt.counted,
        "metadata": decoder.payload(attempt.metadata),
        "spans": len(own),
        "reward": find_final_reward(own),
        "refused": [_remark(step) for step in mine if step.reason and not step.duplicate and _is_result(step)],
        "late": [_remark(step) for step in mine if any(fact.type == LATE for fact in step.facts)],
        **ending_of(own, decoder.payload(attempt.metadata)),
    }


def _is_result(step: Step) -> bool:
    """A refused race of two claimers says nothing about the attempt; a refused update, expiry or sign of life does."""
    return getattr(step.proposal.event, "claim", None) is None


def _remark(step: Step) -> dict[str, Any]:
    return {
        "position": step.position,
        "type": type_of(step.proposal.event),
        "status": getattr(step.proposal.event, "status", None),
        "reason": step.reason,
    }


def _event(step: Step, history: History) -> dict[str, Any]:
    return {
        "position": step.position,
        "time": step.proposal.time_us / 1_000_000,
        "type": type_of(step.proposal.event),
        "command_id": step.proposal.id,
        "sequence_id": getattr(step.proposal.event, "sequence_id", None),
        "verdict": "duplicate" if step.duplicate else f"refused: {step.reason}" if step.reason else "accepted",
        "facts": [{"id": fact.id, "type": fact.type, "data": fact.data} for fact in step.facts],
    }


def _rewards(spans: list[Span]) -> list[dict[str, Any]]:
    from ..core.spans.readers import get_reward_value, get_rewards_from_span

    found: list[dict[str, Any]] = []
    for span in spans:
        value = get_reward_value(span)
        if value is not None:
            named = {reward.name: reward.value for reward in get_rewards_from_span(span)}
            found.append(
                {"attempt_id": span.attempt_id, "sequence_id": span.sequence_id, "value": value, "dimensions": named}
            )
    return found


def _print_head(found: dict[str, Any], full: bool) -> None:
    took = found["end_time"] - found["start_time"] if found["end_time"] is not None else None
    mode = f"  {printable(found['mode'])}" if found["mode"] else ""
    click.echo(f"{printable(found['rollout_id'])}  {status(printable(found['status']))}{mode}")
    bound = found["resources_id"] and f"{found['resources_id']} version {found['resources_version'] or '-'}"
    retry = f"up to {counted(found['max_attempts'], 'attempt')}"
    retry += f", again after {printable(', '.join(found['retry_condition']))}" if found["retry_condition"] else ""
    for name, text in (
        ("input", _value(found["input"], full)),
        ("created", when(found["start_time"])),
        ("ended", f"{when(found['end_time'])} (after {duration(took)})" if took is not None else "not yet"),
        ("resources", printable(bound) if bound else "-"),
        ("retries", retry),
        ("metadata", _value(found["metadata"], full) if found["metadata"] else ""),
        ("rewards", ", ".join(f"{reward['value']:g}" for reward in found["rewards"]) or "none"),
    ):
        if text:
            click.echo(f"  {name:10} {text}")


def _value(value: Any, full: bool) -> str:
    return as_text(value) if full else short(value)


def _print_attempts(found: dict[str, Any]) -> None:
    click.echo("\nAttempts" if found["attempts"] else "\nNo attempt yet")
    rows: list[tuple[str, ...]] = []
    for attempt in found["attempts"]:
        ended = attempt["end_time"]
        took = duration(ended - attempt["start_time"]) if ended is not None else "-"
        reward = "-" if attempt["reward"] is None else f"{attempt['reward']:g}"
        number = str(attempt["sequence_id"]) + ("" if attempt["counted"] else " (not counted)")
        worker = printable(attempt["worker_id"] or "-")
        rows.append(
            (number, printable(attempt["attempt_id"]), status(attempt["status"]), worker, when(attempt["start_time"]), took,
             str(attempt["spans"]), reward)
        )  # fmt: skip
    if rows:
        heads = ("no", "attempt", "status", "worker", "started", "took", "spans", "reward")
        click.echo("\n".join(table(rows, heads, indent="  ")))
    for attempt in found["attempts"]:
        for kind, remarks in (("refused", attempt["refused"]), ("late", attempt["late"])):
            for remark in remarks:
                what = f"{remark['type']}{' ' + remark['status'] if remark['status'] else ''}"
                why = f": {remark['reason']}" if remark["reason"] else ""
                note = click.style(f"{kind} result at position {remark['position']}: {what}{why}", fg="yellow")
                click.echo(f"  attempt {attempt['sequence_id']}: {note}")


def _print_events(found: dict[str, Any]) -> None:
    click.echo("\nEvents")
    rows = [
        (
            str(event["position"]),
            when(event["time"]),
            event["type"] + (f" #{event['sequence_id']}" if event["sequence_id"] else ""),
            click.style(event["verdict"], fg=None if event["verdict"] == "accepted" else "yellow"),
            ", ".join(fact["type"] for fact in event["facts"]),
        )
        for event in found["events"]
    ]
    click.echo("\n".join(table(rows, ("position", "time", "event", "verdict", "what followed"), indent="  ")))


def _print_spans(spans: list[Span], found: dict[str, Any]) -> None:
    for attempt in found["attempts"]:
        own = [span for span in spans if span.attempt_id == attempt["attempt_id"]]
        if own:
            click.echo(f"\nSpans of attempt {attempt['sequence_id']}")
            click.echo("\n".join(f"  {line}" for line in lines_of(own)))


def _print_talk(found: dict[str, Any], full: bool) -> None:
    said = [(span, exchange(span)) for span in found["spans"]]
    talk = [(span, lines) for span, lines in said if lines]
    if talk:
        click.echo("\nPrompts and completions")
    for span, lines in talk:
        click.echo(f"  {printable(span['name'])} (span {span['sequence_id']})")
        for role, text in lines:
            click.echo(f"    {printable(role):10} {as_text(text, indent=15) if full else short(text)}")
