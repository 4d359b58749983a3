"""What a store offers for runs beyond the public interface: their events are recorded, and the runs are listed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from ...core.errors import InvalidInput
from ...core.events import payload
from ...core.events.run_events import BEAT, CLOSED, DECIDED, OPENED, RunEvent, digest_of
from ...core.fold import commands
from ...core.model.scalars import escaped, plain_scalar
from ...core.model.status import QUEUING, RUNNING
from ...core.model.store_interface import LightningStore
from ..history.run_index import Run, RunBook, find_run
from ..replica import validation
from ..replica.command_context import current_call
from .engine import Engine
from .views import SLICE

MOST_CHARACTERS = 1_000
CANCELLED_AT_ONCE = 100
"""So many rollouts are read before they are cancelled: few can end in between."""
RunEventType = Literal["run.opened", "run.closed", "algorithm.decided", "run.beat"]

_PLAIN: dict[str, dict[str, Any]] = {
    OPENED: {
        "name": str, "algorithm": str, "agent": str, "seed": int | None, "resources_id": str | None,
        "resources_version": int | None, "train_size": int, "val_size": int, "own_runners": bool,
    },
    CLOSED: {"outcome": str, "resources_id": str | None, "resources_version": int | None},
    DECIDED: {"kind": str, "digest": str, "based_on": int},
}  # fmt: skip
_USER = {OPENED: ("parameters", "datasets"), CLOSED: ("summary",), DECIDED: ("content",)}
_MAKE: dict[str, Callable[..., RunEvent]] = {
    OPENED: commands.open_run,
    CLOSED: commands.close_run,
    DECIDED: commands.decision,
}
_NEEDED = {OPENED: (), CLOSED: ("outcome",), DECIDED: ("kind",)}


class RunMethods(LightningStore):
    """Part of `EventLogStore` (store.py)."""

    engine: Engine
    _book: tuple[Engine, RunBook] | None = None

    async def record_run_event(
        self, type: RunEventType, run_id: str | None = None, fields: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Put an event of a run into the log; `{"run_id", "position"}` once it is durable.

        `run.opened` without a run id makes one. `fields`: of `RunOpened`, `RunClosed` or `AlgorithmDecided`
        (core/events/run_events.py), where user data are given as they are and a missing `digest` is taken of the content. User
        data beyond 900 kB go into blobs.

        `run.beat` is no event: the owner of the run is alive. An owner that sent it once is expected to send it on,
        every few seconds where it is a client: a run whose owner is silent, or whose process is gone, is closed as `lost`.
        Raises `InvalidInput` for other fields, `PayloadTooLarge`, and what a log raises.
        """
        if type == BEAT:
            return self._owner_alive(run_id)
        if type not in _PLAIN:
            raise InvalidInput(f"{type!r} is no event of a run; there are {', '.join(_PLAIN)}")
        given = dict(fields or {})
        user = {field: given.pop(field) for field in _USER[type] if field in given}
        given = {name: plain_scalar(value) for name, value in given.items()}
        try:
            plain = {name: msgspec.convert(value, _PLAIN[type][name]) for name, value in given.items()}
        except KeyError as unknown:
            raise InvalidInput(f"{type} has no field {unknown}") from None
        except msgspec.ValidationError as error:
            raise InvalidInput(f"a field of {type} has the wrong type: {error}") from None
        plain = {name: escaped(value) if isinstance(value, str) else value for name, value in plain.items()}
        if any(isinstance(value, str) and len(value) > MOST_CHARACTERS for value in (run_id, *plain.values())):
            raise InvalidInput(f"names of a run have at most {MOST_CHARACTERS:,} characters")
        missing = [name for name in _NEEDED[type] if not plain.get(name)]
        if missing or (run_id is None and type != OPENED):
            raise InvalidInput(f"{type} needs {' and '.join(missing or ['run_id'])}")
        name = run_id if run_id is not None else commands.run_id_of(current_call().command_id)
        if type == DECIDED:
            plain.setdefault("digest", digest_of(user.get("content")))
        blobs = self.engine.blobs
        for field, value in user.items():  # all of them share one record
            limit_bytes = payload.INLINE_LIMIT_BYTES // len(user)
            plain[field] = payload.inline(await blobs.settle(blobs.encode(value, field), limit_bytes))
        engine = self.engine
        position = await engine.note(_MAKE[type](name, **plain))
        if type == CLOSED:
            with engine.node.lock:
                engine.expiry.run_closed(name)
        return {"run_id": name, "position": position}

    def _owner_alive(self, run_id: str | None) -> dict[str, Any]:
        run_id = validation.id_or_none(run_id, "run_id")
        if run_id is None:
            raise InvalidInput(f"{BEAT} needs run_id")
        engine = self.engine
        with engine.node.lock:
            engine.expiry.run_alive(run_id, here=not current_call().remote)
            return {"run_id": run_id, "position": engine.node.state.position}

    async def query_runs(self, run_id: str | None = None, brief: bool = False) -> list[dict[str, Any]]:
        """The runs, the oldest first, as `Run` in plain data.

        `run_id`: only this one, by its id, its name or the beginning of its id. `brief`: without rollouts and decisions,
        of which there may be many. Raises `NotFound`, `InvalidInput`.
        """
        engine = self.engine
        if self._book is None or self._book[0] is not engine:
            self._book = (engine, RunBook(engine.log, engine.fetch))
        runs = await asyncio.to_thread(self._book[1].advance)
        wanted = list(runs.values()) if run_id is None else [find_run(runs, run_id)]
        await engine.indexed()
        return await asyncio.to_thread(lambda: [self._row(run, brief) for run in wanted])

    def _row(self, run: Run, brief: bool) -> dict[str, Any]:
        if brief:
            return msgspec.to_builtins(msgspec.structs.replace(run, rollout_ids=[], decisions=[]))
        row, known = msgspec.to_builtins(run), list[str]()
        for start in range(0, len(row["rollout_ids"]), SLICE):
            with self.engine.node.lock:
                some = row["rollout_ids"][start : start + SLICE]
                known += [one for one in some if self.engine.is_finished(one) is not None]
        row["rollout_ids"] = known
        return row


async def cancel_run(store: Any, name: str) -> dict[str, Any]:
    """Cancel the rollouts of a run that are not over, over any store that keeps runs; `{"run_id", "rollout_ids"}`.

    `name`: the id of the run, the beginning of it, or its name. Raises `NotFound`, `InvalidInput` for several.
    """
    [run] = await store.query_runs(name)
    cancelled: list[str] = []
    ids: list[str] = run["rollout_ids"]
    for first in range(0, len(ids), CANCELLED_AT_ONCE):
        some = ids[first : first + CANCELLED_AT_ONCE]
        for rollout in await store.query_rollouts(rollout_id_in=some, status_in=[*QUEUING, *RUNNING]):
            await store.update_rollout(rollout.rollout_id, status="cancelled")
            cancelled.append(rollout.rollout_id)
    return {"run_id": run["run_id"], "rollout_ids": cancelled}
