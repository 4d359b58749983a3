"""Subscriber processes in a consumer group on a real broker: killed, joined by others, overtaken by a second publisher."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from agentlightning.core.log.interface import NewRecord
from agentlightning.core.log.kafka import KafkaLog
from agentlightning.rest.open_store import open_store
from tests.cli.support import Process, document, documents, invoke, running
from tests.cli.test_subscribe import until, write_subscriber

from .test_looking import publish_facts, put


@pytest.fixture
def url(kafka_url: str) -> str:
    """A log with four partitions of facts."""
    document("kafka", "init", "--log", kafka_url, "--partitions", "facts=4")
    return kafka_url


def finish_rollouts(url: str, inputs: list[str]) -> list[str]:
    """Run and complete rollouts on the log, and publish their facts; their ids."""

    async def work(store: Any) -> list[str]:
        begun = [await store.start_rollout(given, worker_id=f"w{number}") for number, given in enumerate(inputs)]
        await asyncio.gather(
            *(store.update_attempt(one.rollout_id, one.attempt.attempt_id, status="succeeded") for one in begun)
        )
        return [one.rollout_id for one in begun]

    store: Any = open_store(url)
    try:
        ids = asyncio.run(work(store))
    finally:
        store.close()
    publish_facts(url)  # everything from the start again, as a publisher that takes over may do
    return ids


def wanted(url: str) -> set[str]:
    """The ids of the facts that a subscriber has to see."""
    found = documents("log", "tail", "facts", "-n", "9999", "--type", "rollout.completed", "--log", url)
    return {one["body"]["id"] for one in found}


def test_a_group_of_subscribers_survives_kills_and_handles_every_fact(url: str, tmp_path: Path) -> None:
    out = write_subscriber(tmp_path, pause=0.1)
    finish_rollouts(url, ["x"] * 80)
    args = ("subscribe", "subs.py:keep", "--store", url, "--group", "keepers")

    def handled() -> list[str]:
        return out.read_text().splitlines()

    with running(*args, cwd=tmp_path) as first:
        until(30, lambda: len(handled()) >= 15)
        with running(*args, cwd=tmp_path) as second:
            Process.wait_for(second.err, "handled in")
            first.process.kill()
            first.process.wait()
            before = time.monotonic()
            until(60, lambda: set(handled()) >= wanted(url))
            took = time.monotonic() - before
            finish_rollouts(url, ["y"] * 10)
            everything = wanted(url)
            until(60, lambda: set(handled()) >= everything)
            # What is handled again may still be under way; a member that is stopped commits what it has finished.
            until(60, lambda: document("lag", "--log", url, "--group", "keepers")["groups"][0]["lag"] == 0)
            assert second.end(signal.SIGINT) == 130
    counts = Counter(handled())
    again = sum(counts.values()) - len(counts)
    print(f"\n{len(counts)} facts, {again} handled again; the rest {took:.1f} s after a kill -9 of one of two members")
    assert set(counts) == everything and len(everything) == 90
    rows = document("lag", "--log", url, "--group", "keepers")["groups"][0]
    assert (rows["state"], rows["lag"], len(rows["partitions"])) == ("Empty", 0, 4)
    resumes_behind_what_was_committed(url, args, tmp_path, out)


def resumes_behind_what_was_committed(url: str, args: tuple[str, ...], folder: Path, out: Path) -> None:
    before = out.read_text().splitlines()
    with running(*args, cwd=folder) as third:
        time.sleep(3.0)
        assert out.read_text().splitlines() == before
        finish_rollouts(url, ["z"] * 3)
        # What a publisher repeats lies behind the committed offsets, and a new process cannot know it: it may come again.
        until(30, lambda: set(out.read_text().splitlines()) >= wanted(url))
        assert third.end(signal.SIGTERM) == 0
    assert len(set(out.read_text().splitlines()) - set(before)) == 3


def test_a_fact_that_nobody_takes_is_dead_on_the_broker_and_is_retried(url: str, tmp_path: Path) -> None:
    write_subscriber(tmp_path)
    good, bad = finish_rollouts(url, ["good", "bad"])
    with KafkaLog(url) as log:
        put(log, "facts", 0, NewRecord("ro-x", b"\xffno fact", 1), publish=True)
    args = ("subscribe", "subs.py:picky", "--store", url, "--retries", "1", "--backoff-seconds", "0.01", "--json")
    with running(*args, cwd=tmp_path) as process:
        events = [json.loads(Process.wait_for(process.out, "event")) for _ in range(2)]
        until(30, lambda: len(document("dead", "ls", "--log", url)) == 2)
        assert process.end(signal.SIGTERM) == 0
    assert {(one["event"], one["fact"]["rollout_id"]) for one in events} == {("handled", good), ("given_up", bad)}
    letters = {one["letter"]["kind"]: one["letter"] for one in document("dead", "ls", "--log", url)}
    assert letters["subscriber"]["rollout_id"] == bad and letters["subscriber"]["tries"] == 2
    assert letters["record"]["id"].startswith("record/facts/0/") and "no fact" in letters["record"]["reason"]
    code, text = invoke("dead", "retry", letters["record"]["id"], "--log", url)
    assert code == 1 and "a record that this release cannot read" in text
    letter_is_readable_with_any_tool(url, bad)
    function = ("--function", f"{tmp_path}/subs.py:picky")
    (tmp_path / "handled.txt.mended").touch()
    assert document("dead", "retry", letters["subscriber"]["id"], "--log", url, *function)["event"] == "handled"
    assert [one["letter"]["kind"] for one in document("dead", "ls", "--log", url)] == ["record"]


def letter_is_readable_with_any_tool(url: str, bad: str) -> None:
    with KafkaLog(url) as log:
        records = [one for one in log.read("dead", 0, 0) if dict(one.headers)["t"] == "subscriber"]
    headers = dict(records[0].headers)
    assert (records[0].key, headers["reason"]) == ("subs.picky", "ValueError: a bad one")
    assert headers["id"].startswith("subscriber/subs.picky/")
    assert json.loads(records[0].value)["rollout_id"] == bad


def test_a_rollout_that_was_given_up_is_queued_again_on_the_broker(url: str) -> None:
    """The letter is written by the store's own publisher."""

    async def fail(store: Any) -> str:
        begun = await store.start_rollout("x", worker_id="w")
        await store.update_attempt(begun.rollout_id, begun.attempt.attempt_id, status="failed")
        return begun.rollout_id

    store: Any = open_store(url)
    try:
        rollout_id = asyncio.run(fail(store))
        until(30, lambda: document("dead", "ls", "--log", url))
    finally:
        store.close()
    (entry,) = document("dead", "ls", "--log", url)
    assert (entry["letter"]["kind"], entry["letter"]["rollout_id"]) == ("rollout", rollout_id)
    cursor = documents("log", "tail", "snapshots", "--type", "cursor", "--log", url)[-1]
    assert cursor["body"]["position"] >= entry["letter"]["position"]
    assert document("dead", "retry", rollout_id, "--log", url)["event"] == "requeued"
    assert document("show", rollout_id, "--log", url)["status"] == "queuing"
    assert document("dead", "ls", "--log", url) == []


def test_a_store_process_makes_its_topics_when_told_to(kafka_url: str, tmp_path: Path) -> None:
    code, text = invoke("store", "--port", "0", "--log", kafka_url)
    assert code == 1 and f"`agl kafka init --log '{kafka_url}'` makes it" in text
    with running("store", "--port", "0", "--init", "--json", "--log", kafka_url, cwd=tmp_path) as process:
        told = json.loads(Process.wait_for(process.out, "serving"))
        assert (told["url"], told["events"]) == (kafka_url, 1)
        assert process.end() == 130
    assert not (tmp_path / ".agl").exists()


