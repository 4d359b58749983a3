"""What a process derives from the topics: it never holds up the log, and is made again where it fails."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from agentlightning.core.errors import StorageError
from agentlightning.core.log.kafka import KafkaLog
from agentlightning.core.log.kafka.appender import Appender
from agentlightning.core.log.topics import BLOBS, CONTROL
from tests.core.log.log_contract import Answer, append, new, until, values

from .test_kafka_log import make_topics


def test_a_control_append_does_not_wait_for_blobs(kafka_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Appender._write

    async def held(appender: Appender, *args: Any) -> Any:
        if appender.topic.endswith(".blobs"):
            await asyncio.wait_for(free.wait(), 20)
        return await write(appender, *args)

    log: Any = KafkaLog(make_topics(kafka_url))
    with log:
        free = asyncio.Event()
        monkeypatch.setattr(Appender, "_write", held)
        blob = Answer()
        log.append(BLOBS, 0, [new(1)], blob)
        append(log, CONTROL, new(2))
        assert not blob.outcomes
        log._loop.loop.call_soon_threadsafe(free.set)
        blob.wait()
        # A client sends a server one request at a time: a blob under way must not be on the client of the events.
        assert log._bulk_producer._client is not None
        assert log._bulk_producer._client is not log._producer._client


def test_a_copy_that_fails_under_a_running_log_is_made_anew(kafka_url: str, tmp_path: Path) -> None:
    address = make_topics(kafka_url)
    with KafkaLog(f"{kafka_url}?state={tmp_path}") as log:
        append(log, BLOBS, new(1, "a"))
        assert values(log.read(BLOBS, 0, 0)) == [b"1"]
        other = sqlite3.connect(tmp_path / f"{address.prefix}.blobs.db")
        other.execute("DROP TABLE p0")
        other.commit()
        other.close()
        append(log, BLOBS, new(2, "b"))  # the copy meets the error while it writes

        def whole() -> bool:
            try:
                return values(log.read(BLOBS, 0, 0)) == [b"1", b"2"]
            except StorageError:
                return False

        until(whole)


def test_a_copy_that_cannot_be_opened_is_made_anew(kafka_url: str, tmp_path: Path) -> None:
    address = make_topics(kafka_url)
    (tmp_path / f"{address.prefix}.blobs.db").write_bytes(b"no database" * 1000)
    with KafkaLog(f"{kafka_url}?state={tmp_path}") as log:
        append(log, BLOBS, new(1, "a"))
        assert values(log.read(BLOBS, 0, 0)) == [b"1"]
