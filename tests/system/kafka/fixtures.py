"""Fixtures with a real Kafka, for every folder of tests; asking for one marks the test `kafka`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from kafka_local import Cluster

from .broker import Broker, NoBroker, apart, delete_topics, open_broker, open_cluster, refuse, remove

FIXTURES = {"kafka_broker", "kafka_prefix", "kafka_url", "kafka_cluster", "kafka_cluster_prefix", "kafka_cluster_url"}
"""Whoever uses one of these gets the marker."""


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One broker for the whole run, started by the first test that asks. Do not kill it: others use it."""
    folder = tmp_path_factory.mktemp("kafka")
    with ExitStack() as stack:
        stack.callback(remove, folder)
        broker = open_broker(stack, folder)
        print(f"\nkafka: {broker.kind} at {broker.bootstrap}")
        yield broker


@pytest.fixture
def kafka_prefix(kafka_broker: Broker) -> Iterator[str]:
    """A prefix of topics that nobody else has; the topics under it are deleted after the test."""
    prefix = random_prefix()
    yield prefix
    apart(delete_topics(kafka_broker.bootstrap, prefix))


@pytest.fixture
def kafka_url(kafka_broker: Broker, kafka_prefix: str) -> str:
    """The address of an empty log on the shared broker."""
    return f"kafka://{kafka_broker.bootstrap}/{kafka_prefix}"


@pytest.fixture(scope="module")
def _three_brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("kafka-cluster")
    with ExitStack() as stack:
        stack.callback(remove, folder)
        try:
            cluster = open_cluster(stack, folder, brokers=3)
        except NoBroker as no:
            refuse([f"this one kills brokers, so only deploy/kafka-local will do: {no}"])
            raise
        yield cluster


@pytest.fixture
def kafka_cluster(_three_brokers: Cluster) -> Iterator[Cluster]:
    """Three brokers that the test may kill, freeze and restart; the next test of the module finds all of them well."""
    yield _three_brokers
    _three_brokers.heal()


@pytest.fixture
def kafka_cluster_prefix(kafka_cluster: Cluster) -> str:
    """A prefix of topics on the three brokers that nobody else has; they go when the brokers do."""
    return random_prefix()


@pytest.fixture
def kafka_cluster_url(kafka_cluster: Cluster, kafka_cluster_prefix: str) -> str:
    """The address of an empty log on the three brokers."""
    return f"kafka://{kafka_cluster.bootstrap}/{kafka_cluster_prefix}"


def random_prefix() -> str:
    """A prefix for the topics of one test."""
    return f"test-{os.urandom(6).hex()}"


def mark(items: list[pytest.Item]) -> None:
    """Give the marker to every test that uses one of the fixtures, so that `-m 'not kafka'` leaves none behind."""
    for item in items:
        if FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.kafka)
