"""Addresses of logs, and copies from one log to another."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.algorithms.trainer.components import StoreHandle
from agentlightning.core.errors import InvalidInput, StorageError
from agentlightning.core.log.interface import Record
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.core.log.log_copy import copy_log
from agentlightning.core.log.open_log import open_log
from agentlightning.core.log.sqlite import ReadOnlyLog, SqliteLog
from agentlightning.core.log.topics import CONTROL, LIVENESS, SPANS, partition_of

from .log_contract import SpreadLog, append, new, values


def test_a_relative_address_makes_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_log("sqlite:///./.agl/deep/log.db") as log:
        assert isinstance(log, SqliteLog)
        append(log, CONTROL, new(1))
    assert (tmp_path / ".agl/deep/log.db").is_file()


def test_an_absolute_address_has_a_fourth_slash(tmp_path: Path) -> None:
    with open_log(f"sqlite:///{tmp_path}/log.db") as log:
        append(log, CONTROL, new(1))
    with open_log(f"sqlite:///{tmp_path}/log.db", readonly=True) as view:
        assert isinstance(view, ReadOnlyLog) and values(view.read(CONTROL, 0, 0)) == [b"1"]


def test_the_address_is_what_the_log_says_it_is(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/log.db"
    with open_log(url) as log, open_log(url, readonly=True) as view:
        assert log.url == view.url == url


def test_looking_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no log at"):
        open_log(f"sqlite:///{tmp_path}/new/log.db", readonly=True)
    assert list(tmp_path.iterdir()) == []


def test_memory_is_an_address_too() -> None:
    with open_log("memory://") as log:
        assert isinstance(log, MemoryLog) and log.url.startswith("memory://")


@pytest.mark.parametrize("url", ["", "log.db", "sqlite:log.db", "sqlite://log.db", "sqlite:///", "mongodb://host", "http://x"])
def test_another_form_is_refused_with_the_accepted_ones(url: str) -> None:
    with pytest.raises(InvalidInput) as told:
        open_log(url)
    assert "sqlite:///" in str(told.value) and "memory://" in str(told.value)


def test_a_kafka_that_is_not_there_is_one_sentence() -> None:
    for readonly in (False, True):
        with pytest.raises(StorageError, match="Kafka at 127.0.0.1:1 cannot be used"):
            open_log("kafka://127.0.0.1:1/prefix?wait_seconds=0.2", readonly=readonly)


def without_place(records: list[Record]) -> list[tuple[str, bytes, int, object]]:
    return [(one.key, one.value, one.timestamp_us, one.headers) for one in records]


def test_a_copy_has_every_record_in_order_and_an_id_of_its_own(tmp_path: Path) -> None:
    with MemoryLog() as source, SqliteLog(tmp_path / "log.db") as target, SpreadLog(3) as spread:
        append(source, CONTROL, *(new(number, headers=(("type", str(number)),)) for number in range(5000)))
        append(source, SPANS, *(new(number, f"ro-{number % 7}") for number in range(100)))
        append(source, LIVENESS, *(new(number, f"w{number % 3}") for number in range(30)))
        copied = copy_log(source, target)
        assert copied[CONTROL] == 5000 and copied[SPANS] == 100 and copied[LIVENESS] == 3
        assert list(target.read(CONTROL, 0, 0, 5000)) == list(source.read(CONTROL, 0, 0, 5000))
        assert list(target.read(SPANS, 0, 0)) == list(source.read(SPANS, 0, 0))
        assert target.log_id != source.log_id
        copy_log(target, spread)
        for key in [f"ro-{number}" for number in range(7)]:
            found = spread.read_key(SPANS, key)
            assert {record.partition for record in found} == {partition_of(key, 3)}
            assert without_place(list(found)) == without_place(list(source.read_key(SPANS, key)))


@pytest.mark.parametrize(
    "address",
    [None, 5, b"sqlite:///x", "", "x.db", "sqlite:///", "sqlite:///:memory:", "sqlite://x.db", "sqlite:///~nobody-here/x.db",
     "sqlite:///a\0b", "ftp://x", object()],
)  # fmt: skip
def test_what_is_no_address_is_refused_with_a_sentence(address: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for opens in (open_log, agl.open_store, lambda given: agl.Replayer(given) if isinstance(given, str) else open_log(given)):
        with pytest.raises(InvalidInput, match="address") as refused:
            opens(address)
        assert "\n" not in refused.value.message
    assert list(tmp_path.iterdir()) == []


async def test_a_path_is_the_address_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    store: Any = agl.open_store(tmp_path / "x.db")
    await store.enqueue_rollout("one")
    store.close()
    store = agl.open_store("sqlite:///~/x.db")
    assert [one.input for one in await store.query_rollouts()] == ["one"]
    store.close()
    with pytest.raises(InvalidInput, match="not PosixPath" if os.name == "posix" else "not "):
        agl.LightningStoreClient(tmp_path)  # type: ignore[arg-type]
    kept: Any = StoreHandle(tmp_path / "x.db").get()
    assert kept.engine.log.path == (tmp_path / "x.db").resolve()
    kept.close()


def test_a_copy_goes_into_an_empty_log_only() -> None:
    with MemoryLog() as source, MemoryLog() as target:
        append(source, CONTROL, new(1))
        append(target, SPANS, new(2))
        with pytest.raises(InvalidInput, match="empty"):
            copy_log(source, target)
        assert target.ends(CONTROL, 0) == (0, 0)


def test_a_place_where_nothing_can_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match="folder .* cannot be made: "):
        SqliteLog(tmp_path / "file" / "log.db")
    (tmp_path / "log.db.lock").mkdir()
    with pytest.raises(StorageError, match="log.db.lock is not a file"):
        SqliteLog(tmp_path / "log.db")
