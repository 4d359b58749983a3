"""`agl log`: the topics of a log, their records, and whether the file is sound. It never writes to the log it looks at."""

from __future__ import annotations

import json
import os
import re
from functools import wraps
from typing import Any

import click
import msgspec

from ..core.errors import InvalidInput
from ..core.events import fact
from ..core.events.fact import FactData
from ..core.events.run_events import RunClosed, RunOpened
from ..core.log.interface import Log, Record
from ..core.log.log_copy import copy_log, copy_to_file
from ..core.log.open_log import open_log, path_of, shown
from ..core.log.topics import CONTROL, DEAD, FACTS, SPANS, TASKS, TOPICS
from ..core.model.scalars import mapping
from ..projections.history.log_check import check_file, check_log
from ..projections.history.record_view import View
from ..projections.history.timelines import follow_activities, last_activities
from ..projections.history.topic_reader import Bound, Filters, TopicReader, topic_summary
from .log_source import BoundType, address_of, log_option, open_reading, token_option
from .terminal import (
    counted,
    echo_json,
    examples,
    fit,
    json_lines_option,
    json_option,
    no_records,
    plain,
    printable,
    short,
    status,
    table,
    when,
)

published_option = click.option(
    "--published", is_flag=True, help="Tasks and facts as the Kafka has them, instead of derived from control."
)


@click.group()
def log() -> None:
    """Look at the log, also while a store writes it: topics, records, soundness."""


def _filters(command: Any) -> Any:
    """The filters that `tail` and `grep` share; they reach the command as `filters`."""

    @wraps(command)
    def call(
        rollout: str | None, attempt: str | None, kind: str | None, since: Bound | None, until: Bound | None, **options: Any
    ) -> Any:
        return command(filters=Filters(rollout, attempt, kind, since or Bound(), until or Bound()), **options)

    bound = BoundType()
    for option in (
        click.option("--until", type=bound, metavar="POSITION|TIME", help="Nothing from here on."),
        click.option("--since", type=bound, metavar="POSITION|TIME", help="From here on."),
        click.option("--type", "kind", metavar="TYPE", help="Records of a type: attempt.claimed, or attempt for all of them."),
        click.option("--attempt", metavar="ID", help="Records about an attempt (the beginning of its id is enough)."),
        click.option("--rollout", metavar="ID", help="Records about a rollout (the beginning of its id is enough)."),
    ):
        call = option(call)
    return call


@log.command(
    short_help="List the topics: partitions, records, how long they are kept.",
    epilog=examples("agl log topics", "agl log topics --log kafka://localhost:9092/dev --json"),
)
@published_option
@log_option()
@json_option
def topics(published: bool, url: str, token: str | None, as_json: bool) -> None:
    """Every topic: its partitions and records, when it was last written, and how long records are kept.

    On a Kafka, the records of topics that keep the newest of a key are not counted: that means to read all of them.
    """
    with open_reading(url, token) as source:
        rows = [topic_summary(source, name, published) for name in TOPICS]
    if as_json:
        echo_json(rows)
        return
    heads = ("topic", "partitions", "records", "next", "last written", "kept")
    lines = [
        (
            row["topic"],
            str(row["partitions"]),
            "-" if row["records"] is None else f"{row['records']:,}",
            "-" if row["next"] is None else f"{row['next']:,}",
            when(row["last_time"]),
            row["kept"],
        )
        for row in rows
    ]
    click.echo("\n".join(table(lines, heads)))


@log.command(
    short_help="Print what happened last, or the last records of a topic; -f follows.",
    epilog=examples("agl log tail -f", "agl log tail spans -n 3 --json", "agl log tail facts --rollout ro-1d18 --type rollout"),
)
@click.argument("topic", required=False)
@click.option("-n", "--lines", type=click.IntRange(min=0), default=10, show_default=True, help="How many records.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on, until Ctrl+C.")
@click.option("--raw", is_flag=True, help="The bytes of the values, in hex, instead of their meaning.")
@published_option
@_filters
@log_option()
@json_lines_option
def tail(
    topic: str | None,
    lines: int,
    follow: bool,
    raw: bool,
    published: bool,
    url: str,
    token: str | None,
    as_json: bool,
    filters: Filters,
) -> None:
    """What happened last: rollouts queued, claimed and completed with their rewards, resources, runs.

    With TOPIC, and with --json (then control), the last records of that topic which match the filters. Positions are offsets
    in the topic; those of facts and tasks are the positions of the control records they follow from.
    """
    with open_reading(url, token) as source:
        if topic is None and not (as_json or raw or published):
            _tail_activities(source, filters, lines, follow)
            return
        reader = TopicReader(source, topic or CONTROL, published=published)
        filters.check_type(topic or CONTROL)

        def show(record: Record, view: View) -> None:
            _echo(record, view, raw, as_json)

        found = reader.last(filters, lines)
        for record, view in found:
            show(record, view)
        if follow:
            reader.follow(filters, show)
        elif as_json and not found:
            no_records()


