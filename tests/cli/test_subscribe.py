"""`agl subscribe` and `agl dead` as processes over HTTP: killed in the middle, interrupted, given up, retried."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl

from .support import Process, document, documents, invoke, running

SUBSCRIBER = """
import os, time
import agentlightning as agl

@agl.subscriber("rollout.completed")
def keep(fact):
    with open({out!r}, "a") as file:
        file.write(fact.id + "\\n")
        file.flush()
    time.sleep({pause})

@agl.subscriber("rollout.completed")
async def picky(fact, store):
    rollout = await store.get_rollout_by_id(fact.rollout_id)
    if rollout.input == "bad" and not os.path.exists({out!r} + ".mended"):
        raise ValueError("a bad one")
    with open({out!r}, "a") as file:
        file.write(fact.id + "\\n")
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    """The address of a served store."""
    served: Any = agl.open_store(f"sqlite:///{tmp_path}/log.db")
    server = agl.LightningStoreServer(served, host="127.0.0.1", port=0)
    asyncio.run(server.start())
    try:
        yield server.endpoint
    finally:
        asyncio.run(server.stop())
        served.close()


def write_subscriber(folder: Path, pause: float = 0.0) -> Path:
    """The program of `SUBSCRIBER`; returns the file that its functions write to."""
    out = folder / "handled.txt"
    out.touch()
    (folder / "subs.py").write_text(SUBSCRIBER.format(out=str(out), pause=pause))
    return out


def finish_rollouts(url: str, inputs: list[str]) -> list[str]:
    """Run and complete rollouts; their ids."""

    async def work() -> list[str]:
        client = agl.LightningStoreClient(url)
        ids: list[str] = []
        for given in inputs:
            begun = await client.start_rollout(given, worker_id="w")
            await client.update_attempt(begun.rollout_id, begun.attempt.attempt_id, status="succeeded")
            ids.append(begun.rollout_id)
        await client.close()
        return ids

    return asyncio.run(work())


def completed(url: str, folder: Path) -> set[str]:
    """The ids of the facts that a subscriber has to see."""
    found = documents("log", "tail", "facts", "-n", "9999", "--type", "rollout.completed", "--log", str(folder / "log.db"))
    return {one["body"]["id"] for one in found}


def until(seconds: float, ready: Any) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_killed_in_the_middle_every_fact_is_handled_at_least_once(store: str, tmp_path: Path) -> None:
    out = write_subscriber(tmp_path, pause=0.01)
    finish_rollouts(store, ["x"] * 60)
    args = ("subscribe", "subs.py:keep", "--store", store, "--log-level", "INFO")
    for upto in (10, 25):
        with running(*args, cwd=tmp_path) as process:
            until(20, lambda least=upto: len(out.read_text().splitlines()) >= least)
            process.process.kill()
            process.process.wait()
    finish_rollouts(store, ["y"] * 5)
    wanted = completed(store, tmp_path)
    assert len(wanted) == 65
    with running(*args, cwd=tmp_path) as process:
        Process.wait_for(process.err, "handled in")
        until(20, lambda: set(out.read_text().splitlines()) >= wanted)
        assert process.end(signal.SIGINT) == 130
    counts = Counter(out.read_text().splitlines())
    assert set(counts) == wanted
    assert sum(counts.values()) <= len(wanted) + 2  # a kill repeats the fact that was being handled, no more


def test_what_a_subscriber_decides_is_a_run_that_replays(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import agentlightning as agl\n\n"
        '@agl.subscriber("rollout.completed")\n'
        "async def harder(fact, store):\n"
        "    rollout = await store.get_rollout_by_id(fact.rollout_id)\n"
        "    if not rollout.input.startswith('LIMIT'):\n"
        "        await store.enqueue_rollout('harder ' + rollout.input)\n"
    )
    (tmp_path / "curator.py").write_text(code.replace("LIMIT", "skip"))
    (tmp_path / "changed.py").write_text(code.replace("LIMIT", "b"))
    log = str(tmp_path / "log.db")
    finish_rollouts(store, ["a", "skip"])
    args = ("subscribe", "curator.py:harder", "--store", store, "--run", "curator")
    with running(*args, cwd=tmp_path) as process:
        until(20, lambda: document("ps", "--log", store) and document("ps", "--log", store)[0]["decisions"] == 1)
        assert process.end(signal.SIGTERM) == 0
    finish_rollouts(store, ["b"])
    with running(*args, cwd=tmp_path) as process:
        until(20, lambda: document("ps", "--log", store)[0]["decisions"] == 2)
        assert process.end(signal.SIGTERM) == 0
    (run,) = document("ps", "--log", store)
    assert (run["name"], run["state"], run["rollouts"]) == ("curator", "open", {"queuing": 2})
    monkeypatch.chdir(tmp_path)
    report = document("replay", "curator", "--log", log, "--algorithm", "curator.py:harder")
    assert report["same"] and report["decisions"] == report["recorded"] == 2
    code_, out = invoke("replay", "curator", "--log", log, "--algorithm", "changed.py:harder")
    assert code_ == 1 and "harder b" in out and "harder skip" in out


