"""Consumer groups within one process: who reads which partition, from where, woken by appends."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Protocol

from .errors import LogClosed, LogError
from .log import Membership, Record

Place = tuple[str, int]
"""(topic, partition)"""


class GroupLog(Protocol):
    """What groups need of their log."""

    def partitions(self, topic: str) -> int: ...
    def read(
        self, topic: str, partition: int, offset: int, max_records: int = 4096, *, headers: bool = True
    ) -> Sequence[Record]: ...
    def committed(self, group: str, topic: str, partition: int) -> int: ...
    def commit_offset(self, group: str, topic: str, partition: int, offset: int) -> None: ...


class Member(Membership):
    """A member of a local group. Its methods may be called from any thread, one poll at a time."""

    def __init__(self, groups: Groups, group: str, topics: Sequence[str], member_id: str) -> None:
        self.group = group
        self.topics = tuple(topics)
        self.member_id = member_id
        self.positions: dict[Place, int] = {}
        self.closed = False
        self._groups = groups
        self._paused = False

    def poll(self, max_records: int, timeout_seconds: float) -> Sequence[Record]:
        deadline = time.monotonic() + timeout_seconds
        changed = self._groups.changed
        with changed:
            while True:
                if self.closed:
                    raise LogClosed("this member has left its group")
                found = [] if self._paused else self._take(max_records)
                left = deadline - time.monotonic()
                if found or left <= 0:
                    return found
                changed.wait(left)

    def _take(self, max_records: int) -> list[Record]:
        found: list[Record] = []
        for topic, partition in sorted(self.positions):
            offset = self.positions[topic, partition]
            records = self._groups.log.read(topic, partition, offset, max_records - len(found))
            if records:
                self.positions[topic, partition] = records[-1].offset + 1
                found.extend(records)
            if len(found) >= max_records:
                break
        return found

    def commit(self, topic: str, partition: int, offset: int) -> None:
        with self._groups.changed:
            if self.closed or (topic, partition) not in self.positions:
                raise LogError(f"{topic}[{partition}] is not assigned to {self.member_id} (any more)")
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
    """All groups of one log. Partitions are dealt out in turn to the members in order of their ids."""

    def __init__(self, log: GroupLog) -> None:
        self.log = log
        self.changed = threading.Condition(threading.RLock())
        self._members: dict[str, list[Member]] = {}
        self._offsets: dict[tuple[str, str, int], int] = {}

    def join(self, group: str, topics: Sequence[str], member_id: str) -> Member:
        """Add a member and deal the partitions out anew."""
        with self.changed:
            member = Member(self, group, topics, member_id)
            self._members.setdefault(group, []).append(member)
            self._deal(group)
            return member

    def leave(self, member: Member) -> None:
        """Take a member out; its partitions go to the others, from the committed offsets on."""
        with self.changed:
            if member.closed:
                return
            member.closed = True
            member.positions = {}
            self._members[member.group].remove(member)
            self._deal(member.group)

    def _deal(self, group: str) -> None:
        members = sorted(self._members[group], key=lambda member: member.member_id)
        dealt: dict[int, dict[Place, int]] = {id(member): {} for member in members}
        for topic in sorted({topic for member in members for topic in member.topics}):
            takers = [member for member in members if topic in member.topics]
            for partition in range(self.log.partitions(topic)):
                owner = takers[partition % len(takers)]
                place = (topic, partition)
                kept = owner.positions.get(place)
                dealt[id(owner)][place] = self.committed(group, topic, partition) if kept is None else kept
        for member in members:
            member.positions = dealt[id(member)]
        self.changed.notify_all()

    def committed(self, group: str, topic: str, partition: int) -> int:
        """The group's offset: the newest commit, else what the log kept."""
        known = self._offsets.get((group, topic, partition))
        return self.log.committed(group, topic, partition) if known is None else known

    def commit(self, group: str, topic: str, partition: int, offset: int) -> None:
        """Remember an offset and let the log keep it."""
        self._offsets[group, topic, partition] = offset
        self.log.commit_offset(group, topic, partition, offset)

    def wake(self) -> None:
        """The log has grown."""
        if self._members:
            with self.changed:
                self.changed.notify_all()

    def close(self) -> None:
        """Everybody leaves."""
        with self.changed:
            for members in self._members.values():
                for member in list(members):
                    member.closed = True
                    member.positions = {}
                members.clear()
            self.changed.notify_all()
