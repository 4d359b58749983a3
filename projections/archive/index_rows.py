"""What the cold index keeps of each rollout beside its packed bytes, and how rows are found in the order of a field.

The columns hold what `core.pages` would sort and filter by, so an order of the table is the order of the views. Packed
bytes lie in a table of their own: who counts or sorts reads none of them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...core.fold.state import FINISHED, Rollout

SCHEMA = """
CREATE TABLE rollouts (
    number INTEGER PRIMARY KEY, rollout_id TEXT NOT NULL, status TEXT NOT NULL, attempts INTEGER NOT NULL,
    start_time REAL NOT NULL, end_time REAL NOT NULL, mode TEXT NOT NULL, resources_id TEXT NOT NULL
);
CREATE TABLE bodies (number INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE UNIQUE INDEX by_id ON rollouts (rollout_id);
CREATE INDEX by_status ON rollouts (status);
CREATE INDEX by_start ON rollouts (start_time, number, status);
CREATE INDEX by_end ON rollouts (end_time, number, status);
"""
ROW = "(?, ?, ?, ?, ?, ?, ?, ?)"
AT_ONCE = 500
"""Names in one question; older SQLite takes 999."""
MOST = 2**62
"""More rows than there are; SQLite takes no larger numbers than 2**63."""

SORT_KEYS: dict[str, Callable[[Rollout], Any]] = {
    "rollout_id": lambda one: one.rollout_id,
    "status": lambda one: one.status,
    "start_time": lambda one: one.created_us / 1_000_000,
    "end_time": lambda one: None if one.ended_us is None else one.ended_us / 1_000_000,
    "mode": lambda one: one.mode or "",
    "resources_id": lambda one: one.resources_id or "",
}
"""Field of `model.Rollout` -> what it sorts by, equal to what a view has; None comes last. Each has a column."""


def row_of(one: Rollout) -> tuple[Any, ...]:
    """The row of a finished rollout. One that is finished has its end."""
    return (
        one.number, one.rollout_id, one.status, len(one.attempts), one.created_us / 1_000_000,
        (one.ended_us or 0) / 1_000_000, one.mode or "", one.resources_id or "",
    )  # fmt: skip


@dataclass(frozen=True)
class Where:
    """Which rows are wanted, whatever their ids: of these statuses (None: all), with this part in their id.

    `either`: one of the two is enough.
    """

    statuses: frozenset[str] | None = None
    contains: str | None = None
    either: bool = False

    def matches(self, rollout_id: str, status: str) -> bool:
        """Say of one row what the SQL says."""
        said = [status in self.statuses] if self.statuses is not None else []
        if self.contains is not None:
            said.append(self.contains in rollout_id)
        return any(said) if self.either and said else all(said)

    @property
    def statuses_only(self) -> frozenset[str] | None:
        """The statuses of which every row is wanted and no other row; None where ids have to be looked into."""
        if self.contains is None:
            return FINISHED if self.statuses is None else self.statuses & FINISHED
        everything = self.either and self.statuses is not None and self.statuses >= FINISHED
        return FINISHED if everything else None

    def sql(self) -> tuple[str, list[Any]]:
        """The condition, empty for every row, and its parameters."""
        alone = self.statuses_only
        if alone == FINISHED:
            return "", []
        statuses = sorted(FINISHED & self.statuses) if self.statuses is not None else []
        # Written so that an order's index is used, except where one status is wanted in order of creation.
        terms = [f"+status IN ({','.join('?' * len(statuses))})"] if self.statuses is not None else []
        if len(statuses) == 1 and alone is not None:
            terms = ["status = ?"]
        if self.contains is not None:
            terms.append("instr(rollout_id, ?) > 0")
            return f" WHERE {' OR '.join(terms) if self.either else ' AND '.join(terms)}", [*statuses, self.contains]
        return f" WHERE {terms[0]}", list(statuses)


@dataclass(frozen=True)
class ColdRows:
    """Reads the table on a connection that nobody else uses meanwhile. `counts`: status -> (rollouts, attempts) of it."""

    db: sqlite3.Connection
    moves: int
    counts: dict[str, tuple[int, int]] = field(default_factory=lambda: dict[str, tuple[int, int]]())

    def total(self, where: Where) -> int:
        """How many rows there are; ids that have to be looked into are counted, everything else is known."""
        alone = where.statuses_only
        if alone is not None:
            return sum(self.counts.get(status, (0, 0))[0] for status in alone)
        condition, values = where.sql()
        return int(self.db.execute(f"SELECT count(*) FROM rollouts{condition}", values).fetchone()[0])

    def ordered(
        self, where: Where, sort_by: str | None, descending: bool, skip: int, count: int
    ) -> list[tuple[Any, int]]:
        """(what it sorts by, number) of `count` rows (-1: all) behind the first `skip`; ties in order of creation."""
        condition, values = where.sql()
        column = "NULL" if sort_by is None else sort_by
        order = "number" if sort_by is None else f"{sort_by} {'DESC' if descending else 'ASC'}, number"
        if sort_by is not None:
            condition = condition.replace(" status = ?", " +status = ?")
        query = f"SELECT {column}, number FROM rollouts{condition} ORDER BY {order} LIMIT ? OFFSET ?"
        return self.db.execute(query, (*values, count, skip)).fetchall()

    def named(self, rollout_ids: Sequence[str], sort_by: str | None) -> Iterator[tuple[Any, int, str, str]]:
        """(what it sorts by, number, id, status) of those of these ids that are there."""
        column = "NULL" if sort_by is None else sort_by
        for at in range(0, len(rollout_ids), AT_ONCE):
            some = rollout_ids[at : at + AT_ONCE]
            marks = ",".join("?" * len(some))
            yield from self.db.execute(
                f"SELECT {column}, number, rollout_id, status FROM rollouts WHERE rollout_id IN ({marks})", some
            ).fetchall()

    def bodies(self, numbers: Sequence[int]) -> dict[int, bytes]:
        """The packed bytes of these rollouts, by their numbers."""
        found: dict[int, bytes] = {}
        for at in range(0, len(numbers), AT_ONCE):
            some = numbers[at : at + AT_ONCE]
            marks = ",".join("?" * len(some))
            found.update(self.db.execute(f"SELECT number, body FROM bodies WHERE number IN ({marks})", some).fetchall())
        return found