def test_a_second_process_of_the_group_is_refused(store: str, tmp_path: Path) -> None:
    write_subscriber(tmp_path)
    args = ("subscribe", "subs.py:keep", "--store", store, "--group", "g", "--json")
    with running(*args, cwd=tmp_path) as process:
        until(20, lambda: (tmp_path / ".agl/subscribers/g.json.lock").exists())
        with running(*args, cwd=tmp_path) as second:
            assert "is handled by process" in Process.wait_for(second.err, "message")
            assert second.process.wait(20) == 1
        assert process.end(signal.SIGTERM) == 0
        assert json.loads(Process.wait_for(process.out, "stopped"))["exit_code"] == 0


def test_what_is_never_taken_is_dead_and_the_next_one_follows(store: str, tmp_path: Path) -> None:
    out = write_subscriber(tmp_path)
    good, bad, last = finish_rollouts(store, ["good", "bad", "good"])
    args = ("subscribe", "subs.py:picky", "--store", store, "--retries", "2", "--backoff-seconds", "0.01", "--json")
    with running(*args, cwd=tmp_path) as process:
        lines = [json.loads(Process.wait_for(process.out, "event")) for _ in range(3)]
        assert process.end(signal.SIGTERM) == 0
    assert [(one["event"], one["fact"]["rollout_id"], one["tries"]) for one in lines] == [
        ("handled", good, 1),
        ("given_up", bad, 3),
        ("handled", last, 1),
    ]
    assert lines[1]["reason"] == "ValueError: a bad one"
    for where in (("--store", store), ("--log", str(tmp_path / "log.db"))):
        (entry,) = document("dead", "ls", *where)
        assert (entry["letter"]["kind"], entry["letter"]["rollout_id"], entry["times"]) == ("subscriber", bad, 1)
        assert document("dead", "show", bad, *where)["letter"]["reason"] == "ValueError: a bad one"
        code, text = invoke("dead", "ls", *where)
        assert code == 0 and "ValueError: a bad one" in text and "subs.picky" in text
    code, text = invoke("log", "tail", "dead", "--log", str(tmp_path / "log.db"))
    assert code == 0 and "subscriber" in text and "a bad one" in text
    retry_it(store, tmp_path, bad)
    assert len(out.read_text().splitlines()) == 3


def retry_it(store: str, tmp_path: Path, bad: str) -> None:
    """First it is as bad as before, then it is mended; the letter is settled by the second."""
    function = ("--function", f"{tmp_path}/subs.py:picky")
    code, text = invoke("dead", "retry", bad, "--store", store, *function)
    assert code == 1 and "did not take it: ValueError: a bad one" in text
    assert len(document("dead", "ls", "--store", store)) == 1
    (tmp_path / "handled.txt.mended").touch()
    assert document("dead", "retry", bad, "--store", store, *function)["event"] == "handled"
    assert document("dead", "ls", "--store", store) == []
    assert [one["letter"]["settled"] for one in document("dead", "ls", "--all", "--store", store)] == ["handled"]
    code, text = invoke("dead", "ls", "--store", store)
    assert code == 0 and text == "No dead letters that are open; 1 settled one with --all\n"
    code, text = invoke("dead", "retry", bad, "--store", store, *function)
    assert code == 1 and "was handled already" in text


def test_a_rollout_that_was_given_up_is_queued_again(store: str, tmp_path: Path) -> None:
    from agentlightning.core.log.dead_letter import DeadLetter, rollout_letter_id

    (rollout_id,) = finish_rollouts(store, ["x"])

    async def tell() -> None:
        client = agl.LightningStoreClient(store)
        await client.add_dead_letter(
            DeadLetter(id=rollout_letter_id(rollout_id, 1), kind="rollout", source=rollout_id,
                       rollout_id=rollout_id, reason="failed 1 of 1", time=time.time())
        )  # fmt: skip
        await client.close()

    asyncio.run(tell())
    assert document("dead", "retry", rollout_id, "--store", store)["event"] == "requeued"
    assert document("dead", "ls", "--store", store) == []
    shown = document("show", rollout_id, "--log", str(tmp_path / "log.db"))
    assert shown["status"] == "queuing"
    code, text = invoke("dead", "retry", "nothing", "--store", store)
    assert code == 1 and "there is no dead letter 'nothing'" in text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nothing"], "A subscriber is named as module:function"),
        (["subs.py:missing"], "There is no file subs.py"),
        (["x:y", "--store", "ftp://x"], "is no store to subscribe to"),
        (["x:y", "--group", "runners"], "cannot name a group of subscribers"),
    ],
)
def test_wrong_words_are_one_sentence(args: list[str], words: str) -> None:
    code, text = invoke("subscribe", *args)
    assert code == 1 and words in text and len(text.splitlines()) == 1
