"""ClaimQueue: which claimable rollout a claimer is offered, and who is woken when one appears.

The fold's queue is the truth; this is one node's view of it, in which a rollout that is being claimed is not offered
twice. Use under the node's lock.

Rollouts wait in lanes, one for each run that they belong to (`agl.run_id` in their metadata) and one for all others. A
claim for a run is offered what belongs to that run, any other claim the oldest of all lanes but those of runs that have
runners of their own (`agl.own_runners`). Both are in order of arrival.

The only writer of a log offers the oldest, always. Where several nodes claim from one log, all of them see a rollout at
about the same moment and all but one would lose the claim. So each rollout ranks the nodes that were seen claiming, by
rendezvous hash: the first in rank offers it at once, the others when it has been in the queue for `STEAL_SECONDS`, one
after the other. A node whose runners are notified by hints (task_hints.py) offers at once what it has a hint for, and
steals the rest. Among the oldest a claimer is offered what was hinted, else what ranks its node highest, else the oldest:
the more claims the others make, the more of the oldest are looked at, one where claims are far apart and `WINDOW` at most.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from hashlib import blake2b
from heapq import merge
from itertools import count, islice
from math import exp
from typing import NamedTuple

from ...core.clock import Clock, SystemClock
from ...core.events import payload
from ...core.events.run_events import runs_of
from ...core.fold.state import State
from ..replica.command_context import Delivery

WINDOW = 64
"""So many of the oldest are looked at at most: order is strict but for these."""
SPREAD = 20
"""So many times the claims of others that are under way at once is the number of the oldest that are looked at."""
RATE_SECONDS = 0.1
"""For how long a claim of another node counts."""
LOSS = 8.0
"""A lost claim counts as so many: there is more under way than was seen."""
CLAIM_SECONDS = 0.005
"""How long a claim is under way, until this node has seen it of its own."""
STEAL_SECONDS = 0.020
"""How long a rollout lies in the queue for whom it was meant before everybody may have it."""
RANK_SECONDS = 0.004
"""How much later each further rank steals: about as long as a claim takes to be seen by the others."""
LAST_RANK = 4
NODE_SECONDS = 10.0
"""Who has claimed nothing for so long is not ranked any more."""


class _Lane(NamedTuple):
    """Whose rollouts wait here: `run_id` is None where they belong to no run, `own` where only its runners get them."""

    run_id: str | None
    own: bool


_NO_RUN = _Lane(None, False)
_ANY_RUN = _Lane("", False)
"""Rollouts whose metadata lie in `blobs`: which run they belong to is not known without I/O, so any claim may have them."""


class _Ready:
    """A rollout in the queue; `since` is when this node saw it, `rank` how many nodes come before it."""

    __slots__ = ("hinted", "lane", "number", "rank", "ranked", "rollout_id", "since")

    def __init__(self, rollout_id: str, lane: _Lane, number: int, since: float) -> None:
        self.rollout_id = rollout_id
        self.lane = lane
        self.number = number
        self.since = since
        self.hinted = False
        self.rank = 0
        self.ranked = -1


class ClaimQueue:
    """Hands out claimable rollouts and wakes idle claimers, oldest first. `node`: our name where others claim too."""

    def __init__(self, delivery: Delivery, node: str | None = None, clock: Clock | None = None) -> None:
        self._delivery = delivery
        self._node = node
        self._clock = clock if clock is not None else SystemClock()
        self._lanes: dict[_Lane, deque[_Ready]] = {}
        self._by_id: dict[str, _Ready] = {}
        self._idle: dict[str | None, deque[tuple[int, asyncio.Future[None]]]] = {}
        self._last, self._first, self._waits = count(1), count(0, -1), count()
        self._seen: set[str | None] = set()
        """The runs for which somebody has waited here; None: for any."""
        self._refused: set[str] = set()
        self._claimers: dict[str, float] = {}
        self._nodes: tuple[str, ...] = () if node is None else (node,)
        self._version = 0
        self._rate = 0.0
        self._rated_at = 0.0
        self._claim_seconds = CLAIM_SECONDS
        self._taken: dict[str, float] = {}
        self.feeds = 0
        """How many feeds of hints this node has; with one, nothing is offered at once but what was hinted."""
        self.on_idle: list[Callable[[], None]] = []
        """Called when a claimer begins to wait."""

    def load(self, state: State) -> None:
        """Start with what the log says is claimable."""
        self._lanes.clear()
        self._by_id.clear()
        for rollout_id in state.queue:
            self._add(state, rollout_id, next(self._last), float("-inf"))

    def _add(self, state: State, rollout_id: str, number: int, since: float) -> _Lane:
        lane = _lane_of(state, rollout_id)
        one = self._by_id[rollout_id] = _Ready(rollout_id, lane, number, since)
        ready = self._lanes.setdefault(lane, deque())
        ready.append(one) if number > 0 else ready.appendleft(one)
        return lane

    def _open_to(self, run_id: str | None) -> list[_Lane]:
        """The lanes that a claim for this run, or for none, may be offered something of."""
        if run_id is None:
            return [lane for lane in self._lanes if not lane.own]
        return [lane for lane in (_Lane(run_id, True), _Lane(run_id, False), _ANY_RUN) if lane in self._lanes]

    def offer(self, state: State, rollout_id: str) -> None:
        """A rollout became claimable: remember it and wake the one who waits longest."""
        self._wake_one(self._add(state, rollout_id, next(self._last), self._clock.monotonic()))

    def hint(self, state: State, rollout_id: str) -> bool:
        """This node may have a rollout at once. False where it is not claimable here, or being claimed."""
        one = self._by_id.get(rollout_id)
        if one is None or rollout_id not in state.queue or not self._served(one.lane):
            return False
        one.hinted = True
        self._wake_one(one.lane)
        return True

    def _served(self, lane: _Lane) -> bool:
        """Whether anybody ever waited here who may have what is in the lane."""
        return lane == _ANY_RUN or lane.run_id in self._seen or (not lane.own and None in self._seen)

    def claimed(self, node: str, rollout_id: str) -> None:
        """A node was seen claiming; called for every claim that was accepted."""
        if self._node is not None:
            now = self._claimers[node] = self._clock.monotonic()
            began = self._taken.pop(rollout_id, None)
            if node == self._node and began is not None:
                self._claim_seconds += 0.2 * (now - began - self._claim_seconds)
            elif node != self._node:
                self._count(now, 1.0)
            if node not in self._nodes:
                self._rank_anew()

    def _count(self, now: float, claims: float) -> None:
        self._rate, self._rated_at = self._rate_at(now) + claims / RATE_SECONDS, now

    def _rate_at(self, now: float) -> float:
        """Claims of others in a second, the newer the more they count."""
        return self._rate * exp((self._rated_at - now) / RATE_SECONDS) if self._rate else 0.0

    def _rank_anew(self) -> None:
        assert self._node is not None
        since = self._clock.monotonic() - NODE_SECONDS
        self._claimers = {node: seen for node, seen in self._claimers.items() if seen >= since}
        self._nodes = tuple(sorted({self._node, *self._claimers}))
        self._version += 1

    def _wake_one(self, lane: _Lane) -> None:
        """Wake the one who waits longest of those who may have what is in the lane."""
        while True:
            fit = self._idle if lane == _ANY_RUN else {lane.run_id} if lane.own else {lane.run_id, None}
            queues = [idle for run_id in fit if (idle := self._idle.get(run_id))]
            if not queues:
                return
            _, future = min(queues, key=lambda idle: idle[0][0]).popleft()
            if not future.done():
                self._delivery.put(future, None)
                return

    def take(self, state: State, *, patient: bool = True, run_id: str | None = None) -> str | None:
        """The rollout that the next claimer is to claim; None when there is none.

        `patient`: it will come again, so what is meant for another node is left to it for a moment. `run_id`: it takes
        rollouts of that run only.
        """
        alone = len(self._nodes) < 2 and not self.feeds
        one = self._oldest(state, run_id) if alone else self._choose(state, patient, run_id)
        return None if one is None else one.rollout_id

    def _oldest(self, state: State, run_id: str | None) -> _Ready | None:
        lanes = self._open_to(run_id)
        while lanes:
            lane = lanes[0] if len(lanes) == 1 else min(lanes, key=lambda one: self._lanes[one][0].number)
            ready = self._lanes[lane]
            one = ready.popleft()
            if not ready:
                del self._lanes[lane]
                lanes.remove(lane)
            if self._by_id.get(one.rollout_id) is one:
                del self._by_id[one.rollout_id]
                if one.rollout_id in state.queue:
                    return one
        return None

    def _choose(self, state: State, patient: bool, run_id: str | None) -> _Ready | None:
        now = self._clock.monotonic()
        left = self._spread(now)
        best: _Ready | None = None
        for one in self._window(state, run_id):
            if self._opens(one) > now and patient:
                continue
            left -= 1
            if left < 0 and not one.hinted:
                continue
            if best is None or (not one.hinted, one.rank) < (not best.hinted, best.rank):
                best = one
        if best is not None:
            self._taken[best.rollout_id] = now
            del self._by_id[best.rollout_id]
            ready = self._lanes[best.lane]
            ready.remove(best)
            if not ready:
                del self._lanes[best.lane]
            # Who was woken for what is still here may have been this claimer: another has to look after it.
            self.pass_on(run_id)
        return best

    def _spread(self, now: float) -> int:
        """How many of the oldest to choose from: few claims meet if this is many times what is under way at the others.

        What is under way there is guessed from what they claimed lately, and from what is under way here.
        """
        theirs = self._rate_at(now) * self._claim_seconds
        return 1 + int(theirs * SPREAD) + 2 * len(self._taken) * (len(self._nodes) - 1)

    def _window(self, state: State, run_id: str | None) -> list[_Ready]:
        """The oldest that are claimable for a run, or for none; those that are not any more are forgotten."""
        lanes = self._open_to(run_id)
        for lane in lanes:
            self._tidy(state, lane)
        heads = [islice(self._lanes[lane], WINDOW) for lane in lanes if lane in self._lanes]
        found = heads[0] if len(heads) == 1 else merge(*heads, key=lambda one: one.number)
        return list(islice(found, WINDOW))

    def _tidy(self, state: State, lane: _Lane) -> None:
        """Forget what is not claimable any more among the oldest of a lane, and the lane where nothing is left."""
        ready, kept = self._lanes[lane], list[_Ready]()
        while ready and len(kept) < WINDOW:
            one = ready.popleft()
            if self._by_id.get(one.rollout_id) is not one:
                continue
            if one.rollout_id in state.queue:
                kept.append(one)
            else:
                del self._by_id[one.rollout_id]
        ready.extendleft(reversed(kept))
        if not ready:
            del self._lanes[lane]

    def _opens(self, one: _Ready) -> float:
        """When this node may offer it, on the clock of `since`."""
        if one.hinted:
            return float("-inf")
        if one.ranked != self._version:
            one.ranked = self._version
            one.rank = self._rank(one.rollout_id)
        if one.rank == 0 and not self.feeds:
            return float("-inf")
        return one.since + STEAL_SECONDS + RANK_SECONDS * min(one.rank, LAST_RANK)

    def _rank(self, rollout_id: str) -> int:
        """How many of the nodes come before this one for a rollout; every node finds the same order."""
        mine = _weight(self._node or "", rollout_id)
        return sum(_weight(node, rollout_id) > mine for node in self._nodes if node != self._node)

    def opens_in(self, state: State, run_id: str | None = None) -> float | None:
        """Seconds until something that is left to others for now may be had here; None where there is no such thing."""
        if len(self._nodes) < 2 and not self.feeds:
            return None
        if self._claimers and min(self._claimers.values()) < self._clock.monotonic() - NODE_SECONDS:
            self._rank_anew()
        opens = [self._opens(one) for one in self._window(state, run_id)]
        return max(min(opens) - self._clock.monotonic(), 0.001) if opens else None

    def give_back(self, state: State, rollout_id: str) -> None:
        """A claim came to nothing: offer the rollout again, first, if it is still claimable."""
        if self._taken.pop(rollout_id, None) is not None and rollout_id not in state.queue:
            self._count(self._clock.monotonic(), LOSS)
        if rollout_id in state.queue and rollout_id not in self._by_id:
            self._wake_one(self._add(state, rollout_id, next(self._first), float("-inf")))

    def fail(self, error: Exception) -> None:
        """No work will come any more: everybody who waits gets `error`."""
        for idle in self._idle.values():
            for _, future in idle:
                self._delivery.put(future, error, True)
        self._idle.clear()

    def wait(self, loop: asyncio.AbstractEventLoop, run_id: str | None = None) -> asyncio.Future[None]:
        """A future that is resolved when it is this claimer's turn to try again; cancel it to stop waiting."""
        future: asyncio.Future[None] = loop.create_future()
        self._seen.add(run_id)
        idle = self._idle.setdefault(run_id, deque())
        idle.append((next(self._waits), future))
        if len(idle) > 64 and idle[0][1].done():
            self._idle[run_id] = deque(one for one in idle if not one[1].done())
        for notify in self.on_idle:
            notify()
        return future

    def waiting(self) -> int:
        """How many claimers wait."""
        return sum(not future.done() for idle in self._idle.values() for _, future in idle)

    def pass_on(self, run_id: str | None = None) -> None:
        """Somebody was woken and did not claim (gave up, was cancelled): wake the next, if there is work."""
        for lane in self._open_to(run_id):
            self._wake_one(lane)

    def refused_run(self) -> str | None:
        """A run with rollouts in the queue that only its own runners get, each one once; None where there is no other."""
        run_id = next((lane.run_id for lane in self._lanes if lane.own and lane.run_id not in self._refused), None)
        if run_id is not None:
            self._refused.add(run_id)
        return run_id


def _lane_of(state: State, rollout_id: str) -> _Lane:
    rollout = state.rollouts.get(rollout_id)
    if rollout is None or rollout.metadata is None:
        return _NO_RUN
    if payload.is_reference(rollout.metadata):
        return _ANY_RUN
    run_id, own = runs_of(rollout.metadata)
    return _NO_RUN if run_id is None else _Lane(run_id, own)


def _weight(node: str, rollout_id: str) -> bytes:
    return blake2b(f"{node}/{rollout_id}".encode("utf-8", "backslashreplace"), digest_size=8).digest()
