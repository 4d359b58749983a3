"""Runs: which fits a log holds, what they were given, what their algorithms decided, and which rollouts are theirs.

A projection of its own beside the fold: it reads the control log from its first record, keeps where it stands, and reads
on from there when it is asked again. A rollout belongs to the run that its metadata names (`agl.run_id`), or that a
decision of the run lists; so any number of runs may be under way in one log.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import msgspec

from ...core.errors import AgentLightningError, InvalidInput, NotFound
from ...core.events import codec, payload
from ...core.events.codec import Undecodable, UnknownEvent
from ...core.events.run_events import LOST, MARKS, RUN_ID, RunClosed, RunOpened, RunRecord, decode_run, run_of
from ...core.events.schema import NewRollout, RolloutsEnqueued, RolloutStarted
from ...core.log.interface import Log
from ...core.log.topics import CONTROL
from ..liveness.heartbeats import Heartbeats
from ..replica.fold_cursor import control_records

MOST_NAMED = 10
LATEST = "latest"
"""The name under which every command finds the run that was opened last."""
_RUN_ID, _METADATA = RUN_ID.encode(), b'"metadata"'
_OPENED, _CLOSED, _DECIDED = MARKS
_OF_OPENING = (
    "run_id", "name", "algorithm", "agent", "seed", "resources_id", "resources_version", "train_size", "val_size",
    "own_runners",
)  # fmt: skip
"""Fields that `RunOpened` and `Run` share."""


class Decision(msgspec.Struct, frozen=True):
    """Something that an algorithm decided.

    `position`: of its record. `based_on`: control records that were applied where it decided, -1 for unknown. `digest`
    stands for the whole, `content` may be a shortened form of it. `time`: Unix seconds.
    """

    position: int
    time: float
    kind: str
    digest: str
    content: Any = None
    based_on: int = -1


class Run(msgspec.Struct):
    """One fit. Positions are those of its records, times Unix seconds; what is None has not happened.

    `rollout_ids` are in the order in which they were created; those of a proposal that the log refused are among them
    until a reader that folded the log leaves them out. `decisions` are in log order, `decided` is their number, also
    where they were not requested. `outcome` is `lost` where the owner was gone; `closed_at` is None there while that is not
    in the log yet, and `closed_time` is that of its last heartbeat. `own_runners`: only its own runners get its rollouts.
    """

    run_id: str
    opened_at: int
    opened_time: float
    name: str = ""
    algorithm: str = ""
    agent: str = ""
    parameters: Any = None
    seed: int | None = None
    resources_id: str | None = None
    resources_version: int | None = None
    train_size: int = -1
    val_size: int = -1
    own_runners: bool = False
    closed_at: int | None = None
    closed_time: float | None = None
    outcome: str | None = None
    best_resources_id: str | None = None
    best_resources_version: int | None = None
    summary: Any = None
    rollout_ids: list[str] = []
    decided: int = 0
    decisions: list[Decision] = []
    opened_offset: int = -1


class RunBook:
    """The runs of one log. `advance` blocks for the I/O only and may be called from any thread."""

    def __init__(self, log: Log, fetch: Callable[[payload.Reference], bytes]) -> None:
        self._log = log
        self._fetch = fetch
        self._offset = 0
        self._position = 0
        self._seen: set[str] = set()
        self._of_rollout: dict[str, str] = {}
        self._lock = threading.Lock()
        self.runs: dict[str, Run] = {}
        self.early: dict[str, str] = {}
        """Rollout -> the run that its metadata names, where no such run was open yet or the record is in JSON."""

    def advance(self) -> dict[str, Run]:
        """Read to the end of the log; the runs in the order in which they were opened."""
        with self._lock:
            for record in control_records(self._log, self._offset):
                self._offset = record.offset + 1
                self.read(self._position, record.value, record.offset)
                self._position += 1
            self._look_for_lost()
            return self.runs

    def _look_for_lost(self) -> None:
        """Open runs whose owner ended with the process that wrote the file: the next process that writes it records that."""
        is_written: Callable[[], bool] | None = getattr(self._log, "is_written", None)
        left = {run.run_id for run in self.runs.values() if run.closed_at is None}
        if not left or is_written is None or is_written():
            return
        liveness = Heartbeats(self._log)
        liveness.load()
        for run_id in left.intersection(liveness.runs):
            run = self.runs[run_id]
            run.outcome, run.closed_time = LOST, max(run.opened_time, liveness.runs[run_id].beat_us / 1_000_000)

    def read(self, position: int, value: bytes, offset: int) -> None:
        """Take one control record."""
        if _OPENED in value or _CLOSED in value or _DECIDED in value:
            run = decode_run(value)
            if run is not None:
                if run.id not in self._seen:  # a repeated command is in the log twice and happened once
                    self._seen.add(run.id)
                    self._run_event(position, run, offset)
                return
        if _RUN_ID in value:
            self._created(value, self._joins)
        elif _METADATA in value and value[:1] == b"{":  # in base64 in older records; runs of golden logs do not list those
            self._created(value, self.early.setdefault)

    def _run_event(self, position: int, record: RunRecord, offset: int) -> None:
        event, time = record.event, record.time_us / 1_000_000
        if isinstance(event, RunOpened):
            if event.run_id not in self.runs:
                self.runs[event.run_id] = self._opened(event, position, time, offset)
            return
        run = self.runs.get(event.run_id)
        if run is None:
            return
        if isinstance(event, RunClosed):
            if run.closed_at is None or (run.outcome == LOST and event.outcome != LOST):
                run.closed_at, run.closed_time, run.outcome = position, time, event.outcome
                run.best_resources_id, run.best_resources_version = event.resources_id, event.resources_version
                run.summary = self._user(event.summary)
            return
        content = self._user(event.content)
        run.decided += 1
        run.decisions.append(Decision(position, time, event.kind, event.digest, content, event.based_on))
        for rollout_id in _listed(content):
            self._joins(rollout_id, event.run_id)

    def _opened(self, event: RunOpened, position: int, time: float, offset: int) -> Run:
        same = {name: getattr(event, name) for name in _OF_OPENING}
        return Run(opened_at=position, opened_time=time, opened_offset=offset, parameters=self._user(event.parameters), **same)

    def _user(self, field: msgspec.Raw) -> Any:
        """User data; of one that cannot be read the reason, since one bad run must not hide the others."""
        try:
            return payload.decode(payload.outline(field) or payload.NULL, self._fetch)
        except AgentLightningError as error:
            return f"<{error.message}>"

    def _created(self, value: bytes, joins: Callable[[str, str], object]) -> None:
        try:
            event = codec.decode(value).event
        except (UnknownEvent, Undecodable):
            return
        for new in created_by(event):
            run_id = run_of(payload.outline(new.metadata))
            if run_id is not None:
                joins(new.rollout_id, run_id)

    def _joins(self, rollout_id: str, run_id: str) -> None:
        """The first run that names a rollout has it."""
        run = self.runs.get(run_id)
        if run is None:
            self.early.setdefault(rollout_id, run_id)
        elif rollout_id not in self._of_rollout:
            self._of_rollout[rollout_id] = run_id
            run.rollout_ids.append(rollout_id)


def datasets_of(log: Log, run: Run, fetch: Callable[[payload.Reference], bytes]) -> dict[str, Any]:
    """What the run was recorded with, by `train`, `val` and `initial_resources`, as far as it was. Blocks for the I/O."""
    offset = run.opened_offset
    for record in log.read(CONTROL, 0, offset, 1, headers=False):
        opened = decode_run(record.value)
        if opened is not None and isinstance(opened.event, RunOpened):
            found = payload.decode(payload.outline(opened.event.datasets) or payload.NULL, fetch)
            return cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    return {}


def created_by(event: Any) -> Sequence[NewRollout]:
    """The rollouts that an event creates."""
    if isinstance(event, RolloutsEnqueued):
        return event.rollouts
    return (event.rollout,) if isinstance(event, RolloutStarted) else ()


def _listed(content: Any) -> list[str]:
    """The rollouts that a decision names."""
    ids = _entry(content, "rollout_ids")
    return [one for one in cast("list[Any]", ids) if isinstance(one, str)] if isinstance(ids, list) else []


def _entry(value: Any, key: str) -> Any:
    return cast("dict[Any, Any]", value).get(key) if isinstance(value, dict) else None


def find_run(runs: Mapping[str, Run], name: str) -> Run:
    """The run of this id; else the newest of this name, or the newest of all for `latest`; else the one whose id begins so.

    Raises `NotFound`, and `InvalidInput` where several ids begin so.
    """
    if name in runs:
        return runs[name]
    named = [run for run in runs.values() if run.name == name] or (list(runs.values()) if name == LATEST else [])
    if named:
        return max(named, key=lambda run: (run.opened_time, run.opened_at))
    found = [run for run in runs.values() if name and run.run_id.startswith(name)]
    if not found:
        known = list(dict.fromkeys(run.name or run.run_id for run in reversed(list(runs.values()))))
        newest = f"the newest are {', '.join(known[:MOST_NAMED])}" if known else "the log has no run yet"
        raise NotFound(f"there is no run whose id begins with {name}, and none of that name; {newest}")
    if len(found) > 1:
        several = ", ".join(run.run_id for run in found[:MOST_NAMED])
        raise InvalidInput(f"{name} may be any of {len(found)} runs: {several}")
    return found[0]
