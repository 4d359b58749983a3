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

    def __init__(self) -> None:
        self._verdicts: dict[str, Verdict] = {}
        self._order: deque[tuple[int, str]] = deque()
        self._prints: deque[bytes] = deque()
        self._first = 0  # position of the oldest print

    def get(self, command_id: str) -> Verdict | None:
        """The first verdict about a command, if the window still holds it."""
        return self._verdicts.get(command_id)

    def put(self, command_id: str, verdict: Verdict) -> None:
        """Remember the first verdict about a command."""
        self._verdicts[command_id] = verdict
        self._order.append((verdict.position, command_id))

    def add_print(self, fingerprint: bytes) -> None:
        """Remember the fingerprint after the next position."""
        self._prints.append(fingerprint)

    def print_at(self, position: int) -> bytes | None:
        """The fingerprint after the record at `position`; b"" before the first record, None outside the window."""
        if position == -1:
            return b"" if self._first == 0 else None
        index = position - self._first
        return self._prints[index] if 0 <= index < len(self._prints) else None

    def evict_below(self, position: int) -> None:
        """Forget what lies before `position`."""
        if self._first >= position:  # nothing lies before it: verdicts are no older than prints
            return
        order = self._order
        while order and order[0][0] < position:
            del self._verdicts[order.popleft()[1]]
        while self._first < position and self._prints:
            self._prints.popleft()
            self._first += 1

    def __len__(self) -> int:
        return len(self._verdicts)

    def copied(self) -> VerdictTable:
        """A table of its own with the same entries."""
        made = VerdictTable()
        made._verdicts, made._order, made._prints = dict(self._verdicts), deque(self._order), deque(self._prints)
        made._first = self._first
        return made

    def dump(self) -> bytes:
        """The table for a snapshot."""
        entries = [(command_id, self._verdicts[command_id]) for _, command_id in self._order]
        return msgspec.msgpack.encode((self._first, b"".join(self._prints), entries))

    @classmethod
    def load(cls, data: bytes) -> VerdictTable:
        """Rebuild what `dump` gave."""
        first, prints, entries = msgspec.msgpack.decode(data, type=tuple[int, bytes, list[tuple[str, Verdict]]])
        table = cls()
        table._first = first
        table._prints = deque(prints[at : at + PRINT_BYTES] for at in range(0, len(prints), PRINT_BYTES))
        for command_id, verdict in entries:
            table.put(command_id, verdict)
        return table