def _tail_activities(source: Log, filters: Filters, lines: int, follow: bool) -> None:
    filters.check_type(CONTROL, FACTS)
    found, reader = last_activities(source, filters, lines)
    for view in found:
        _echo_activity(view)
    if follow:
        follow_activities(reader, filters, _echo_activity)


def _echo_activity(view: View) -> None:
    rollout = view.rollout_ids[0] if view.rollout_ids else "-"
    text = _of_fact(view.body) if isinstance(view.body, FactData) else _of_run(view.body)
    click.echo(fit(f"{view.position:>8,}  {when(view.time)}  {printable(rollout):15}  {text}"))


def _of_run(event: Any) -> str:
    if isinstance(event, RunOpened):
        return f"run {printable(event.run_id)} {printable(event.name)} opened, algorithm {printable(event.algorithm) or '-'}"
    if isinstance(event, RunClosed):
        return f"run {printable(event.run_id)} closed: {status(printable(event.outcome))}"
    return f"run {printable(event.run_id)} decided {printable(event.kind)}"


def _of_fact(one: FactData) -> str:
    match one:
        case fact.RolloutEnqueued():
            return "in the queue"
        case fact.AttemptClaimed():
            return f"attempt {one.sequence_id} claimed by {printable(one.worker_id or 'a worker without a name')}"
        case fact.AttemptLate():
            return f"attempt {one.sequence_id} reported too late: {one.status}"
        case fact.RolloutCompleted():
            reward = "no reward" if one.reward is None else f"reward {one.reward:.4g}"
            return f"{status(one.status)}, {reward}" if one.attempt_id else status(one.status)
        case fact.RolloutReopened():
            return "restarted, a new generation"
        case fact.ResourcesPublished():
            return f"resources {printable(one.resources_id)} version {one.version} published"
        case _:
            return f"attempt {one.sequence_id} {status(one.type.removeprefix('attempt.'))}"


@log.command(
    "show",
    short_help="Print the record at a position in full.",
    epilog=examples("agl log show 1877", "agl log show 12 spans --json"),
)
@click.argument("position", type=click.IntRange(min=0))
@click.argument("topic", default=CONTROL)
@click.option("--raw", is_flag=True, help="The bytes of the value, in hex.")
@published_option
@log_option()
@json_lines_option
def show_record(position: int, topic: str, raw: bool, published: bool, url: str, token: str | None, as_json: bool) -> None:
    """The records at POSITION of TOPIC in full: key, headers and everything in them."""
    filters = Filters(since=Bound(position), until=Bound(position + 1))
    with open_reading(url, token) as source:
        found = list(TopicReader(source, topic, published=published).records(filters))
    if not found:
        raise InvalidInput(f"{topic} has no record at position {position}")
    for record, view in found:
        if as_json:
            echo_json({**_as_dict(record, view, raw), "headers": dict(record.headers)})
            continue
        for name, text in (
            ("topic", f"{view.topic}, partition {view.partition}, offset {view.offset}"),
            ("time", when(view.time)),
            ("key", printable(view.key)),
            ("type", view.type),
            ("headers", ", ".join(f"{name}={printable(value)}" for name, value in record.headers) or "-"),
            ("size", counted(len(record.value), "byte")),
        ):
            click.echo(f"{name:8} {text}")
        if view.problem:
            click.echo(f"{'problem':8} {printable(view.problem)}")
        click.echo(record.value.hex() if raw or view.problem else json.dumps(plain(view.body), indent=2))


@log.command(
    short_help="Find records by a regular expression.",
    epilog=examples("agl log grep Timeout spans", "agl log grep -i 'room b' --since 2026-01-31T12:00 --json"),
)
@click.argument("pattern")
@click.argument("topic_names", metavar="[TOPIC]...", nargs=-1)
@click.option("-i", "--ignore-case", is_flag=True, help="Upper and lower case are the same.")
@click.option("--raw", is_flag=True, help="Print the bytes of the values in hex; the search is in their meaning anyway.")
@published_option
@_filters
@log_option()
@json_lines_option
def grep(
    pattern: str,
    topic_names: tuple[str, ...],
    ignore_case: bool,
    raw: bool,
    published: bool,
    url: str,
    token: str | None,
    as_json: bool,
    filters: Filters,
) -> int:
    """Records whose key, type, headers or decoded content match PATTERN, a regular expression.

    Looks through control and spans unless topics are named. Exit code 1 where nothing matches.
    """
    try:
        wanted = re.compile(pattern, re.IGNORECASE if ignore_case else 0)
    except re.error as error:
        raise click.BadParameter(f"{pattern!r} is no regular expression: {error}", param_hint="PATTERN") from None
    hits = 0
    with open_reading(url, token) as source:
        topics = topic_names or (CONTROL, SPANS)
        filters.check_type(*topics)
        for topic in topics:
            for record, view in TopicReader(source, topic, published=published).records(filters):
                if wanted.search(_searched(record, view)):
                    hits += 1
                    _echo(record, view, raw, as_json, with_topic=True)
    if as_json and not hits:
        no_records()
    return 0 if hits else 1


