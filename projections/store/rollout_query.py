"""One page of rollouts: hot ones are looked through, archived ones found by the index, and only those shown are decoded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from ...core.errors import Rebuilding
from ...core.fold.state import Rollout, unpack
from ...core.model import rollout as model
from ...core.model.query import IncompletePage, compile_filter, page
from ...core.model.status import FINISHED
from ..archive.index import MOST, SORT_KEYS, ArchiveRows, Where
from .engine import Engine
from .views import shown

logger = logging.getLogger(__name__)

TRIES = 5
"""How often the index is read beside its writer before the store waits for the reader."""
SLACK = 1_000
"""Rollouts that may become hot while the index is read."""

View = Callable[[Rollout, list[str]], model.Rollout]
Found = tuple[Any, int, Rollout | None]
"""(what it sorts by, number, the rollout where it is in memory)."""
_number = itemgetter(1)


@dataclass(frozen=True)
class RolloutQuery:
    """What `query_rollouts` was asked; the arguments were checked."""

    statuses: Sequence[str] | None
    ids: Sequence[str] | None
    contains: str | None
    logic: str
    sort_by: str | None
    sort_order: str
    limit: int
    offset: int

    def filters(self) -> dict[str, Any]:
        """As `core.pages` takes them."""
        return {
            "status": {"within": self.statuses},
            "rollout_id": {"within": self.ids, "contains": self.contains},
            "_aggregate": self.logic,
        }

    @property
    def named_only(self) -> bool:
        """Whether no other rollout than those of `ids` can match."""
        more = self.statuses is not None or self.contains is not None
        return self.ids is not None and not (self.logic == "or" and more)

    def where(self) -> Where | None:
        """Which finished rollouts may be wanted besides those that are named; None for none of them."""
        either = self.logic == "or"
        if self.named_only:
            return None
        statuses = None if self.statuses is None else frozenset(self.statuses)
        if statuses is not None and not statuses & FINISHED and (not either or self.contains is None):
            return None
        return Where(statuses, self.contains, either)


class RolloutPages:
    """Answers one query. `view` makes what the caller sees of a copy of a rollout, of those of the page only.

    What the log lost of a rollout costs this row its user data, and marks the page.
    """

    def __init__(self, engine: Engine, query: RolloutQuery, view: View) -> None:
        # No item: whatever cannot be filtered, sorted or paged is refused here.
        page((), filters=query.filters(), sort_by=query.sort_by, sort_order=query.sort_order, limit=query.limit,
             offset=query.offset, model=model.Rollout)  # fmt: skip
        self._engine = engine
        self._query = query
        self._view = view
        self._lost: list[str] = []
        self._where = query.where()
        self._matches = compile_filter(query.filters(), model=model.Rollout)
        self._key = SORT_KEYS[query.sort_by] if query.sort_by is not None else _nothing
        self._descending = query.sort_order == "desc"
        self._ids = None if query.ids is None else list(dict.fromkeys(query.ids))

    async def answer(self) -> model.PaginatedResult[Any]:
        """The page. Raises `Rebuilding` where finished rollouts are needed and cannot be listed yet."""
        if self._where is None:
            hot: list[Rollout] | None = None
            total = 0
            with self._engine.node.lock:
                if self._all_hot():
                    found = self._hot(())
                    total = len(found)
                    wanted = self._cut(self._in_order(found), self._query.offset)
                    hot = [self._engine.copied(one) for _, _, one in wanted if one is not None]
            if hot is not None:
                copies = hot
                return self._result(await shown(lambda: [self._view(one, self._lost) for one in copies], copies), total)
        await self._engine.indexed()
        for _ in range(TRIES if self._engine.archive_index.beside else 0):
            answer = await asyncio.to_thread(self._try, False)
            if answer is not None:
                return answer
        answer = await asyncio.to_thread(self._try, True)
        assert answer is not None  # nothing moves while the node's lock is held
        return answer

    def _all_hot(self) -> bool:
        """Whether no finished rollout outside of hot state is wanted. Under the node's lock."""
        state = self._engine.node.state
        return all(one in state.rollouts or state.archived.get(one) is None for one in self._ids or ())

    def _try(self, still: bool) -> model.PaginatedResult[Any] | None:
        """The page, or None where rollouts moved while the index was read. Blocks for the I/O."""
        engine, query = self._engine, self._query
        with engine.node.lock if still else nullcontext(), engine.archive_index.reading(still) as table:
            most = len(engine.node.state.rollouts) + len(engine.archive_index.pending()[1]) + len(self._ids or ()) + SLACK
            skipped = min(max(query.offset - most, 0), MOST)
            rows = self._rows(table, skipped)
            named = list(table.named(self._ids, query.sort_by)) if self._ids is not None else []
            total = table.total(self._where) if self._where is not None else 0
            with engine.node.lock:
                moves, pending = engine.archive_index.pending()
                found = self._hot(pending)
                found += self._cold_named(named, {number for _, number, _ in found})
                if moves != table.moves or len(found) > most:
                    return None
                wanted = self._cut(self._in_order([*found, *rows]), query.offset - skipped)
                copies = {number: engine.copied(one) for _, number, one in wanted if one is not None}
            bodies = table.bodies([number for _, number, one in wanted if one is None])
        views = {number: self._view(one, self._lost) for number, one in copies.items()}
        for number, body in bodies.items():
            rollout = unpack(body)
            if rollout is None or rollout.number != number:
                self._engine.archive_index.fail(f"its row {number} is not a rollout")
                raise Rebuilding("the index of finished rollouts is made anew; try again in a moment")
            views[number] = self._view(rollout, self._lost)
        return self._result([views[number] for _, number, _ in wanted if number in views], total + len(found))

    def _rows(self, table: ArchiveRows, skipped: int) -> list[Found]:
        """Rows that can be on the page: at most so many lie before it as there are, less what memory has."""
        query = self._query
        if self._where is None:
            return []
        count = -1 if query.limit == -1 else max(min(query.offset + query.limit, MOST) - skipped, 0)
        rows = table.ordered(self._where, query.sort_by, self._descending, skipped, count)
        return [(key, number, None) for key, number in rows]

    def _hot(self, pending: Iterable[Rollout]) -> list[Found]:
        """What matches of hot state and of what the index has not written yet. Under the node's lock."""
        rollouts = self._engine.node.state.rollouts
        hot: Iterable[Rollout] = rollouts.values()
        if self._ids is not None and self._query.named_only:
            hot = [rollouts[one] for one in self._ids if one in rollouts]
        candidates = [*hot, *(one for one in pending if one.rollout_id not in rollouts)]
        matches, key = self._matches, self._key
        return [(key(one), one.number, one) for one in candidates if matches is None or matches(one)]

    def _cold_named(self, named: list[tuple[Any, int, str, str]], seen: set[int]) -> list[Found]:
        """What matches of the rows that are named, except what the other condition finds anyway."""
        where, statuses, contains = self._where, self._query.statuses, self._query.contains
        found: list[Found] = []
        for key, number, rollout_id, status in named:
            if where is not None:  # "or": being named is enough
                wanted = not where.matches(rollout_id, status)
            elif self._query.logic == "or":
                wanted = True
            else:
                wanted = (statuses is None or status in statuses) and (contains is None or contains in rollout_id)
            if wanted and number not in seen:
                found.append((key, number, None))
        return found

    def _in_order(self, found: list[Found]) -> list[Found]:
        ordered = sorted(found, key=_number)
        if self._query.sort_by is None:
            return ordered
        dated = [one for one in ordered if one[0] is not None]
        never = [one for one in ordered if one[0] is None]
        return [*sorted(dated, key=itemgetter(0), reverse=self._descending), *never]

    def _cut(self, ordered: list[Found], offset: int) -> list[Found]:
        return ordered[offset : None if self._query.limit == -1 else offset + self._query.limit]

    def _result(self, items: list[Any], total: int) -> model.PaginatedResult[Any]:
        query = self._query
        if self._lost:
            logger.warning("User data of rollouts is gone from the log (%s); their rows are marked.", self._lost[0])
        kind = IncompletePage[Any] if self._lost else model.PaginatedResult[Any]
        return kind.model_construct(items=items, limit=query.limit, offset=query.offset, total=total)


def _nothing(_: Rollout) -> None:
    return None
