"""The brokers that the Kafka tests stand on: what they lose when they are killed, and how long that takes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import NewTopic
from kafka_jars import KafkaLocalError, default_cache, fetch_jars, java_version
from kafka_local import Cluster, live_brokers

from ...sources import ROOT
from .broker import (
    GIVEN,
    REQUIRED,
    Broker,
    NoBroker,
    admin,
    await_in_sync,
    leader_of,
    open_broker,
    open_cluster,
    refuse,
)

SCRIPT = ROOT / "deploy" / "kafka-local" / "kafka_local.py"


async def create(bootstrap: str, topic: str, copies: int = 1) -> None:
    async with admin(bootstrap) as client:
        await client.create_topics([NewTopic(topic, num_partitions=1, replication_factor=copies)])


@asynccontextmanager
async def producing(bootstrap: str) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, acks="all", enable_idempotence=True, request_timeout_ms=5000
    )
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def send(bootstrap: str, topic: str, value: bytes) -> None:
    async with producing(bootstrap) as producer:
        await asyncio.wait_for(producer.send_and_wait(topic, value), 20.0)


async def first_values(bootstrap: str, topic: str, count: int) -> list[bytes | None]:
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        return [(await asyncio.wait_for(consumer.getone(), 20.0)).value for _ in range(count)]
    finally:
        await consumer.stop()


async def test_the_shared_broker_takes_a_record_and_gives_it_back(kafka_broker: Broker, kafka_prefix: str) -> None:
    topic = f"{kafka_prefix}.control"
    await create(kafka_broker.bootstrap, topic)
    await send(kafka_broker.bootstrap, topic, b"one")
    assert await first_values(kafka_broker.bootstrap, topic, 1) == [b"one"]


@pytest.mark.kafka
async def test_a_killed_broker_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    with ExitStack() as stack:
        began = time.perf_counter()
        cluster = own_cluster(stack, tmp_path, 1)
        started = time.perf_counter() - began
        await create(cluster.bootstrap, "kept")
        await send(cluster.bootstrap, "kept", b"before")
        cluster.kill(1)
        assert live_brokers(cluster.bootstrap) == 0
        began = time.perf_counter()
        cluster.restart(1)
        print(f"single broker: ready after {started:.1f} s, after kill -9 after {time.perf_counter() - began:.1f} s")
        await send(cluster.bootstrap, "kept", b"after")
        assert await first_values(cluster.bootstrap, "kept", 2) == [b"before", b"after"]


@pytest.mark.kafka
async def test_a_cluster_that_was_stopped_goes_on_in_its_folder(tmp_path: Path) -> None:
    with ExitStack() as stack:
        first = own_cluster(stack, tmp_path, 1)
        await create(first.bootstrap, "kept")
        await send(first.bootstrap, "kept", b"one")
        address = first.bootstrap
        first.stop()
    with ExitStack() as stack:
        again = own_cluster(stack, tmp_path, 1)
        assert again.bootstrap == address
        assert await first_values(again.bootstrap, "kept", 1) == [b"one"]
        with pytest.raises(KafkaLocalError, match="holds a cluster of 1, not of 3"):
            Cluster(tmp_path, 3)


@pytest.mark.parametrize("crash", ["kill", "freeze"])
async def test_three_brokers_go_on_without_their_leader(kafka_cluster: Cluster, kafka_cluster_prefix: str, crash: str) -> None:
    topic = f"{kafka_cluster_prefix}.control"
    await create(kafka_cluster.bootstrap, topic, copies=3)
    await await_in_sync(kafka_cluster.bootstrap, topic, 3)
    leader = await leader_of(kafka_cluster.bootstrap, topic)
    others = ",".join(node.client for number, node in kafka_cluster.nodes.items() if number != leader)
    async with producing(kafka_cluster.bootstrap) as producer:
        await producer.send_and_wait(topic, b"before")
        began = time.perf_counter()
        if crash == "kill":
            kafka_cluster.kill(leader)
        else:
            kafka_cluster.freeze(leader)
        await asyncio.wait_for(producer.send_and_wait(topic, b"after"), 30.0)
    seconds = time.perf_counter() - began
    print(f"three brokers, {crash} of leader {leader}: the next acknowledgement after {seconds:.1f} s")
    assert await leader_of(others, topic) != leader
    assert await first_values(others, topic, 2) == [b"before", b"after"]
    kafka_cluster.heal()
    await await_in_sync(kafka_cluster.bootstrap, topic, 3)


@pytest.mark.kafka
def test_brokers_do_not_outlive_the_process_that_started_them(tmp_path: Path) -> None:
    need_java()
    script = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--dir", str(tmp_path / "data")], stdout=subprocess.PIPE, text=True
    )
    address = first_line(script)
    assert live_brokers(address) == 1
    script.kill()
    script.wait()
    deadline = time.monotonic() + 5
    while live_brokers(address) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert live_brokers(address) == 0


@pytest.mark.kafka
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_program_says_its_address_and_stops_without_a_trace(tmp_path: Path, how: signal.Signals) -> None:
    need_java()
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    script = subprocess.Popen(
        [sys.executable, str(SCRIPT)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    address = first_line(script)
    assert live_brokers(address) == 1
    script.send_signal(how)
    # Not communicate(): it would miss what was read ahead with the first line.
    assert script.stdout is not None and script.stderr is not None
    out, err = script.stdout.read(), script.stderr.read()
    assert (script.wait(), err) == (0, "")
    assert f"agl store --log kafka://{address}/dev" in out and "Kafka has stopped." in out
    assert live_brokers(address) == 0
    assert list(tmp_path.glob("kafka-local-*")) == []


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [("java", "needs Java 17 or newer .* no `java` is on PATH"), ("mvn", "needs Maven .* no `mvn` is on PATH")],
)
def test_what_is_missing_is_one_sentence(tmp_path: Path, missing: str, sentence: str) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in {"java", "mvn"} - {missing}:
        stand_in(programs / name, 'version "21.0.1"')
    environment = {**os.environ, "PATH": str(programs), "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(SCRIPT), "--jars", str(tmp_path / "cache")]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 1 and run.stdout == ""
    assert run.stderr.startswith("kafka-local: ") and len(run.stderr.splitlines()) == 1
    assert re.search(sentence, run.stderr), run.stderr
    assert list(tmp_path.glob("kafka-local-*")) == []


def test_an_old_java_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path / "java", 'version "11.0.2"')
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(KafkaLocalError, match=r"Java 17 or newer .*is 11\.0\.2"):
        Cluster(tmp_path / "data")


def test_a_given_broker_that_is_silent_fails_instead_of_skipping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(GIVEN, "127.0.0.1:1")
    with ExitStack() as stack, pytest.raises(pytest.fail.Exception, match="does not answer"):
        open_broker(stack, tmp_path)


@pytest.mark.parametrize(("value", "outcome"), [("1", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_no_broker_at_all_skips_or_fails_by_the_variable(
    monkeypatch: pytest.MonkeyPatch, value: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv(REQUIRED, value)
    with pytest.raises(outcome, match="KAFKA_BOOTSTRAP.*Docker.*Java 17 and Maven.*; no `java`"):
        refuse(["", "no `java` is on PATH"])


def own_cluster(stack: ExitStack, folder: Path, brokers: int) -> Cluster:
    """Brokers that the test may treat as it likes; skips or fails where there can be none."""
    try:
        return open_cluster(stack, folder, brokers)
    except NoBroker as no:
        refuse([str(no)])
        raise


def need_java() -> None:
    """Skips or fails where deploy/kafka-local cannot start."""
    try:
        java_version()
        fetch_jars(default_cache())
    except KafkaLocalError as error:
        refuse([str(error)])


def first_line(script: subprocess.Popen[str]) -> str:
    """The address that the program prints when its broker is ready."""
    assert script.stdout is not None
    name, _, address = script.stdout.readline().strip().partition("=")
    assert name == GIVEN
    return address


def stand_in(path: Path, said: str) -> None:
    """A program that says which version it is."""
    path.write_text(f"#!/bin/sh\necho '{said}' >&2\n", encoding="utf-8")
    path.chmod(0o755)
