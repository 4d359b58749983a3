"""The promises of the design, each by its name, on the embedded store."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.clock import ManualClock
from agentlightning.core.errors import LogFull
from agentlightning.core.fold.apply import fold
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.core.log.topics import CONTROL
from agentlightning.projections.store.memory_store import InMemoryLightningStore
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.open_store import open_store

from .tools import Unclosed, attempt_of, begin, claim, control_values, span, status_of

VICTIM = Path(__file__).with_name("victim.py")
SERVES_AGAIN_SECONDS = 3.0


@pytest.fixture
def store() -> Iterator[EventLogStore]:
    with InMemoryLightningStore() as store:
        yield store


class Acknowledged:
    """What the victims were told, over all their lives."""

    def __init__(self) -> None:
        self.lines: list[list[Any]] = []

    def one_life(self, path: Path, seconds: float) -> float:
        """Run a victim, kill it after `seconds` of work; return how long it took to serve."""
        process = subprocess.Popen([sys.executable, str(VICTIM), str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(seconds)
        process.kill()
        rest = process.stdout.read()
        process.wait()
        process.stdout.close()
        assert first, "the victim did not come up"
        self.lines += [json.loads(line) for line in rest.decode().splitlines(keepends=True) if line.endswith("\n")]
        return float(json.loads(first)[1])

    async def check(self, store: agl.LightningStore) -> None:
        """Everything acknowledged is there; every claim had one owner; every number was given once."""
        owners: dict[tuple[str, int], str] = {}
        numbers: dict[str, Counter[int]] = defaultdict(Counter)
        rollouts = {one.rollout_id: one for one in await store.query_rollouts()}
        for kind, subject, *rest in self.lines:
            if kind == "rollout":
                assert subject in rollouts
            elif kind == "claim":
                assert owners.setdefault((subject, rest[1]), rest[0]) == rest[0]
                assert rest[0] in [one.attempt_id for one in await store.query_attempts(subject)]
            elif kind == "span":
                numbers[subject][rest[1]] += 1
                (found,) = await store.query_spans(subject, span_id=rest[0])
                assert found.sequence_id == rest[1]
            elif kind == "end":
                ended = [one for one in await store.query_attempts(subject) if one.attempt_id == rest[0]]
                assert [one.status for one in ended] == [rest[1]]
            elif kind == "resources":
                assert await store.get_resources_by_id(subject, rest[0]) is not None
        assert all(count == 1 for given in numbers.values() for count in given.values())


async def _kill_again_and_again(path: Path, times: int) -> None:
    told, chance = Acknowledged(), random.Random(7)
    for _ in range(times):
        assert told.one_life(path, chance.uniform(0.02, 0.3)) <= SERVES_AGAIN_SECONDS
    began = time.perf_counter()
    store = open_store(f"sqlite:///{path}")
    assert isinstance(store, EventLogStore)
    with store:
        assert time.perf_counter() - began <= SERVES_AGAIN_SECONDS
        assert len(told.lines) > 20 * times
        await told.check(store)
        assert fold(control_values(store.engine.log)).fingerprint.hex() == store.fingerprint()[1]


async def test_durable_five_kills_lose_nothing(tmp_path: Path) -> None:
    await _kill_again_and_again(tmp_path / "log.db", 5)


@pytest.mark.chaos
@pytest.mark.slow
async def test_durable_a_hundred_kills_lose_nothing(tmp_path: Path) -> None:
    await _kill_again_and_again(tmp_path / "log.db", 100)


async def test_one_owner_of_every_attempt_among_64_claimers(store: EventLogStore) -> None:
    await store.enqueue_many_rollouts([agl.EnqueueRolloutRequest(input=number) for number in range(100)])

    async def claimer(number: int) -> list[agl.AttemptedRollout]:
        mine: list[agl.AttemptedRollout] = []
        while (one := await store.dequeue_rollout(f"w{number}", wait_seconds=0.3)) is not None:
            mine.append(one)
        return mine

    claimers = [asyncio.ensure_future(claimer(number)) for number in range(64)]
    for number in range(100):
        await store.enqueue_rollout(number)
    owned = [one for mine in await asyncio.gather(*claimers) for one in mine]
    assert len(owned) == 200
    assert len({one.rollout_id for one in owned}) == 200
    assert all(one.attempt.sequence_id == 1 for one in owned)


def test_one_owner_across_threads_and_event_loops(store: EventLogStore) -> None:
    from concurrent.futures import ThreadPoolExecutor

    async def claimer(number: int) -> list[str]:
        await store.enqueue_many_rollouts([agl.EnqueueRolloutRequest(input=n) for n in range(25)])
        mine: list[str] = []
        while (one := await store.dequeue_rollout(f"w{number}", wait_seconds=0.3)) is not None:
            mine.append(one.rollout_id)
            await store.update_attempt(one.rollout_id, "latest", status="succeeded")
        return mine

    with ThreadPoolExecutor(8) as pool:
        owned = [one for mine in pool.map(lambda n: asyncio.run(claimer(n)), range(8)) for one in mine]
    assert len(owned) == len(set(owned)) == 200
    rollouts = asyncio.run(store.wait_for_rollouts(owned, timeout=0))
    assert {one.status for one in rollouts} == {"succeeded"} and len(rollouts) == 200


async def test_one_outcome_each_generation(store: EventLogStore) -> None:
    attempted = await begin(store)
    statuses = ["succeeded", "failed", "timeout"] * 5
    facts = store.subscribe(["rollout.completed"])
    for generation in range(2):
        told = await asyncio.gather(
            *(store.update_attempt(attempted.rollout_id, attempted.attempt.attempt_id, status=one) for one in statuses),  # type: ignore[arg-type]
            store.update_attempt(attempted.rollout_id, attempted.attempt.attempt_id, status="failed"),
        )
        assert {one.status for one in told} == {"succeeded"}, "everybody is told the one outcome that there is"
        if generation == 0:
            attempted = await store.start_attempt(attempted.rollout_id)
    await store.update_rollout((await store.enqueue_rollout("mark")).rollout_id, status="cancelled")
    seen = [await asyncio.wait_for(facts.__anext__(), 5) for _ in range(3)]
    assert [(one.data["status"], one.rollout_id == attempted.rollout_id) for one in seen] == [
        ("succeeded", True), ("succeeded", True), ("cancelled", False),
    ]  # fmt: skip


async def test_same_log_same_state(store: EventLogStore) -> None:
    config = agl.RolloutConfig(max_attempts=2, retry_condition=["failed"])
    for number in range(20):
        await store.update_resources("r", {"p": str(number)})
        attempted = await begin(store, config if number % 2 else None, f"w{number % 3}")
        await store.add_span(span(attempted))
        await store.update_attempt(attempted.rollout_id, "latest", status="failed" if number % 3 else "succeeded")
        while await store.dequeue_rollout() is not None:
            pass
    values = control_values(store.engine.log)
    assert {fold(values).fingerprint.hex() for _ in range(2)} == {store.fingerprint()[1]}
    changed = [*values[:-1], values[-1][:-1] + bytes([values[-1][-1] ^ 1])]
    assert fold(changed).fingerprint.hex() != store.fingerprint()[1]


async def test_read_your_writes(store: EventLogStore) -> None:
    async def life(number: int) -> None:
        rollout = await store.enqueue_rollout(number)
        assert await store.get_rollout_by_id(rollout.rollout_id) == rollout
        started = await store.start_rollout(number)
        assert await store.get_rollout_by_id(started.rollout_id) == started
        stored = await store.add_span(span(started))
        assert list(await store.query_spans(started.rollout_id)) == [stored]
        assert await status_of(store, started.rollout_id) == "running"
        ended = await store.update_attempt(started.rollout_id, "latest", status="succeeded")
        assert await attempt_of(store, started.rollout_id) == ended
        assert len(await store.wait_for_rollouts([started.rollout_id], timeout=0)) == 1
        made = await store.add_resources({"p": str(number)})
        assert await store.get_resources_by_id(made.resources_id) == made
        changed = await store.update_rollout(rollout.rollout_id, metadata={"n": number})
        assert await store.get_rollout_by_id(rollout.rollout_id) == changed

    await asyncio.gather(*(life(number) for number in range(50)))


class _SlowSpans(Unclosed):
    """Reading spans takes a while, as behind a slow index."""

    def read_key(self, topic: str, key: str, **options: Any) -> Any:
        time.sleep(0.02)
        return self._log.read_key(topic, key, **options)


async def test_spans_before_completion() -> None:
    with EventLogStore(_SlowSpans(MemoryLog())) as store:  # type: ignore[arg-type]
        facts = store.subscribe(["rollout.completed"])
        acknowledged: dict[str, set[str]] = defaultdict(set)

        async def runner(number: int) -> None:
            attempted = await store.start_rollout(number)

            async def emit() -> None:
                stored = await store.add_span(span(attempted))
                assert stored is not None
                acknowledged[attempted.rollout_id].add(stored.span_id)

            await asyncio.gather(*(emit() for _ in range(5)))
            await store.update_attempt(attempted.rollout_id, "latest", status="succeeded")

        runners = [asyncio.ensure_future(runner(number)) for number in range(10)]
        for _ in runners:
            fact = await asyncio.wait_for(facts.__anext__(), 5)
            assert fact.rollout_id is not None
            found = {one.span_id for one in await store.query_spans(fact.rollout_id)}
            assert found == acknowledged[fact.rollout_id] and len(found) == 5
        await asyncio.gather(*runners)


async def test_work_conserving_an_idle_waiter_starts_within_50_ms(store: EventLogStore) -> None:
    delays: list[float] = []
    for _ in range(21):
        waiting = asyncio.ensure_future(claim(store, wait_seconds=10))
        await asyncio.sleep(0.005)
        began = time.perf_counter()
        await store.enqueue_rollout("now")
        await waiting
        delays.append(time.perf_counter() - began)
    assert sorted(delays)[10] < 0.05


async def test_work_conserving_whoever_leaves_passes_the_turn_on(store: EventLogStore) -> None:
    """Claimers give up at every moment; no rollout may stay queued while somebody waits for one."""
    chance = random.Random(3)
    started: set[str] = set()

    async def patient() -> None:
        while (one := await store.dequeue_rollout(wait_seconds=5)) is not None and one.input != "stop":
            started.add(one.rollout_id)

    async def hasty() -> None:
        for _ in range(60):
            try:
                one = await asyncio.wait_for(store.dequeue_rollout(wait_seconds=5), chance.uniform(0, 0.004))
            except asyncio.TimeoutError:
                continue
            if one is not None:
                started.add(one.rollout_id)

    patients = [asyncio.ensure_future(patient()) for _ in range(3)]
    hurried = [asyncio.ensure_future(hasty()) for _ in range(6)]
    made: set[str] = set()
    for number in range(200):
        made.add((await store.enqueue_rollout(number)).rollout_id)
        await asyncio.sleep(chance.choice([0, 0, 0.001]))
    await asyncio.gather(*hurried)
    for _ in range(500):
        if started == made:
            break
        await asyncio.sleep(0.01)
    assert started == made, "every rollout was started, those of claimers that had left too"
    for _ in patients:
        await store.enqueue_rollout("stop")
    await asyncio.wait_for(asyncio.gather(*patients), 5)


async def test_work_conserving_whoever_is_cancelled_while_being_woken_passes_the_turn_on(store: EventLogStore) -> None:
    """The loop stands still while the rollout arrives: the first in line is woken and cancelled in one turn of it."""
    leaving = asyncio.ensure_future(store.dequeue_rollout("leaves", wait_seconds=60))
    await asyncio.sleep(0.01)
    staying = asyncio.ensure_future(claim(store, "stays", wait_seconds=60))
    await asyncio.sleep(0.01)
    elsewhere = threading.Thread(target=lambda: asyncio.run(store.enqueue_rollout("x")))
    elsewhere.start()
    elsewhere.join()
    leaving.cancel()
    claimed = await asyncio.wait_for(staying, 5)
    assert leaving.cancelled() and (claimed.attempt.worker_id, claimed.attempt.sequence_id) == ("stays", 1)


class _RefusesOneClaim(Unclosed):
    """The disk is full just when a claim is to be written."""

    def __init__(self, log: MemoryLog) -> None:
        super().__init__(log)
        self.armed = False

    def append(self, topic: str, partition: int, records: Any, done: Any) -> None:
        if self.armed and topic == CONTROL and any(b"attempt.claimed" in one.value for one in records):
            self.armed = False
            threading.Timer(0.05, done, (LogFull("no room"),)).start()
        else:
            self._log.append(topic, partition, records, done)


async def test_work_conserving_a_claim_that_failed_wakes_the_next_in_line() -> None:
    log = _RefusesOneClaim(MemoryLog())
    with EventLogStore(log) as store:  # type: ignore[arg-type]
        await store.enqueue_rollout("x")
        log.armed = True
        failing = asyncio.ensure_future(store.dequeue_rollout("unlucky"))
        await asyncio.sleep(0.01)
        waiting = asyncio.ensure_future(claim(store, "next", wait_seconds=60))
        with pytest.raises(LogFull):
            await failing
        assert (await asyncio.wait_for(waiting, 5)).attempt.sequence_id == 1


async def test_time_is_an_event_reads_change_nothing() -> None:
    clock = ManualClock()
    with InMemoryLightningStore(clock=clock) as store:
        attempted = await begin(store, agl.RolloutConfig(timeout_seconds=1, unresponsive_seconds=1), "w")
        await store.add_span(span(attempted))
        rollout_id = attempted.rollout_id
        store.engine.expiry.close()  # the only one that may look at the clock
        before, end = store.fingerprint(), store.engine.log.ends(CONTROL, 0)
        for _ in range(3):
            clock.advance(100)
            clock.jump(86_400)
            await store.query_rollouts()
            await store.query_attempts(rollout_id)
            await store.query_spans(rollout_id)
            await store.query_workers()
            await store.query_resources()
            await store.get_rollout_by_id(rollout_id)
            await store.get_latest_attempt(rollout_id)
            await store.get_latest_resources()
            await store.get_worker_by_id("w")
            await store.wait_for_rollouts([rollout_id], timeout=0)
            await store.statistics()
            clock.jump(-86_400)
        assert (store.fingerprint(), store.engine.log.ends(CONTROL, 0)) == (before, end)
        assert await status_of(store, rollout_id) == "running"


def test_quiet_a_store_opens_no_socket(tmp_path: Path) -> None:
    program = f"""
import asyncio, sys
seen = []
async def main():
    import agentlightning as agl
    from agentlightning.rest.open_store import open_store
    sys.addaudithook(lambda event, args: seen.append(event) if event in
        ("socket.bind", "socket.connect", "socket.getaddrinfo", "socket.sendto") else None)
    for url in ("memory://", "sqlite:///{tmp_path}/log.db"):
        with open_store(url) as store:
            await store.enqueue_rollout(1)
            await store.dequeue_rollout("w")
asyncio.run(main())
print(seen)
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (told.stdout, told.stderr) == ("[]\n", "")
