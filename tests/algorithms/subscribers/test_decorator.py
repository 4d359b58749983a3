"""Subscribers: marked functions, retries with back-off, dead letters, and a position that survives."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.algorithms.subscribers import consumers as following
from agentlightning.algorithms.subscribers.consumers import Cursor, GroupFollower, follow_store
from agentlightning.algorithms.subscribers.decorator import Subscriber, load_subscriber
from agentlightning.algorithms.subscribers.delivery import Delivered, Delivery, Stopped
from agentlightning.core.errors import LogError
from agentlightning.core.log.dead_letter import DeadLetter
from agentlightning.core.log.interface import Record
from agentlightning.core.model.rollout import Fact
from agentlightning.rest.open_store import open_store


class Flag(asyncio.Event):
    """A stop flag without signals."""


def fact(position: int = 7, index: int = 0, kind: str = "rollout.completed") -> Fact:
    return Fact(
        id=f"{position}/{index}", type=kind, position=position, log_id="log", time=1.0, rollout_id=f"ro-{position}"
    )


def delivery_for(func: Any, **more: Any) -> tuple[Delivery, list[DeadLetter]]:
    buried: list[DeadLetter] = []

    async def add_dead_letter(letter: DeadLetter) -> None:
        buried.append(letter)

    made: dict[str, Any] = {"name": "m:f", "group": "g", "stop": Flag(), "add_dead_letter": add_dead_letter}
    made = {**made, "backoff_seconds": 0.01, **more}
    return Delivery(func if isinstance(func, Subscriber) else Subscriber(func, ()), **made), buried


async def test_a_marked_function_stays_a_function_and_is_handed_its_facts() -> None:
    seen: list[Any] = []

    @agl.subscriber("rollout.completed")
    def plain(fact: Fact) -> str:
        """Doc."""
        seen.append(fact.id)
        return "value"

    @agl.subscriber("rollout.completed", "attempt.late")
    async def with_store(fact: Fact, store: Any) -> None:
        seen.append((fact.id, store))

    assert plain(fact()) == "value" and plain.__name__ == "plain" and plain.__doc__ == "Doc."
    assert (plain.wants_store, with_store.wants_store) == (False, True)
    assert plain.wants(fact()) and not plain.wants(fact(kind="attempt.late"))
    assert with_store.wants(fact(kind="attempt.late"))
    await plain.take(fact(8), "the store")
    await with_store.take(fact(9), "the store")
    assert seen == ["7/0", "8/0", ("9/0", "the store")]


def test_without_types_it_gets_every_fact_and_wrong_marks_are_refused() -> None:
    @agl.subscriber
    def every(fact: Fact, limit: int = 3) -> None: ...

    assert every.wants(fact(kind="whatever")) and not every.wants_store
    with pytest.raises(agl.InvalidInput, match="takes 3 arguments"):

        @agl.subscriber("x")
        def three(a: Any, b: Any, c: Any) -> None: ...

    with pytest.raises(agl.InvalidInput, match="names types of facts"):
        agl.subscriber(3)  # type: ignore[call-overload]


def test_a_subscriber_is_found_by_name_and_told_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "subs.py"
    file.write_text(
        "import agentlightning as agl\n\n@agl.subscriber('a.b')\ndef on(fact): ...\n\ndef unmarked(fact): ...\n"
    )
    assert load_subscriber(f"{file}:on").types == ("a.b",)
    for spec, words in (
        (f"{file}:unmarked", "mark the function with @agl.subscriber"),
        (f"{file}:missing", "has no 'missing'"),
        ("nothing", "A subscriber is named as module:function"),
        ("no.such.module:on", "There is no module"),
    ):
        with pytest.raises(agl.InvalidInput, match=words):
            load_subscriber(spec)


async def test_what_raises_is_tried_again_with_longer_pauses_and_then_given_up() -> None:
    calls: list[float] = []
    on_delivered: list[Delivered] = []

    def never(fact: Fact) -> None:
        calls.append(time.monotonic())
        raise ValueError("no, never")

    delivery, buried = delivery_for(never, retries=3, backoff_seconds=0.05, on_delivered=on_delivered.append)
    delivered = await delivery.deliver(fact())
    assert len(calls) == 4 and delivered.tries == 4 and on_delivered == [delivered]
    pauses = [later - earlier for earlier, later in zip(calls, calls[1:])]
    assert all(pause >= least for pause, least in zip(pauses, (0.05, 0.1, 0.2)))
    (letter,) = buried
    assert (letter.id, letter.kind, letter.source) == ("subscriber/g/7/0", "subscriber", "g")
    assert (letter.reason, letter.tries, letter.rollout_id, letter.position) == ("ValueError: no, never", 4, "ro-7", 7)
    assert letter.data == {"function": "m:f", "fact": fact().model_dump(mode="json")}


async def test_a_store_that_is_away_costs_no_try() -> None:
    errors = [agl.StoreUnreachable("away")] * 4 + [ValueError("once")]

    def sometimes(fact: Fact) -> None:
        if errors:
            raise errors.pop(0)

    delivery, buried = delivery_for(sometimes, retries=1)
    assert (await delivery.deliver(fact())).tries == 2
    assert buried == []


async def test_it_stops_between_two_tries_and_never_passes_over_a_fact_without_its_letter() -> None:
    def never(fact: Fact) -> None:
        raise ValueError("no")

    stop = Flag()
    delivery, buried = delivery_for(never, retries=9, backoff_seconds=10, stop=stop)
    asyncio.get_running_loop().call_later(0.05, stop.set)
    with pytest.raises(Stopped):
        await asyncio.wait_for(delivery.deliver(fact()), 5)
    assert buried == []

    tries: list[int] = []

    async def away(letter: DeadLetter) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise agl.StoreUnreachable("away")

    delivery, _ = delivery_for(never, retries=0, add_dead_letter=away)
    assert (await delivery.deliver(fact())).error == "ValueError: no" and len(tries) == 3


def test_a_cursor_remembers_the_facts_of_its_newest_position(tmp_path: Path) -> None:
    cursor = Cursor(tmp_path, "g")
    assert cursor.open("log") == -2
    cursor.keep(fact(7, 0))
    cursor.close()
    again = Cursor(tmp_path, "g")
    assert again.open("log") == 6  # behind 6: the other facts of position 7 come
    assert again.has(fact(7, 0)) and again.has(fact(3)) and not again.has(fact(7, 1)) and not again.has(fact(8))
    again.close()
    other = Cursor(tmp_path, "g")
    assert other.open("another log") == -2 and not other.has(fact(3))
    other.close()
    (tmp_path / "g.json").write_text("{")
    damaged = Cursor(tmp_path, "g")
    with pytest.raises(agl.InvalidInput, match="is damaged"):
        damaged.open("log")
    damaged.close()


def test_a_group_without_a_kafka_is_one_process(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from agentlightning.algorithms.subscribers.consumers import Cursor; "
        "held = Cursor(pathlib.Path(sys.argv[1]), 'g'); print('has it', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "has it\n"
        with pytest.raises(agl.InvalidInput, match=f"handled by process {other.pid} already"):
            Cursor(tmp_path, "g")
    finally:
        other.kill()
        other.communicate()
    Cursor(tmp_path, "g").close()


@pytest.mark.parametrize("kind", ["memory", "sqlite", "http"])
async def test_facts_are_handed_over_once_and_positions_resume(kind: str, tmp_path: Path) -> None:
    opened: Any = open_store("memory://" if kind == "memory" else f"sqlite:///{tmp_path}/log.db")
    server = agl.LightningStoreServer(opened, port=0)
    await server.start()
    store: Any = agl.LightningStoreClient(server.endpoint) if kind == "http" else opened
    seen: list[str | None] = []
    try:
        for number in range(6):
            await finish(store, f"input {number}")
        await run_until(store, tmp_path, seen, 3)
        assert len(seen) == 3
        await finish(store, "late")
        await run_until(store, tmp_path, seen, 7)
        assert len(seen) == len(set(seen)) == 7
    finally:
        if kind == "http":
            await store.close()
        await server.stop()
        await asyncio.to_thread(opened.close)


class Member:
    """A membership that delivers some records once, and writes down what is asked of it."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records
        self.asked: list[str] = []
        self.committed: list[int] = []
        self.lost = False

    def poll(self, most: int, seconds: float) -> list[Record]:
        self.asked.append("poll")
        if "pause" in self.asked and "resume" not in self.asked:
            return []
        found, self.records = self.records, []
        return found

    def commit(self, topic: str, partition: int, offset: int) -> None:
        if self.lost:
            raise LogError("not ours any more")
        self.committed.append(offset)

    def assignment(self) -> set[tuple[str, int]]:
        return set() if self.lost else {("facts", 0)}

    def pause(self) -> None:
        self.asked.append("pause")

    def resume(self) -> None:
        self.asked.append("resume")

    def close(self) -> None: ...


