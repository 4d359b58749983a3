"""The verdicts of the last W records, by command id, and the fingerprints after them.

A second record with an id that is in the table is a duplicate and gets the first verdict; a proposal whose basis lies
further back than W records is refused as expired, so nothing that the table forgot can ever be taken for new. Entries
leave by log position, never by time, so every node forgets the same ones at the same record.
"""

from __future__ import annotations

from collections import deque
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
        if position == -1:
            return b"" if self._first == 0 else None
        index = position - self._first
        return self._prints[index] if 0 <= index < len(self._prints) else None

    def __len__(self) -> int:
        return len(self._verdicts)

    def copied(self) -> VerdictTable:
        """A table of its own with the same entries."""
        made = VerdictTable()
        made._verdicts, made._ids, made._prints = dict(self._verdicts), deque(self._ids), deque(self._prints)
        made._first = self._first
        return made

    def dump(self) -> bytes:
        """The table for a snapshot."""
        entries = [(command_id, self._verdicts[command_id]) for command_id in self._ids if command_id is not None]
        return msgspec.msgpack.encode((self._first, b"".join(self._prints), entries))

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
