"""Where a subscriber's facts come from: a store's subscription with a position in a file, or a consumer group."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import InvalidInput, LogError, LogLocked, StorageError
from ...core.log.dead_letter import RECORD, DeadLetter, record_letter_id
from ...core.log.interface import Log, Membership, Record
from ...core.log.open_log import open_log
from ...core.log.private_files import make_folder, make_private
from ...core.log.sqlite.writer_lock import WriterLock
from ...core.log.topics import FACTS
from ...core.model.rollout import Fact
from ...projections.store.dead_letters import write_letter
from ...rest.client.client import LightningStoreClient
from ...rest.open_store import open_store
from ...runners.stop_events import ThreadingEvent, until_set
from .decorator import Subscriber
from .delivery import AddDeadLetter, Delivered, Delivery, Stopped

logger = logging.getLogger(__name__)

BATCH_FACTS = 64
POLL_SECONDS = 0.5
STAY_SECONDS = 30.0
"""A member that polls nothing for five minutes loses its partitions; a function that takes long must not cost them."""

MakeDelivery = Callable[[AddDeadLetter, Any], Delivery]
"""Of a delivery with its dead letters and the store that is given to the function."""


class Cursor:
    """How far a subscriber came, in a file of its own: `<folder>/<group>.json`.

    It lies with the subscriber and not in the store: a store over HTTP or in a file has no consumer groups, and who has
    the effects should keep what says that they happened. Facts of one command share a position, so the ids of those that
    were taken at the newest position are kept too. Raises `InvalidInput` where another process has the group.
    """

    def __init__(self, folder: Path, group: str) -> None:
        make_folder(folder)
        self.path = folder / f"{group}.json"
        try:
            self._lock = WriterLock(self.path)
        except LogLocked as error:
            raise InvalidInput(
                f"group {group!r} is handled by process {error.pid} already; a store without a Kafka gives a group one process"
            ) from None
        self.position = -1
        self._log_id = ""
        self._ids: list[str] = []

    def open(self, log_id: str) -> int:
        """Read the file, and return what to subscribe `since`. A position of another log does not count: -1."""
        self._log_id = log_id
        try:
            kept = json.loads(self.path.read_bytes())
            if kept["log_id"] == log_id:
                self.position, self._ids = int(kept["position"]), [str(one) for one in kept["ids"]]
            else:
                logger.warning("%s belongs to another log; this one is read from its start.", self.path)
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(f"{self.path} is damaged ({error}); delete it to begin at the start of the log") from error
        return self.position - 1

    def has(self, fact: Fact) -> bool:
        """Whether this fact was taken before."""
        return fact.position < self.position or fact.id in self._ids

    def keep(self, fact: Fact) -> None:
        """Note that a fact was taken; returns when that survives a crash of this machine."""
        if fact.position != self.position:
            self.position, self._ids = fact.position, []
        self._ids.append(fact.id)
        text = json.dumps({"log_id": self._log_id, "position": self.position, "ids": self._ids})
        beside = self.path.with_suffix(".new")
        make_private(beside)
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self.path)

    def close(self) -> None:
        """Let go of the group."""
        self._lock.release()


async def follow_store(store: Any, delivery: Delivery, cursor: Cursor) -> None:
    """Deliver what the store's subscription brings, from the cursor on, until `delivery.stop` is set."""
    await store.statistics()  # an HTTP store says where it is with its first answer
    log_id = str(store.position()).partition(":")[0]
    since = await asyncio.to_thread(cursor.open, log_id)
    facts = store.subscribe(list(delivery.subscriber.types) or None, since=since)
    stopped = asyncio.ensure_future(until_set(delivery.stop))
    try:
        while not delivery.stop.is_set():
            upcoming = asyncio.ensure_future(anext(facts))
            await asyncio.wait({upcoming, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not upcoming.done():
                upcoming.cancel()
                await asyncio.wait({upcoming})
                return
            fact = upcoming.result()
            if not cursor.has(fact):
                await delivery.deliver(fact)
                await asyncio.to_thread(cursor.keep, fact)
    except Stopped:
        return
    finally:
        stopped.cancel()
        await facts.aclose()


class GroupFollower:
    """A member of a consumer group on `facts`: what was taken is committed, what was not comes again, here or elsewhere."""

    def __init__(self, log: Log, delivery: Delivery, member_id: str) -> None:
        self._log = log
        self._delivery = delivery
        self._member_id = member_id
        self._member: Membership | None = None
        self._highest: dict[int, tuple[int, int]] = {}
        """Partition -> (position, index) of the newest fact that was taken: publishers that take over repeat some."""

    async def run(self) -> None:
        """Until `delivery.stop` is set. The function that runs is not interrupted."""
        stop = self._delivery.stop
        self._member = await asyncio.to_thread(self._log.join, self._delivery.group, [FACTS], self._member_id)
        try:
            while not stop.is_set():
                try:
                    records = await asyncio.to_thread(self._member.poll, BATCH_FACTS, POLL_SECONDS)
                except StorageError as error:
                    logger.warning("%s; asking again.", error)
                    await until_set(stop, 1.0)
                    continue
                await self._take(records)
        except Stopped:
            return
        finally:
            await asyncio.to_thread(self._member.close)

    async def _take(self, records: Sequence[Record]) -> None:
        """Records of a partition that went to another member meanwhile are left to it."""
        passed: dict[int, int] = {}
        gone: set[int] = set()
        for record in records:
            part = record.partition
            if part in gone:
                continue
            handled = await self._one(record)
            passed[part] = record.offset + 1
            if handled and not await self._commit(part, passed.pop(part)) and not self._has(part):
                gone.add(part)
            if self._delivery.stop.is_set():
                break
        for part, offset in passed.items():
            await self._commit(part, offset)

    async def _one(self, record: Record) -> bool:
        """Hand one record over; False where it is not for this subscriber, so that nothing needs to be committed at once."""
        try:
            fact = Fact.model_validate_json(record.value)
            position, index = fact.id.split("/")
            place = (int(position), int(index))
        except ValueError as error:
            await self._delivery.put(_unreadable(record, error))
            return True
        if place <= self._highest.get(record.partition, (-1, -1)):
            return False
        wanted = self._delivery.subscriber.wants(fact)
        if wanted:
            await self._hand(fact)
        self._highest[record.partition] = place
        return wanted

    async def _hand(self, fact: Fact) -> None:
        """Hand a fact over, and stay a member meanwhile by polling for nothing."""
        assert self._member is not None
        work = asyncio.ensure_future(self._delivery.deliver(fact))
        paused = False
        try:
            while not (await asyncio.wait({work}, timeout=STAY_SECONDS))[0]:
                if not paused:
                    await asyncio.to_thread(self._member.pause)
                    paused = True
                try:
                    await asyncio.to_thread(self._member.poll, 1, 0.0)
                except StorageError as error:
                    logger.debug("The group does not answer while %s is handled: %s", fact.id, error)
            work.result()
        finally:
            if paused:
                await asyncio.to_thread(self._member.resume)

    async def _commit(self, partition: int, offset: int) -> bool:
        assert self._member is not None
        try:
            await asyncio.to_thread(self._member.commit, FACTS, partition, offset)
        except (LogError, InvalidInput) as error:
            logger.warning("The position of this group was not moved to offset %d: %s.", offset, error)
            return False
        return True

    def _has(self, partition: int) -> bool:
        """Whether the partition is still ours: then the rest of it is ours too, whatever became of the commit."""
        return self._member is not None and (FACTS, partition) in self._member.assignment()


def _unreadable(record: Record, error: Exception) -> DeadLetter:
    where = f"{record.topic}/{record.partition}"
    return DeadLetter(
        id=record_letter_id(record.topic, record.partition, record.offset),
        kind=RECORD,
        source=where,
        reason=f"this is no fact: {' '.join(str(error).split())[:300]}",
        time=time.time(),
        data={"topic": record.topic, "offset": record.offset, "value": record.value.hex()[:20_000]},
    )


@dataclass(frozen=True)
class SubscriberOptions:
    """A subscriber on a store.

    `spec`: names the function in logs and dead letters. `url`: of a store (http://, sqlite:///) or its Kafka, `token` for the
    former, `environment` for the secrets of the latter. `group`: the name under which the position is kept, in the folder
    `state` or by the Kafka. `run`: record what the function enqueues and publishes as the run of this name.
    """

    spec: str
    url: str
    group: str
    retries: int = 5
    backoff_seconds: float = 0.5
    state: Path = Path(".agl/subscribers")
    token: str | None = None
    run: str | None = None
    environment: Mapping[str, str] | None = None


async def run_subscriber(
    subscriber: Subscriber[Any],
    options: SubscriberOptions,
    stop: ThreadingEvent,
    on_delivered: Callable[[Delivered], None] | None = None,
) -> None:
    """Deliver facts to the function until `stop` is set; the fact that is being handled then is finished."""

    def delivery(add_dead_letter: AddDeadLetter, store: Any) -> Delivery:
        return Delivery(
            subscriber,
            name=options.spec,
            group=options.group,
            stop=stop,
            add_dead_letter=add_dead_letter,
            store=store,
            retries=options.retries,
            backoff_seconds=options.backoff_seconds,
            on_delivered=on_delivered,
        )

    if options.url.startswith("kafka://"):
        await _on_kafka(subscriber, options, delivery)
    else:
        await _on_store(options, delivery, stop)


async def _on_store(options: SubscriberOptions, make: MakeDelivery, stop: ThreadingEvent) -> None:
    cursor = Cursor(options.state, options.group)
    try:
        if options.url.startswith("sqlite:"):
            store: Any = await asyncio.to_thread(open_store, options.url)
        else:
            store = LightningStoreClient(options.url, token=options.token, patience_seconds=math.inf)
        delivery = make(store.add_dead_letter, await _recorded(store, options, cursor))
        following = asyncio.ensure_future(follow_store(store, delivery, cursor))
        try:
            await _ended(following, delivery, stop)
        finally:
            closed = store.close()
            if closed is not None:
                await closed
    finally:
        cursor.close()


async def _recorded(store: Any, options: SubscriberOptions, cursor: Any = None) -> Any:
    """The store for the function: one that records, where a run was named. A second start goes on with the same run."""
    if options.run is None:
        return store
    from ...core.fold.commands import run_id_of
    from ..runs.recorder import RunStart, recorder_for

    since = -1
    if cursor is not None:
        await store.statistics()  # an HTTP client knows the position after the first answer
        since = await asyncio.to_thread(cursor.open, str(store.position()).partition(":")[0])
    recorder = recorder_for(store)
    start = RunStart(options.run, options.spec, parameters={"group": options.group, "since": since})
    return recorder.bind(await recorder.opened(start, run_id_of(f"subscriber/{options.run}")))


async def _on_kafka(subscriber: Subscriber[Any], options: SubscriberOptions, make: MakeDelivery) -> None:
    log = await asyncio.to_thread(open_log, options.url, environment=options.environment)
    store: Any = None
    try:
        if subscriber.wants_store:  # which folds the whole log: only for a function that needs it
            store = await asyncio.to_thread(open_store, options.url, environment=options.environment)

        async def add_dead_letter(letter: DeadLetter) -> None:
            await write_letter(log, letter)

        mine = await _recorded(store, options) if store is not None else None
        await GroupFollower(log, make(add_dead_letter, mine), f"{options.group}-{os.getpid()}").run()
    finally:
        if store is not None:
            await asyncio.to_thread(store.close)
        await asyncio.to_thread(log.close)


async def _ended(work: asyncio.Future[None], delivery: Any, stop: ThreadingEvent) -> None:
    """Wait for the loop. One that was asked to end and only waits for a store that does not answer is cancelled."""
    stopped = asyncio.ensure_future(until_set(stop))
    try:
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        while not work.done():
            await asyncio.wait({work}, timeout=2.0)
            if not work.done() and not delivery.busy:
                work.cancel()
                await asyncio.wait({work})
                return
        work.result()
    finally:
        stopped.cancel()
