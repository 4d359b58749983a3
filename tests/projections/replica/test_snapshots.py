"""Snapshots: whole or ignored, whoever wrote them, wherever the writer died, however much was compacted."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from random import Random
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from agentlightning.core.events.codec import encode
from agentlightning.core.events.payload import encode as payload
from agentlightning.core.events.schema import NewRollout, Proposal
from agentlightning.core.fold import commands
from agentlightning.core.fold.apply import apply
from agentlightning.core.fold.state import State, dump, load
from agentlightning.core.ids import uuid7_hex
from agentlightning.core.log.interface import NewRecord
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.core.log.topics import CONTROL, SNAPSHOTS
from agentlightning.projections.replica import snapshots
from agentlightning.projections.replica.snapshots import StateImage, read_snapshot, write_snapshot

from ...core.fold.strategies import World


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "CHUNK_BYTES", 100)


def append(log: MemoryLog, topic: str, records: Sequence[NewRecord]) -> None:
    """Append and wait."""
    done = threading.Event()
    log.append(topic, 0, records, lambda _: done.set())
    assert done.wait(5)


class Writer:
    """Folds and writes what it folds, with snapshots whenever it is told."""

    def __init__(self, log: MemoryLog, name: str) -> None:
        self.log, self.name, self.state = log, name, State()

    def more(self, count: int) -> None:
        for _ in range(count):
            position = self.state.position
            event = (
                commands.open_log(1000, 1000, 1)
                if position == 0
                else commands.enqueue([NewRollout(commands.rollout_id_of(uuid7_hex()), msgspec.Raw(payload({"at": position})))])
            )
            proposal = Proposal(
                id=uuid7_hex(), time_us=position, writer=self.name, basis=position - 1,
                basis_print=self.state.fingerprint, event=event,
            )  # fmt: skip
            value = encode(proposal)
            assert apply(self.state, value).accepted
            append(self.log, CONTROL, [NewRecord("", value, 0)])

    def snapshot(self, log: object = None) -> None:
        state = self.state
        at = (state.position, state.position, state.fingerprint)
        write_snapshot(log or self.log, self.name, dump(state), at)  # type: ignore[arg-type]
        append(self.log, "dead", [NewRecord("barrier", b"", 0)])


class Dying:
    """Takes `left` appends and loses the rest."""

    def __init__(self, log: MemoryLog, left: int) -> None:
        self._log, self.left, self.lost = log, left, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)

    def append(self, topic: str, partition: int, records: Sequence[NewRecord], done: object) -> None:
        self.left -= 1
        if self.left >= 0:
            self._log.append(topic, partition, records, done)  # type: ignore[arg-type]
        else:
            self.lost += 1


def test_what_was_written_comes_back() -> None:
    with MemoryLog() as log:
        assert read_snapshot(log) is None
        writer = Writer(log, "a")
        writer.more(50)
        writer.snapshot()
        restored = read_snapshot(log)
        assert restored is not None and restored.next_offset == 50
        assert dump(restored.state) == dump(writer.state)


def test_a_crash_at_each_chunk_leaves_the_snapshot_before() -> None:
    for crash in range(1000):
        with MemoryLog() as log:
            writer = Writer(log, "a")
            writer.more(20)
            writer.snapshot()
            writer.more(20)
            dying = Dying(log, crash)
            writer.snapshot(dying)
            restored = read_snapshot(log)
            assert restored is not None
            if dying.lost == 0:
                assert crash > 5 and restored.state.position == 40
                return
            assert restored.state.position == 20, f"died after {crash} appends"
    pytest.fail("the snapshot never ended")


def test_two_writers_do_not_harm_each_other() -> None:
    with MemoryLog() as log:
        first = Writer(log, "a")
        second = Writer(log, "b")
        for _ in range(6):
            first.more(10)
            for record in log.read(CONTROL, 0, second.state.position):
                apply(second.state, record.value)
            first.snapshot()
            dying = Dying(log, 2)
            second.snapshot(dying)
            restored = read_snapshot(log)
            assert restored is not None and dump(restored.state) == dump(first.state)
            second.snapshot()
            restored = read_snapshot(log)
            assert restored is not None and dump(restored.state) == dump(first.state)


@pytest.mark.parametrize("victim", ["chunk", "missing chunk", "manifest"])
def test_an_altered_snapshot_is_ignored_for_the_one_before_and_then_for_none(victim: str) -> None:
    with MemoryLog() as log:
        writer = Writer(log, "a")
        for _ in range(2):
            writer.more(20)
            writer.snapshot()
        for expected in (20, None):
            records = log.read(SNAPSHOTS, 0, 0)
            newest = [one for one in records if ("manifest" in one.key) == (victim == "manifest") and one.value]
            target = max(newest, key=lambda one: one.offset)
            value = b"" if victim == "missing chunk" else b"x" + target.value[1:]
            append(log, SNAPSHOTS, [NewRecord(target.key, value, 0)])
            restored = read_snapshot(log)
            if expected is None and victim != "manifest":
                assert restored is None or restored.state.position == 20
            elif expected is None:
                continue
            else:
                assert restored is not None and restored.state.position == expected


def test_a_snapshot_of_another_log_or_ahead_of_its_log_is_ignored() -> None:
    with MemoryLog() as log, MemoryLog() as other:
        writer = Writer(log, "a")
        writer.more(20)
        writer.snapshot()
        copied = [NewRecord(one.key, one.value, 0) for one in log.read(SNAPSHOTS, 0, 0)]
        append(other, SNAPSHOTS, copied)
        assert read_snapshot(other) is None
        other.log_id = log.log_id
        assert read_snapshot(other) is None, "its log ends before the snapshot"
        append(other, CONTROL, [NewRecord("", one.value, 0) for one in log.read(CONTROL, 0, 0)])
        assert read_snapshot(other) is not None


def test_a_snapshot_of_another_history_of_the_same_log_is_ignored() -> None:
    with MemoryLog() as log, MemoryLog() as other:
        writer, elsewhere = Writer(log, "a"), Writer(other, "a")
        writer.more(20)
        writer.snapshot()
        elsewhere.more(30)  # as many records and more, but not these
        other.log_id = log.log_id
        append(other, SNAPSHOTS, [NewRecord(one.key, one.value, 0) for one in log.read(SNAPSHOTS, 0, 0)])
        assert read_snapshot(log) is not None
        assert read_snapshot(other) is None


def test_a_snapshot_ahead_of_its_log_is_not_written() -> None:
    with MemoryLog() as log, MemoryLog() as shorter:
        writer = Writer(log, "a")
        writer.more(20)
        writer.snapshot(shorter)
        assert shorter.ends(SNAPSHOTS, 0)[1] == 0


def test_old_snapshots_leave_nothing_behind() -> None:
    with MemoryLog() as log:
        writer = Writer(log, "a")
        for _ in range(8):
            writer.more(5)
            writer.snapshot()
        live = [one.key for one in log.read(SNAPSHOTS, 0, 0) if one.value and "manifest" not in one.key]
        assert {key.split("/")[0] for key in live} == {"35", "40"}, "two snapshots are kept"


@pytest.mark.parametrize("seed", range(40))
def test_an_image_that_was_made_while_the_node_went_on_is_the_state_of_one_moment(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, rng = World(seed).run(150), Random(seed)
    node: Any = SimpleNamespace(lock=threading.RLock(), listeners=[], state=world.state, next_offset=7)

    def heard(_: State, outcome: Any) -> None:
        for listener in node.listeners:
            listener(outcome)

    before = world.state.position
    moments: dict[int, tuple[bytes, bytes]] = {}

    def goes_on(_: float) -> None:
        world.run(rng.choice((0, 0, 1, 5)) if world.state.position > before else 1)
        moments[world.state.position] = (world.state.fingerprint, dump(world.state))

    monkeypatch.setattr(world.watch, "see", heard)
    monkeypatch.setattr(snapshots, "SLICE_ROLLOUTS", rng.choice((1, 3, 8)))
    monkeypatch.setattr(snapshots.time, "sleep", goes_on)
    image, (position, offset, fingerprint) = StateImage(node).make()
    assert position > before and offset == 7
    assert (fingerprint, image) == moments[position] and dump(load(image)) == image
    assert node.listeners == []
    world.run(20)
    assert dump(load(image)) == image, "what is folded later does not reach into it"
