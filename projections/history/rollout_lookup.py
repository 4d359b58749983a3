"""How some rollouts stand at the end of a log, for who only looks at it: from the newest snapshot where there is one.

What lies behind the snapshot is folded. Rollouts that were archived before it are looked up in the index beside the log,
whose bytes count only where the fold's own hash of them matches. Where anything is missing, everything is folded.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from pathlib import Path

from ...core.fold.apply import apply
from ...core.fold.state import Rollout, State, hash_of, unpack
from ...core.log.interface import Log
from ..archive.index import FORM, has_these_tables_only
from ..replica.snapshots import read_snapshot
from .replay import control_records

AT_ONCE = 500


def rollouts_at_end(log: Log, wanted: Collection[str]) -> dict[str, Rollout]:
    """The rollouts of these ids that the log accepted, as they are after its last record; in order of creation.

    Blocks for the I/O, and writes nothing. A log that this release cannot fold on stands where it stops.
    """
    return fold_to_end(log, wanted)[0] if wanted else {}


def fold_to_end(log: Log, wanted: Collection[str]) -> tuple[dict[str, Rollout], State]:
    """As `rollouts_at_end`, with the whole state at the end of the log, which has every version of every resources id."""
    restored = read_snapshot(log)
    found = None
    state = State()
    if restored is not None:
        state = restored.state
        found = _fold(log, state, restored.next_offset, wanted)
    if found is None:
        state = State()
        found = _fold(log, state, 0, wanted) or {}
    return dict(sorted(found.items(), key=lambda one: one[1].number)), state


def _fold(log: Log, state: State, offset: int, wanted: Collection[str]) -> dict[str, Rollout] | None:
    """Fold what lies behind `offset`; None where an archived rollout was met neither there nor in the index."""
    left: dict[str, Rollout] = {}
    names = frozenset(wanted)
    from_start = offset == 0
    for record in control_records(log, offset):
        for gone, _ in apply(state, record.value).archived:
            if gone.rollout_id in names:
                left[gone.rollout_id] = gone
        if state.halted is not None:
            break
    found = {one: state.rollouts[one] for one in names if one in state.rollouts}
    archived = [one for one in names if one not in found and state.archived.get(one) is not None]
    found.update((one, left[one]) for one in archived if one in left)
    missing = [one for one in archived if one not in left]
    if not missing or from_start:
        return found
    for rollout_id, body in _indexed(log, missing).items():
        rollout = unpack(body) if hash_of(body) == state.archived.get(rollout_id) else None
        if rollout is not None:
            found[rollout_id] = rollout
    return found if all(one in found for one in missing) else None


def _indexed(log: Log, rollout_ids: Sequence[str]) -> dict[str, bytes]:
    """Packed rollouts of the index beside the log; without one that can be read, none."""
    path = index_path(log)
    if path is None or not Path(path).is_file():
        return {}
    written = Path(f"{path}-wal")
    # Without a write-ahead log no process writes it, and SQLite needs no file beside it.
    still = "" if written.is_file() and written.stat().st_size else "&immutable=1"
    found: dict[str, bytes] = {}
    try:
        db = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro{still}", uri=True)
        try:
            if not has_these_tables_only(db):
                return {}
            meta = dict(db.execute("SELECT key, value FROM meta WHERE key IN ('form', 'log_id')").fetchall())
            if meta != {"form": FORM, "log_id": log.log_id}:  # its bytes are checked one by one, by the fold's hashes
                return {}
            for at in range(0, len(rollout_ids), AT_ONCE):
                some = rollout_ids[at : at + AT_ONCE]
                marks = ",".join("?" * len(some))
                query = f"SELECT rollout_id, body FROM rollouts JOIN bodies USING (number) WHERE rollout_id IN ({marks})"
                found.update((one, body) for one, body in db.execute(query, some) if isinstance(body, bytes))
        finally:
            db.close()
    except sqlite3.Error:  # whatever it is, the log has everything
        return {}
    return found


def index_path(log: Log) -> str | None:
    """The cold index lies beside a log file, or in the folder where a log on a broker keeps its copies."""
    path = getattr(log, "path", None)
    folder = getattr(log, "state_folder", None)
    if folder is not None:
        return str(folder / "index.db")
    return None if path is None else f"{path}.index"