def follower(member: Member, func: Any, stop: Flag) -> GroupFollower:
    delivery, _ = delivery_for(func, stop=stop)
    log: Any = SimpleNamespace(join=lambda *_: member)
    return GroupFollower(log, delivery, "m")


def published(*facts: Fact) -> list[Record]:
    return [Record("facts", 0, at, "k", one.model_dump_json().encode(), 0) for at, one in enumerate(facts)]


async def test_a_group_commits_what_was_taken_and_drops_what_publishers_repeat() -> None:
    member = Member(published(fact(3), fact(5, 0, "attempt.late"), fact(5, 1), fact(3), fact(5, 1), fact(6)))
    seen: list[str] = []
    stop = Flag()

    @agl.subscriber("rollout.completed")
    async def on(fact: Fact) -> None:
        seen.append(fact.id)
        if fact.position == 6:
            stop.set()

    await asyncio.wait_for(follower(member, on, stop).run(), 10)
    assert seen == ["3/0", "5/1", "6/0"]
    assert member.committed == [1, 3, 6]


async def test_what_went_to_another_member_is_left_to_it() -> None:
    member = Member(published(fact(3), fact(4)))
    seen: list[str] = []
    stop = Flag()

    def on(fact: Fact) -> None:
        seen.append(fact.id)
        member.lost = True
        loop.call_soon_threadsafe(loop.call_later, 0.2, stop.set)

    loop = asyncio.get_running_loop()
    await asyncio.wait_for(follower(member, on, stop).run(), 10)
    assert seen == ["3/0"] and member.committed == []