def _searched(record: Record, view: View) -> str:
    """What `grep` looks through: texts as people wrote them, not as JSON escapes them."""
    headers = " ".join(f"{name}={value}" for name, value in record.headers)
    return f"{view.key} {view.type} {headers} {json.dumps(plain(view.body), ensure_ascii=False)}"


@log.command(
    short_help="Say whether the log is sound.",
    epilog=examples("agl log check --log backup.db", "agl log check --log kafka://localhost:9092/dev --json"),
)
@log_option()
@json_option
def check(url: str, token: str | None, as_json: bool) -> int:
    """Say whether the log is sound: structure, check sums, gaps, whether the control log folds, and whether the payloads and
    spans are there that its events refer to. Exit code 1 if not.

    On a Kafka it reads every topic to its end: settings of the control topic, gaps, and whether the control log folds.
    """
    if url.startswith(("kafka://", "http://", "https://")):
        with open_reading(url, token) as source:
            report = check_log(source)
    else:
        report = check_file(path_of(address_of(url)))
    if as_json:
        echo_json(msgspec.to_builtins(report))
    elif report.sound:
        events = counted(sum(report.records.values()), "record")
        click.echo(f"{report.path} is sound: {events}, position {report.position}, fingerprint {report.fingerprint}")
    else:
        click.echo(f"{report.path} is not sound:")
        for finding in report.findings:
            click.echo(f"  {printable(finding)}")
    return 0 if report.sound else 1


@log.command(
    short_help="Copy a log into a new one: a backup that can be opened at once.",
    epilog=examples("agl log copy .agl/log.db backup.db", "agl log copy kafka://localhost:9092/prod backup.db"),
)
@click.argument("source")
@click.argument("destination")
@token_option
@json_option
def copy(source: str, destination: str, token: str | None, as_json: bool) -> None:
    """Copy a log into a new one, also while a store writes SOURCE: a backup that can be opened at once.

    Either may be a file or on a Kafka, and SOURCE a store at http:// too. Topics of a Kafka are made by `agl kafka init`
    before, and have to be empty. A file has its name as soon as it is complete, and topics are marked until then: no store
    opens a part of a copy.
    """
    address = address_of(destination)
    with open_reading(source, token) as log_from:
        if address.startswith("sqlite:"):
            copied = copy_to_file(log_from, path_of(address))
        else:
            with open_log(address, environment=os.environ) as log_to:
                copied = copy_log(log_from, log_to)
    if as_json:
        echo_json({"destination": shown(address), "records": copied})
    else:
        total = ", ".join(f"{name} {count:,}" for name, count in copied.items() if count)
        click.echo(f"Copied to {shown(address)}: {total or 'an empty log'}")


def _as_dict(record: Record, view: View, raw: bool) -> dict[str, Any]:
    made = view.as_dict()
    if raw:
        made["body"] = None
        made["value"] = record.value.hex()
    return made


def _echo(record: Record, view: View, raw: bool, as_json: bool, with_topic: bool = False) -> None:
    if as_json:
        echo_json(_as_dict(record, view, raw))
        return
    where = f"{view.partition}:{view.position}" if view.partition else str(view.position)
    who = " ".join(view.rollout_ids[:2]) + (f" and {len(view.rollout_ids) - 2} more" if len(view.rollout_ids) > 2 else "")
    what = record.value.hex() if raw else _summary(view)
    parts = [f"{view.topic:8}" if with_topic else "", f"{where:>6}", when(view.time), f"{view.type:18}"]
    named = printable(who) if who else short(view.key, 60)
    click.echo(fit("  ".join(part for part in [*parts, f"{named:15}", what] if part).rstrip()))


def _summary(view: View) -> str:
    """The body in one line: an event without its envelope, a span by its name."""
    if view.problem:
        return f"cannot be read: {short(view.problem)}"
    body: Any = view.body
    if view.topic == CONTROL:
        event = {key: item for key, item in body["event"].items() if key not in ("t", "rollout_id")}
        return short(event) if event else ""
    if view.type == "span":
        span = mapping(body["span"]) or {}
        return short(f"{span.get('name', '?')} ({body['span_id']})")
    if view.topic == DEAD:
        return short(body.get("settled") or body["reason"])
    if view.topic in (FACTS, TASKS):
        return short(body["data"]) if body["data"] else ""
    return short(body)
