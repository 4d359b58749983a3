"""`agl kafka`: the topics of a log on Apache Kafka, made once and checked every time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import click

from ..core.errors import InvalidInput
from ..core.log.open_log import shown
from .log_source import quieten_clients
from .terminal import announce, echo_json, examples, json_option, table


@click.group()
def kafka() -> None:
    """Make the topics of a log on Apache Kafka."""


@kafka.command(
    short_help="Make the topics that are missing, check those that are there.",
    epilog=examples(
        "agl kafka init --log kafka://localhost:9092/dev",
        "agl kafka init --log kafka://localhost:9092/prod --partitions spans=32",
    ),
)
@click.option("--log", "--store", "url", required=True, metavar="URL", help="Where the log is to be: kafka://host:9092/prefix.")
@click.option("--partitions", "counts", multiple=True, metavar="TOPIC=N",
              help="Partitions of a new topic, such as spans=32; repeatable. Fixed for the life of the log.")  # fmt: skip
@click.option("--replication", type=click.IntRange(1, 32767), metavar="N",
              help="Copies of each new partition; 3 if left out, or as many as there are brokers.")  # fmt: skip
@json_option
def init(url: str, counts: tuple[str, ...], replication: int | None, as_json: bool) -> None:
    """Make the topics of a log that are missing, with the settings that a log needs. What is there is checked, not changed.

    May be run any number of times, also while stores run. Refuses a control topic that is compacted, that forgets old events,
    or whose offsets have holes, as transactions leave them.
    """
    report = make_topics(url, _counts(counts), replication)
    if as_json:
        echo_json(report)
        return
    for notice in report["notices"]:
        announce(f"Notice: {notice}.")
    rows = [
        (
            row["name"],
            str(row["partitions"]),
            "made" if row["made"] else f"was there, not with {row['asked']} partitions" if row["differs"] else "was there",
        )
        for row in report["topics"]
    ]
    click.echo("\n".join(table(rows, ("topic", "partitions", ""))))
    click.echo(f"The log {report['log']} is ready.")


def make_topics(url: str, counts: dict[str, int] | None = None, replication: int | None = None) -> dict[str, Any]:
    """Call `topic_setup.make_topics` for a URL and report it: log, notices, and topics by their fields."""
    if not url.startswith("kafka://"):
        raise InvalidInput(f"{shown(url)!r} is not the address of a log on Kafka; it looks like kafka://host:9092/prefix")
    from ..core.log.kafka import KafkaAddress
    from ..core.log.kafka.topic_setup import make_topics as make

    quieten_clients()
    address = KafkaAddress.parse(url, os.environ)
    rows, notices = asyncio.run(make(address, counts, replication))
    topics = [{**asdict(row), "differs": row.differs} for row in rows]
    return {"log": address.url, "topics": topics, "notices": list(notices)}


def _counts(texts: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for text in texts:
        name, equals, number = text.partition("=")
        if not equals or not number.isdigit():
            raise click.BadParameter(f"{text!r} is not of the form TOPIC=N, such as spans=32", param_hint="--partitions")
        counts[name] = int(number)
    return counts