async def test_a_function_that_takes_long_stays_a_member(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "STAY_SECONDS", 0.05)
    member = Member(published(fact(3), fact(4)))
    stop = Flag()

    def on(fact: Fact) -> None:
        if fact.position == 3:
            time.sleep(0.3)
        else:
            loop.call_soon_threadsafe(stop.set)

    loop = asyncio.get_running_loop()
    await asyncio.wait_for(follower(member, on, stop).run(), 10)
    assert member.asked[:4] == ["poll", "pause", "poll", "poll"] and member.asked.count("resume") == 1
    assert member.committed == [1, 2]


async def finish(store: Any, given: str) -> None:
    begun = await store.start_rollout(given, worker_id="w")
    await store.update_attempt(begun.rollout_id, begun.attempt.attempt_id, status="succeeded")


async def run_until(store: Any, folder: Path, seen: list[str | None], count: int) -> None:
    """One life of a subscriber: it is asked to stop while it handles fact number `count`."""
    stop = Flag()

    @agl.subscriber("rollout.completed")
    def on(fact: Fact) -> None:
        seen.append(fact.rollout_id)
        if len(seen) == count:
            loop.call_soon_threadsafe(stop.set)
            time.sleep(0.05)

    loop = asyncio.get_running_loop()
    delivery, _ = delivery_for(on, stop=stop)
    cursor = Cursor(folder / "state", "g")
    try:
        await asyncio.wait_for(follow_store(store, delivery, cursor), 30)
    finally:
        cursor.close()
    assert json.loads(cursor.path.read_text())["position"] > 0
