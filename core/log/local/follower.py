"""Followers of a log in its own process: read up to the end in a thread, from then on handed what is committed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from ...errors import LogError, OffsetLost, StorageError
from ..interface import OnProblem, OnRecords, Record, Subscription

logger = logging.getLogger(__name__)

_CATCH_UP_RECORDS = 1024

ReadFrom = Callable[[int, int], Sequence[Record]]
"""(offset, most records) -> records from that offset on; none at the end."""


class Follower(Subscription):
    """One running `follow`: knows the next offset its callback is owed.

    Its lock is held while a callback runs; that is what lets `close` promise silence. It may be closed from inside
    its own callback.
    """

    def __init__(
        self, name: str, offset: int, on_records: OnRecords, on_problem: OnProblem, forget: Callable[[Follower], None]
    ) -> None:
        self.name = name
        self.next = offset
        self._on_records = on_records
        self._on_problem = on_problem
        self._forget = forget
        self._lock = threading.RLock()
        self.closed = False
        self.known_below = 0

    def passed(self, offset: int) -> None:
        self.known_below = offset

    def deliver(self, records: Sequence[Record]) -> None:
        """Hand over `records`, which start at or after `next`; a callback that raises ends the follow."""
        with self._lock:
            if self.closed or not records:
                return
            self.next = records[-1].offset + 1
            try:
                self._on_records(records)
            except Exception as error:
                logger.exception("a follower of %s raised; it is not called again", self.name)
                self.fail(StorageError(f"The follower of {self.name} raised {type(error).__name__}: {error}"))

    def fail(self, error: LogError) -> None:
        """Report `error`, once, instead of going on."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
            try:
                self._on_problem(error)
            except Exception:
                logger.exception("a follower of %s raised: %s", self.name, error)
        self._forget(self)

    def close(self) -> None:
        self.closed = True  # before the lock is free, which a thread that hands over batch after batch may not give up
        with self._lock:
            self._forget(self)


class Feed:
    """The followers of one partition, and the end up to which they have been served.

    `publish` is called by the one thread that commits; `follow` by any. A follower is either catching up in a thread
    of its own or live, and it becomes live under the lock, when nothing is left to read: so it misses nothing and
    gets nothing twice. What is committed can be read a moment before it is published; `end_now` tells the truth then.
    """

    def __init__(self, name: str, end: int, read: ReadFrom, end_now: Callable[[], int]) -> None:
        self.name = name
        self.end = end
        self._read = read
        self._end_now = end_now
        self._lock = threading.Lock()
        self._live: list[Follower] = []
        self._catching_up: set[Follower] = set()

    @property
    def wanted(self) -> bool:
        """Whether anybody is live, so that records have to be made for `publish`."""
        return bool(self._live)

    def follow(self, offset: int, on_records: OnRecords, on_problem: OnProblem) -> Follower:
        """Start a follower at `offset`; one beyond the end gets `OffsetLost`, from a thread."""
        follower = Follower(self.name, offset, on_records, on_problem, self._forget)
        with self._lock:
            if offset == self.end:
                self._live.append(follower)
                return follower
            self._catching_up.add(follower)
        self._start(follower)
        return follower

    def advance(self, end: int) -> None:
        """The log ends at `end` or behind it."""
        with self._lock:
            self.end = max(self.end, end)

    def publish(self, base: int, end: int, records: Sequence[Record]) -> None:
        """The log now ends at `end`; `records` (base to end, or none where nobody was live) go to who is live."""
        late: list[Follower] = []
        with self._lock:
            self.end = max(self.end, end)
            live = list(self._live)
            for follower in live:
                if follower.next < base or (follower.next < end and not records):
                    late.append(follower)
                    self._live.remove(follower)
                    self._catching_up.add(follower)
        for follower in live:
            if follower in late:
                self._start(follower)
            elif follower.next <= base:
                follower.deliver(records)
            else:
                follower.deliver([record for record in records if record.offset >= follower.next])

    def shrink(self, end: int) -> None:
        """The log ends earlier than it did: readers past `end` hold records that are not in it."""
        with self._lock:
            self.end = end
            followers = [*self._live, *self._catching_up]
        for follower in followers:
            if follower.next > end:
                follower.fail(OffsetLost(f"{self.name} got shorter: it ends at offset {end}", offset=follower.next))

    def fail(self, error: LogError) -> None:
        """End every follow with `error`."""
        with self._lock:
            followers = [*self._live, *self._catching_up]
        for follower in followers:
            follower.fail(error)

    def _forget(self, follower: Follower) -> None:
        with self._lock:
            self._catching_up.discard(follower)
            if follower in self._live:
                self._live.remove(follower)

    def _start(self, follower: Follower) -> None:
        threading.Thread(
            target=self._catch_up, args=(follower,), name=f"agl-log-catch-up-{self.name}", daemon=True
        ).start()

    def _go_live(self, follower: Follower, at_least: int) -> bool:
        """Make `follower` live if the feed has not got past it; `at_least` is the end it may be ahead of."""
        with self._lock:
            if follower.closed or self.end > follower.next or follower.next > max(self.end, at_least):
                return False
            self._catching_up.discard(follower)
            self._live.append(follower)
            return True

    def _catch_up(self, follower: Follower) -> None:
        try:
            while not follower.closed and not self._go_live(follower, -1):
                end = self._end_now()
                records = self._read(follower.next, _CATCH_UP_RECORDS)
                if records:
                    follower.deliver(records)
                elif follower.next != end:
                    raise OffsetLost(f"{self.name} ends at {end}, before {follower.next}", offset=follower.next)
                elif self._go_live(follower, end):
                    return
        except LogError as error:
            follower.fail(error)
