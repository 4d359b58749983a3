"""`agl show`: a run, a rollout with its attempts, spans and rewards, or versions of resources, read from the log alone."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

from ..algorithms.runs.report import LogReader
from ..core.model.scalars import items, mapping
from ..core.model.span import Span
from ..core.spans.conventions import completion_of, listed, prompt_of
from ..core.spans.rewards import get_reward_value
from ..projections.history.rollout_history import rollout_report
from ..projections.store.views import seconds
from ..runners.worker.agent_result import FINDINGS
from .log_source import Located, located, log_option
from .runs import content_lines, show_run
from .terminal import (
    as_text,
    counted,
    duration,
    echo_json,
    examples,
    json_option,
    plain,
    printable,
    short,
    status,
    table,
    when,
)

SHOWN_LINES = 12
"""Lines of a traceback, and of an output, that are shown without `--full`: the last ones."""
DEEPEST = 40
"""Deeper levels of spans are not indented further, so that lines stay readable."""


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
    found = rollout_report(place.log, place.id)
    for attempt in found["attempts"]:
        attempt["findings"] = _findings(attempt["metadata"])
    if as_json:
        echo_json(found)
        return
    spans = [Span.model_validate(fields) for fields in found["spans"]]
    _print_head(found, full)
    _print_attempts(found)
    _print_events(found)
    for attempt in found["attempts"]:
        own = [span for span in spans if span.attempt_id == attempt["attempt_id"]]
        if own:
            click.echo(f"\nSpans of attempt {attempt['sequence_id']}")
            click.echo("\n".join(f"  {line}" for line in span_tree(own)))
    _print_messages(spans, full)
    for attempt in found["attempts"]:
        click.echo("".join(f"{line}\n" for line in _result_lines(attempt, full)), nl=False)


def _findings(metadata: Any) -> list[str]:
    """What the runner noted about the trace of an attempt, as sentences."""
    known = mapping(metadata) or {}
    codes, placeholders = known.get("trace_lint"), known.get("lost_placeholders")
    found = [FINDINGS.get(str(code), str(code)) for code in items(codes) or ()]
    if items(placeholders) is not None:
        found.append("lost placeholders: " + ", ".join(map(str, items(placeholders) or ())))
    return found


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


def _print_messages(spans: list[Span], full: bool) -> None:
    exchanges = [(span, messages) for span in spans if (messages := _messages(span))]
    if exchanges:
        click.echo("\nPrompts and completions")
    for span, messages in exchanges:
        click.echo(f"  {printable(span.name)} (span {span.sequence_id})")
        for role, text in messages:
            click.echo(f"    {printable(role):10} {as_text(text, indent=15) if full else short(text)}")


def _messages(span: Span) -> list[tuple[str, str]]:
    """(role, text) of the messages of a model call, in order; empty for spans that are none."""
    found: list[tuple[str, str]] = []
    for messages, otherwise in ((prompt_of(span), "user"), (completion_of(span), "assistant")):
        for message in map(mapping, listed(messages)):
            if message is not None and (text := _text(message.get("content")) or _calls(message)):
                found.append((str(message.get("role") or otherwise), text))
    return found


def _calls(message: Mapping[str, Any]) -> str:
    """The tools that an answer without a text calls."""
    calls = [mapping(call) or {} for call in listed(message.get("tool_calls"))]
    functions = [mapping(call.get("function")) or call for call in calls]
    return "\n".join(f"{one.get('name', '')}({_text(one.get('arguments'))})" for one in functions)


def _text(value: Any) -> str:
    """A text, or the texts of a message's parts; anything else as JSON."""
    if value is None or isinstance(value, str):
        return value or ""
    parts = [mapping(part) for part in items(value) or ()]
    texts = [str(part.get("content") or part.get("text") or "") for part in parts if part is not None]
    if texts and len(texts) == len(parts):
        return "\n".join(text for text in texts if text)
    return json.dumps(plain(value))


