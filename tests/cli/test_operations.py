"""What docs/how-to/operations.md promises about backups, restored files and what may be deleted."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from agentlightning.core.events.codec import decode, encode
from agentlightning.core.events.run_events import RUN_ID
from agentlightning.core.events.schema import AttemptUpdated, NewRollout
from agentlightning.core.fold import commands
from agentlightning.core.log.sqlite.schema import checksum
from agentlightning.rest.open_store import open_store
from agentlightning.rest.server.server import LightningStoreServer

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


def test_dead_letters_of_a_file_are_listed_and_retried_also_while_a_store_serves_it(tmp_path: Path) -> None:
    path = str(tmp_path / "log.db")

    async def fill() -> tuple[list[str], str]:
        with open_store(f"sqlite:///{path}") as store:  # type: ignore[attr-defined]
            run = await store.record_run_event("run.opened", None, {"name": "capitals"})
            made: list[str] = []
            for number in range(4):
                begun = await store.start_rollout(number, metadata={RUN_ID: run["run_id"]} if number else {})
                error = {"error": f"ValueError: {number}"}
                await store.update_attempt(begun.rollout_id, "latest", status="failed", metadata=error)
                made.append(begun.rollout_id)
            return made, run["run_id"]

    made, run_id = asyncio.run(fill())
    code, out = invoke("dead", "ls", "--log", path)
    assert code == 0 and "ValueError: 0 (attempt 1 was the last one" in out and len(out.splitlines()) == 5
    assert document("dead", "retry", made[0], "--log", path)["event"] == "requeued"
    store: Any = open_store(f"sqlite:///{path}")
    server = LightningStoreServer(store, "127.0.0.1", 0)
    asyncio.run(serve_while(server, store, lambda: invoke("dead", "retry", made[1], "--log", path)))
    left = [one["letter"]["rollout_id"] for one in document("dead", "ls", "--log", path)]
    assert left == made[2:]
    done = document("dead", "retry", "--run", "capitals", "--log", path)
    assert done == {"event": "requeued", "run_id": run_id, "rollout_ids": made[2:]}
    assert invoke("dead", "retry", "--run", run_id[:8], "--log", path)[1].endswith(
        "none of its rollouts was given up.\n"
    )
    code, out = invoke("dead", "retry", "--log", path)
    assert code == 2 and "--run RUN" in out
    assert document("dead", "ls", "--log", path) == []


async def serve_while(server: LightningStoreServer, store: Any, act: Callable[[], tuple[int, str]]) -> None:
    """Run a command beside a store that serves its file."""
    await server.start()
    store.engine.log.set_address(server.endpoint)
    try:
        code, out = await asyncio.to_thread(act)
        assert code == 0 and "in the queue again" in out, out
    finally:
        await server.stop()
        store.close()


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
    for offset, time_us, key, headers, value in db.execute(
        "SELECT offset, ts, key, headers, value FROM control_0"
    ).fetchall():
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


async def test_check_tells_what_a_client_claimed_from_a_log_that_was_changed(tmp_path: Path) -> None:
    file = str(tmp_path / "log.db")
    store: Any = open_store(f"sqlite:///{file}")
    rollout = await store.enqueue_rollout("x")
    # As releases did that appended what a client claimed to know, and left the judgement to the fold.
    node, event = store.engine.node, commands.enqueue([NewRollout("ro-never", msgspec.Raw(b"null"))])
    for number, basis in enumerate([(0, b"nonsense"), (2**62, b"nonsense")]):
        with node.lock:
            node.propose(event, f"{number:032x}", lambda _: None, basis)
    for number in range(2):  # one that may be under way at the same time, and one that is based on them
        await store.update_rollout(rollout.rollout_id, metadata={"number": number})
    store.close()
    report = document("log", "check", "--log", file)
    assert report["sound"] and report["findings"] == []
    assert document("replay", file)["refused"] == {"foreign_history": 2}, "they are in the log, and what became of them"

    db = sqlite3.connect(file)
    (row,) = db.execute("SELECT offset, ts, key, headers, value FROM control_0 WHERE offset = 1").fetchall()
    offset, time_us, key, headers, value = row
    assert b"enqueued" in value
    changed = value.replace(rollout.rollout_id.encode(), b"ro-" + b"0" * 12)
    row = (changed, checksum(offset, time_us, key, headers, changed))
    db.execute("UPDATE control_0 SET value = ?, crc = ? WHERE offset = 1", row)
    db.commit()
    db.close()
    for _ in range(2):
        code, out = invoke("log", "check", "--log", file)
        assert code == 1 and "another history" in out
        with open_store(f"sqlite:///{file}") as going_on:  # type: ignore[attr-defined]
            await going_on.enqueue_rollout("what is written now does not hide it")
