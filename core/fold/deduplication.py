"""The verdicts of the last W records, by command id, and the fingerprints after them.

A second record with an id that is in the table is a duplicate and gets the first verdict; a proposal whose basis lies
further back than W records is refused as expired, so nothing that the table forgot can ever be taken for new. Entries
leave by log position, never by time, so every node forgets the same ones at the same record.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Literal

import msgspec

PRINT_BYTES = 8
Reason = Literal[
    "", "already_active", "already_known", "already_open", "altered", "archived", "changed", "clock_moved",
    "confirmed", "duplicate", "exists", "expired", "foreign_history", "halted", "late", "malformed", "not_archived",
    "not_backing_off", "not_claimable", "not_open", "stale_attempt", "stale_generation", "superseded", "too_early",
    "unknown_attempt", "unknown_rollout", "version_conflict",
]  # fmt: skip
"""Why the fold refused a command; "" where it did not. A stored verdict may hold a word of a newer release."""


class Verdict(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What became of a command: its `position`, why it was refused ("" if accepted), and what it was about.

    `subject` lets a retry find its own result again: "ro-...#2" for a claim of attempt 2, else "".
    """

    position: int
    reason: str = ""
    subject: str = ""

    @property
    def accepted(self) -> bool:
        """True where the fold applied the event."""
        return not self.reason


_encode = msgspec.msgpack.Encoder().encode
PIECE_ENTRIES = 512
"""Entries of one piece of a dump: a fraction of a millisecond in which no other thread runs."""


def _begin_array(count: int) -> bytes:
    """How msgpack begins an array of so many items."""
    return _encode([None] * count)[: -count or None]


def _pieces(first: int, prints: list[bytes], ids: list[str], verdicts: list[Verdict]) -> Iterator[bytes]:
    yield _begin_array(3) + _encode(first) + _encode(b"".join(prints)) + _begin_array(len(ids))
    for at in range(0, len(ids), PIECE_ENTRIES):
        entries = list(zip(ids[at : at + PIECE_ENTRIES], verdicts[at : at + PIECE_ENTRIES]))
        yield _encode(entries)[len(_begin_array(len(entries))) :]


class VerdictTable:
    """Command id -> verdict, and position -> fingerprint, for a window of positions."""

    __slots__ = ("_first", "_ids", "_prints", "_verdicts")

    def __init__(self) -> None:
        self._verdicts: dict[str, Verdict] = {}
        self._prints: deque[bytes] = deque()
        self._ids: deque[str | None] = deque()  # the command that the record of each print was first about
        self._first = 0  # position of the oldest print

    def get(self, command_id: str) -> Verdict | None:
        """The first verdict about a command, if the window still holds it."""
        return self._verdicts.get(command_id)

    def add(self, fingerprint: bytes, kept: int, command_id: str | None = None, verdict: Verdict | None = None) -> None:
        """The fingerprint after the next position, with the first verdict about a command; keep so many positions."""
        if verdict is not None and command_id is not None:
            self._verdicts[command_id] = verdict
        prints, ids = self._prints, self._ids
        prints.append(fingerprint)
        ids.append(command_id)
        if len(prints) > kept:
            prints.popleft()
            self._first += 1
            gone = ids.popleft()
            if gone is not None:
                del self._verdicts[gone]

    def print_at(self, position: int) -> bytes | None:
        """The fingerprint after the record at `position`; b"" before the first record, None outside the window."""
        index = position - self._first
        if 0 <= index < len(self._prints):
            return self._prints[index]
        return b"" if index == position == -1 else None

    def __len__(self) -> int:
        return len(self._verdicts)

    def dump(self) -> bytes:
        """The table for a snapshot."""
        return b"".join(self.pieces())

    def pieces(self) -> Iterator[bytes]:
        """The pieces of `dump` as of this call, each encoded when it is asked for: here only references are copied."""
        return _pieces(self._first, list(self._prints), list(self._verdicts), list(self._verdicts.values()))

    @classmethod
    def load(cls, data: bytes) -> VerdictTable:
        """Rebuild what `dump` gave."""
        first, prints, entries = msgspec.msgpack.decode(data, type=tuple[int, bytes, list[tuple[str, Verdict]]])
        table = cls()
        table._first = first
        table._prints = deque(prints[at : at + PRINT_BYTES] for at in range(0, len(prints), PRINT_BYTES))
        table._verdicts = dict(entries)
        ids: list[str | None] = [None] * len(table._prints)
        for command_id, verdict in entries:
            index = verdict.position - first
            if not 0 <= index < len(ids):
                raise msgspec.ValidationError("a verdict lies outside of the window")
            ids[index] = command_id
        table._ids = deque(ids)
        return table