def span_tree(spans: Sequence[Span]) -> list[str]:
    """One line a span, in the order of sequence ids, children below their parent; every span is printed exactly once."""
    ordered = sorted(spans, key=lambda span: (span.sequence_id, span.start_time or 0.0))
    known = {span.span_id for span in ordered}
    children: dict[str | None, list[Span]] = {}
    for span in ordered:
        parent = span.parent_id if span.parent_id in known and span.parent_id != span.span_id else None
        children.setdefault(parent, []).append(span)
    rows: list[tuple[str, ...]] = []
    printed: set[int] = set()
    # A stack of our own: foreign spans may nest as deep as they like, or even in circles.
    stack = [(span, 0) for span in reversed(children.get(None, []))]
    left = iter(ordered)
    while True:
        if not stack:
            rest = next((span for span in left if id(span) not in printed), None)
            if rest is None:
                break
            stack.append((rest, 0))
        span, depth = stack.pop()
        if id(span) in printed:
            continue
        printed.add(id(span))
        rows.append(_row(span, depth))
        stack += [(child, depth + 1) for child in reversed(children.get(span.span_id, []))]
    return table(rows, ("no", "span", "took", ""))


def _row(span: Span, depth: int) -> tuple[str, ...]:
    took = span.end_time - span.start_time if span.start_time is not None and span.end_time is not None else None
    notes: list[str] = []
    if span.status.status_code == "ERROR":
        why = f": {short(span.status.description, 80)}" if span.status.description else ""
        notes.append(click.style(f"error{why}", fg="red"))
    reward = get_reward_value(span)
    if reward is not None:
        notes.append(click.style(f"reward {reward:g}", fg="green"))
    model = span.attributes.get("gen_ai.response.model") or span.attributes.get("gen_ai.request.model")
    if isinstance(model, str):
        notes.append(printable(model))
    tokens = [span.attributes.get(f"gen_ai.usage.{side}_tokens") for side in ("input", "output")]
    if any(isinstance(count, int) for count in tokens):
        notes.append(f"{tokens[0] or 0}+{tokens[1] or 0} tokens")
    return str(span.sequence_id), "  " * min(depth, DEEPEST) + printable(span.name), duration(took), ", ".join(notes)


def _result_lines(attempt: dict[str, Any], full: bool) -> list[str]:
    """What to print for one attempt of the document; nothing where nothing happened."""
    lines: list[str] = []
    number = attempt["sequence_id"]
    for finding in attempt["findings"]:
        lines.append(click.style(f"  attempt {number}: {printable(finding)}", fg="yellow"))
    if lines:
        lines.insert(0, "\nTrace lint")
    if attempt["error"] and not attempt["exceptions"]:
        lines += [f"\nError of attempt {number}", f"  {printable(str(attempt['error']))}"]
    for exception in attempt["exceptions"]:
        lines.append(f"\nException of attempt {number}")
        stack = str(exception["stacktrace"] or f"{exception['type']}: {exception['message']}")
        lines += _last(stack, full)
    output = attempt["output"]
    if output is not None:
        lines.append(f"\nOutput of attempt {number} ({counted(output['total_bytes'] or 0, 'byte')})")
        dropped = output["dropped_bytes"]
        lines += _last(str(output["head"] or ""), full)
        if dropped:
            lines.append(click.style(f"  ... {counted(dropped, 'byte')} left out ...", dim=True))
            lines += _last(str(output["tail"] or ""), full)
    return lines


def _last(text: str, full: bool) -> list[str]:
    """The lines of a text, indented; only the last few unless `full`."""
    lines = [f"  {printable(line)}" for line in text.splitlines()]
    if full or len(lines) <= SHOWN_LINES:
        return lines
    return [f"  ... {counted(len(lines) - SHOWN_LINES, 'line')} above, see --full ...", *lines[-SHOWN_LINES:]]
