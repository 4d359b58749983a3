"""Which Apache Kafka a test gets: one that is given, one in Docker, or one from Java on this machine."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from kafka_local import Cluster, KafkaLocalError, kafka_version, live_brokers

if TYPE_CHECKING:
    from aiokafka.admin import AIOKafkaAdminClient

GIVEN = "KAFKA_BOOTSTRAP"
REQUIRED = "AGL_REQUIRE_KAFKA"
NONE = (
    f"no Kafka for this test: set {GIVEN} to a broker's host:port, or start Docker, "
    "or install Java 17 and Maven for deploy/kafka-local"
)
START_SECONDS = 120.0
"""How long an image may take from `docker run` to its first answer; pulling it comes before."""
SETTLE_SECONDS = 20.0

T = TypeVar("T")


@dataclass(frozen=True)
class Broker:
    """A broker that answers: `bootstrap` is its `host:port`, `kind` says where it comes from.

    `cluster` is the process itself where it is ours, so that a test may ask for its folder; shared ones are not killed.
    """

    bootstrap: str
    kind: str
    cluster: Cluster | None = None


class NoBroker(Exception):
    """Why one way to a broker does not lead to one, in a sentence."""


def refuse(reasons: list[str]) -> None:
    """Skip, or fail where AGL_REQUIRE_KAFKA is set; never returns."""
    text = NONE + "".join(f"; {reason}" for reason in reasons if reason)
    if os.environ.get(REQUIRED, "") not in ("", "0"):
        pytest.fail(f"{text} ({REQUIRED} is set)", pytrace=False)
    pytest.skip(text)


def open_broker(stack: ExitStack, folder: Path) -> Broker:
    """The first broker that there is; `stack` ends what was started, `folder` is for its data. Fails or skips."""
    given = os.environ.get(GIVEN)
    if given:
        if not any(live_brokers(address, 5.0) for address in given.split(",")):
            pytest.fail(f"{GIVEN}={given} does not answer as a Kafka broker", pytrace=False)
        return Broker(given, f"{GIVEN}={given}")
    reasons: list[str] = []
    for way in (in_docker, on_java):
        try:
            return way(stack, folder)
        except NoBroker as no:
            reasons.append(str(no))
    refuse(reasons)
    raise AssertionError("not reached")


def on_java(stack: ExitStack, folder: Path) -> Broker:
    """One broker of deploy/kafka-local; raises NoBroker where Java or Maven is missing."""
    cluster = open_cluster(stack, folder, brokers=1)
    return Broker(cluster.bootstrap, f"deploy/kafka-local {kafka_version()}", cluster)


def open_cluster(stack: ExitStack, folder: Path, brokers: int, **options: Any) -> Cluster:
    """Brokers of deploy/kafka-local that `stack` stops; `options` are those of Cluster. Raises NoBroker."""
    try:
        cluster = Cluster(folder, brokers, **options)
        cluster.start()
    except KafkaLocalError as error:
        raise NoBroker(str(error)) from error
    # In order only where that leaves the class archive, which every later start is quicker by.
    stack.callback(lambda: cluster.stop(at_once=cluster.has_archive))
    return cluster


def in_docker(stack: ExitStack, folder: Path) -> Broker:
    """The image that deploy/compose.yaml runs, of the release that deploy/kafka-local pins; raises NoBroker."""
    # Here and in `admin`, because every run of the tests loads this file, with or without a broker.
    from docker.errors import DockerException
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.docker_client import DockerClient

    try:
        host = DockerClient().host()
    except DockerException:
        raise NoBroker("") from None
    # The broker must name its public port before Docker has given it one.
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    image = f"apache/kafka:{kafka_version()}"
    container = DockerContainer(image).with_bind_ports(9092, port)
    for name, value in container_settings(f"{host}:{port}").items():
        container = container.with_env(name, value)
    try:
        stack.enter_context(container)
    except DockerException as error:
        raise NoBroker(f"Docker answers and did not start {image}: {error}") from error
    return Broker(await_answer(f"{host}:{port}"), f"Docker, {image}")


def container_settings(address: str) -> dict[str, str]:
    """The environment of a single node whose clients reach it under `address`."""
    return {
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_LISTENERS": "PLAINTEXT://:9092,CONTROLLER://:9093",
        "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://{address}",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS": "1000",
        "KAFKA_BROKER_SESSION_TIMEOUT_MS": "3000",
    }


def await_answer(bootstrap: str) -> str:
    """Return `bootstrap` when it answers; a container that never does is a failure, not a reason to skip."""
    waiting = threading.Event()
    for _ in range(int(START_SECONDS / 0.25)):
        if live_brokers(bootstrap):
            return bootstrap
        waiting.wait(0.25)
    pytest.fail(f"the broker at {bootstrap} did not answer within {START_SECONDS:g} s", pytrace=False)


def apart(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` on an event loop and thread of its own, so that fixtures leave the loop of the tests alone."""
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(asyncio.run(work))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="kafka-fixture")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


@asynccontextmanager
async def admin(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    """An administrator's client that is connected."""
    from aiokafka.admin import AIOKafkaAdminClient

    client = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=10_000)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


async def delete_topics(bootstrap: str, prefix: str) -> int:
    """Delete every topic whose name begins with `prefix` and a dot; returns how many there were."""
    async with admin(bootstrap) as client:
        names = [name for name in await client.list_topics() if name.startswith(f"{prefix}.")]
        if names:
            await client.delete_topics(names)
        return len(names)


async def leader_of(bootstrap: str, topic: str, partition: int = 0) -> int:
    """The broker that leads a partition, which in a Cluster is the node's number; -1 while nobody does."""
    return (await _partition(bootstrap, topic, partition))["leader"]


async def in_sync(bootstrap: str, topic: str, partition: int = 0) -> set[int]:
    """The brokers that have all of a partition."""
    return set((await _partition(bootstrap, topic, partition))["isr"])


async def await_in_sync(bootstrap: str, topic: str, copies: int, partition: int = 0) -> None:
    """Return when so many brokers have all of a partition; fails after 20 s."""
    for _ in range(int(SETTLE_SECONDS / 0.1)):
        if len(await in_sync(bootstrap, topic, partition)) >= copies:
            return
        await asyncio.sleep(0.1)
    pytest.fail(f"{topic}-{partition} had no {copies} copies in sync within {SETTLE_SECONDS:g} s")


async def _partition(bootstrap: str, topic: str, partition: int) -> dict[str, Any]:
    async with admin(bootstrap) as client:
        described: list[dict[str, Any]] = await client.describe_topics([topic])
        return next(row for row in described[0]["partitions"] if row["partition"] == partition)


def remove(folder: Path) -> None:
    """Data of brokers that have ended; pytest would keep it for three more runs."""
    shutil.rmtree(folder, ignore_errors=True)
