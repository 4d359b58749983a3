"""Consumer groups within one process: who reads which partition, from where, woken by appends."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Protocol

from ...errors import InvalidInput, LogClosed, LogError
from ..interface import Membership, Record

Place = tuple[str, int]
"""(topic, partition)"""

SESSION_SECONDS = 30.0
"""Who has not polled for so long is out, and its partitions go to the others; its next poll lets it in again."""


class GroupLog(Protocol):
    """What groups need of their log."""

    def read(
        self, topic: str, partition: int, offset: int, max_records: int = 4096, *, headers: bool = True
    ) -> Sequence[Record]: ...
    def committed(self, group: str, topic: str, partition: int) -> int: ...
    def commit_offset(self, group: str, topic: str, partition: int, offset: int) -> None: ...


class Member(Membership):
    """A member of a local group. Its methods may be called from any thread, one poll at a time."""

    def __init__(self, groups: Groups, group: str, topics: Sequence[str], member_id: str) -> None:
        self.group = group
        self.topics = tuple(dict.fromkeys(topics))
        self.member_id = member_id
        self.positions: dict[Place, int] = {}
        self.polling = False
        self.last_poll = time.monotonic()
        self.closed = False
        self._groups = groups
        self._paused = False
        self._turn = 0

    def poll(self, max_records: int, timeout_seconds: float) -> Sequence[Record]:
        """See `Membership.poll`. Raises `InvalidInput` for less than one record, `LogClosed` after `close`."""
        if max_records < 1:
            raise InvalidInput(f"a poll asks for at least one record, not {max_records}")
        deadline = time.monotonic() + timeout_seconds
        changed = self._groups.changed
        with changed:
            self.polling = True
            try:
                while True:
                    if self.closed:
                        raise LogClosed("this member has left its group")
                    self._groups.readmit(self)
                    due = self._groups.drop_silent(self.group)
                    found = [] if self._paused else self._take(max_records)
                    left = deadline - time.monotonic()
                    if found or left <= 0:
                        return found
                    changed.wait(min(left, due))
            finally:
                self.polling = False
                self.last_poll = time.monotonic()

    def _take(self, max_records: int) -> list[Record]:
        """Read from the partitions in turn, so that a busy one does not starve the others."""
        places = sorted(self.positions)
        found: list[Record] = []
        taken: dict[Place, int] = {}
        for index in range(len(places)):
            topic, partition = place = places[(self._turn + index) % len(places)]
            records = self._groups.log.read(topic, partition, self.positions[place], max_records - len(found))
            if records:
                taken[place] = records[-1].offset + 1
                found.extend(records)
            if len(found) >= max_records:
                break
        self._turn += 1
        # At the end, so that a read that raises loses nothing of what was read before it.
        self.positions.update(taken)
        return found

    def commit(self, topic: str, partition: int, offset: int) -> None:
        """See `Membership.commit`. Raises `InvalidInput` for an offset beyond what was polled."""
        place = (topic, partition)
        with self._groups.changed:
            if self.closed or place not in self.positions:
                raise LogError(f"{topic}[{partition}] is not assigned to {self.member_id} (any more)")
            if not 0 <= offset <= self.positions[place]:
                raise InvalidInput(f"{topic}[{partition}] was polled up to offset {self.positions[place]}, not {offset}")
            self._groups.commit(self.group, topic, partition, offset)

    def assignment(self) -> frozenset[Place]:
        with self._groups.changed:
            return frozenset(self.positions)

    def pause(self) -> None:
        with self._groups.changed:
            self._paused = True

    def resume(self) -> None:
        with self._groups.changed:
            self._paused = False
            self._groups.changed.notify_all()

    def close(self) -> None:
        self._groups.leave(self)


class Groups:
    """All groups of one log; the one partition of a topic has one owner among the members that read the topic."""

    def __init__(self, log: GroupLog, *, session_seconds: float = SESSION_SECONDS) -> None:
        self.log = log
        self.session_seconds = session_seconds
        self.changed = threading.Condition(threading.RLock())
        self._members: dict[str, dict[str, Member]] = {}
        self._offsets: dict[tuple[str, str, int], int] = {}

    def join(self, group: str, topics: Sequence[str], member_id: str) -> Member:
        """Add a member and deal the partitions out anew. Raises `InvalidInput` for no topics and for a taken id."""
        if not topics or not group or not member_id:
            raise InvalidInput("a member of a group has a group, an id, and topics to read")
        with self.changed:
            self.drop_silent(group)
            if member_id in self._members.get(group, ()):
                raise InvalidInput(f"group {group!r} has a member {member_id!r} already")
            member = Member(self, group, topics, member_id)
            self._admit(member)
            return member

    def leave(self, member: Member) -> None:
        """Take a member out; its partitions go to the others, from the committed offsets on."""
        with self.changed:
            member.closed = True
            if self._members.get(member.group, {}).get(member.member_id) is member:
                del self._members[member.group][member.member_id]
                member.positions = {}
                self._deal(member.group)
            self.changed.notify_all()

    def readmit(self, member: Member) -> None:
        """Let a member that was dropped for its silence in again, unless another has its id now."""
        now = self._members[member.group].get(member.member_id)
        if now is None:
            self._admit(member)
        elif now is not member:
            member.closed = True
            raise LogClosed(f"another member joined as {member.member_id!r} while this one did not poll")

    def drop_silent(self, group: str) -> float:
        """Put out who has not polled for too long; return the seconds until somebody else could be due."""
        members = self._members.get(group, {})
        now = time.monotonic()
        idle = [member for member in members.values() if not member.polling]
        silent = [member for member in idle if now - member.last_poll >= self.session_seconds]
        for member in silent:
            del members[member.member_id]
            member.positions = {}
        if silent:
            self._deal(group)
        left = (member.last_poll + self.session_seconds - now for member in idle if member not in silent)
        return max(min(left, default=threading.TIMEOUT_MAX), 0.001)

    def _admit(self, member: Member) -> None:
        member.last_poll = time.monotonic()
        self._members.setdefault(member.group, {})[member.member_id] = member
        self._deal(member.group)

    def _deal(self, group: str) -> None:
        """Give each topic's partition to one of the members that read it; who has it keeps it."""
        members = [member for _, member in sorted(self._members[group].items())]
        held = {place: member for member in members for place in member.positions}
        dealt: dict[str, dict[Place, int]] = {member.member_id: {} for member in members}
        for topic in sorted({topic for member in members for topic in member.topics}):
            place = (topic, 0)
            owner = held.get(place)
            if owner is not None:
                dealt[owner.member_id][place] = owner.positions[place]
                continue
            takers = [member for member in members if topic in member.topics]
            taker = min(takers, key=lambda one: (len(dealt[one.member_id]), one.member_id))
            dealt[taker.member_id][place] = self.committed(group, *place)
        for member in members:
            member.positions = dealt[member.member_id]
        self.changed.notify_all()

    def committed(self, group: str, topic: str, partition: int) -> int:
        """The group's offset: the newest commit, else what the log kept."""
        known = self._offsets.get((group, topic, partition))
        return self.log.committed(group, topic, partition) if known is None else known

    def commit(self, group: str, topic: str, partition: int, offset: int) -> None:
        """Remember an offset and let the log keep it."""
        self.log.commit_offset(group, topic, partition, offset)
        self._offsets[group, topic, partition] = offset

    def wake(self) -> None:
        """The log has grown."""
        if self._members:
            with self.changed:
                self.changed.notify_all()

    def close(self) -> None:
        """Everybody leaves."""
        with self.changed:
            for members in self._members.values():
                for member in members.values():
                    member.closed = True
                    member.positions = {}
                members.clear()
            self.changed.notify_all()
