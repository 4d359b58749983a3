"""`agl lag`: how far the consumer groups of a log on Kafka are behind, partition by partition."""

from __future__ import annotations

import time
from typing import Any

import click
import msgspec

from ..core.errors import InvalidInput
from ..core.log.open_log import shown
from .log_source import open_reading
from .terminal import counted, echo_json, examples, json_lines_option, printable, table


@click.command(
    epilog=examples(
        "agl lag --log kafka://localhost:9092/dev", "agl lag --log kafka://localhost:9092/dev --group runners -f"
    )
)
@click.option("--log", "--store", "url", required=True, metavar="URL", help="The log on Kafka: kafka://host:9092/prefix.")
@click.option("--group", metavar="GROUP", help="One group only: runners, timekeeper, or a subscriber's.")
@click.option("-f", "--follow", is_flag=True, help="Print it again and again, until Ctrl+C.")
@click.option("--every", type=click.FloatRange(min=0.1), default=2.0, show_default=True, help="Seconds between with --follow.")
@json_lines_option
def lag(url: str, group: str | None, follow: bool, every: float, as_json: bool) -> None:
    """For each consumer group and partition: what was committed, where the partition ends, the lag, and who has it.

    The lag of `runners` counts hints, not rollouts: a runner that is idle claims what is queued without them.
    """
    if not url.startswith("kafka://"):
        raise InvalidInput(f"{shown(url)!r} has no consumer groups: they are a broker's; give kafka://host:9092/prefix")
    with open_reading(url) as log:
        source: Any = log
        while True:
            report = _report(source, group, must_exist=not follow)
            if as_json:
                echo_json(report)
            else:
                _print(report)
            if not follow:
                return
            time.sleep(every)


def _report(source: Any, group: str | None, must_exist: bool) -> dict[str, Any]:
    found: list[Any] = source.groups()
    if group is not None:
        known = [one.group for one in found]
        found = [one for one in found if one.group == group]
        if not found and must_exist:
            has = f"its groups are {', '.join(known)}" if known else "no process has joined one yet"
            raise InvalidInput(f"{source.url} has no group {group!r}; {has}")
    return {"log": source.url, "time": time.time(), "groups": msgspec.to_builtins(found)}


def _print(report: dict[str, Any]) -> None:
    if not report["groups"]:
        click.echo(f"No group reads {report['log']} yet.")
    for index, group in enumerate(report["groups"]):
        head = f"{printable(group['group'])}: {group['state']}, {counted(group['members'], 'member')}, lag {group['lag']:,}"
        click.echo(("\n" if index else "") + click.style(head, bold=True))
        rows = [
            (
                f"{place['topic']}[{place['partition']}]",
                "-" if place["committed"] is None else f"{place['committed']:,}",
                f"{place['end']:,}",
                f"{place['lag']:,}",
                printable(place["member"]) or "nobody",
            )
            for place in group["partitions"]
        ]
        click.echo("\n".join(table(rows, ("partition", "committed", "end", "lag", "member"), indent="  ")))
