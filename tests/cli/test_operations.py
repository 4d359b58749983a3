"""What docs/operations.md promises about backups, restored files and what may be deleted."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path
from typing import Any

from agentlightning.core.codec import decode, encode
from agentlightning.core.events import AttemptUpdated
from agentlightning.core.sqlite_log.schema import checksum
from agentlightning.projections.store import open_store

from .support import document, invoke, make_log, running


def test_a_backup_under_load_is_sound_and_a_prefix_of_the_log(tmp_path: Path) -> None:
    store: Any = open_store(f"sqlite:///{tmp_path / 'log.db'}")
    stop = threading.Event()

    async def load() -> None:
        while not stop.is_set():
            await asyncio.gather(*(store.enqueue_rollout({"text": "x" * 500}) for _ in range(20)))

    writer = threading.Thread(target=lambda: asyncio.run(load()))
    writer.start()
    try:
        while store.fingerprint()[0] < 100:
            stop.wait(0.01)
        source = sqlite3.connect(f"file:{tmp_path / 'log.db'}?mode=ro", uri=True)
        target = sqlite3.connect(tmp_path / "backup.db")
        source.backup(target)
        target.close()
        source.close()
        code, out = invoke("log", "copy", str(tmp_path / "log.db"), str(tmp_path / "copy.db"))
        assert code == 0, out
    finally:
        stop.set()
        writer.join()
        store.close()
    for name in ("backup.db", "copy.db"):
        report = document("log", "check", "--log", str(tmp_path / name))
        assert report["sound"] and report["position"] >= 100
        there = document("replay", str(tmp_path / "log.db"), "--to", str(report["position"]))
        assert there["fingerprint"] == report["fingerprint"]


def test_index_and_lock_may_be_deleted_and_are_made_again(tmp_path: Path) -> None:
    made = make_log(tmp_path / ".agl" / "log.db")
    for name in ("log.db.index", "log.db.lock"):
        (tmp_path / ".agl" / name).unlink()
    with running("store", "--port", "0", cwd=tmp_path) as store:
        assert f"{made['position']} events, 2 rollouts" in store.wait_for(store.err, "Opened")
        store.end()
    assert (tmp_path / ".agl" / "log.db.index").exists()


def test_a_change_that_also_mends_the_check_sum_is_found_by_the_fingerprints(tmp_path: Path) -> None:
    made = make_log(tmp_path / "log.db")
    db = sqlite3.connect(tmp_path / "log.db")
    for offset, time_us, key, headers, value in db.execute("SELECT offset, ts, key, headers, value FROM control_0").fetchall():
        event = decode(value).event
        if isinstance(event, AttemptUpdated) and event.status == "failed":
            changed = value.replace(b"failed", b"failex")
            assert encode(decode(value)) == value and len(changed) == len(value)
            row = (changed, checksum(offset, time_us, key, headers, changed), offset)
            db.execute("UPDATE control_0 SET value = ?, crc = ? WHERE offset = ?", row)
    db.commit()
    db.close()
    code, out = invoke("log", "check", "--log", str(tmp_path / "log.db"))
    assert code == 1 and "another history" in out
    assert document("replay", str(tmp_path / "log.db"))["fingerprint"] != made["fingerprint"]
