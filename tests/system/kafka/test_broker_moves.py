"""A broker that comes back under another address is found again by every client of a log."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from kafka_local import Cluster

from agentlightning.core.log.kafka import KafkaLog
from agentlightning.core.log.topics import CONTROL
from tests.core.log.log_contract import append, new

from .broker import NoBroker, open_cluster, refuse, remove
from .test_kafka_log import make_topics

pytestmark = pytest.mark.kafka


@contextmanager
def _door(target: str) -> Iterator[str]:
    """A port that leads to `target`, and is gone with its connections at the end."""
    listener = socket.create_server(("127.0.0.1", 0))
    host, _, port = target.rpartition(":")
    open_sockets: list[socket.socket] = [listener]

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        finally:
            source.close()
            sink.close()

    def accept() -> None:
        while True:
            try:
                inner, _ = listener.accept()
                outer = socket.create_connection((host, int(port)))
            except OSError:
                return
            open_sockets.extend((inner, outer))
            for pair in ((inner, outer), (outer, inner)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        for one in open_sockets:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            one.close()


def _advertise(cluster: Cluster, address: str) -> None:
    config = cluster.nodes[1].config
    rows = [
        f"advertised.listeners=PLAINTEXT://{address}" if row.startswith("advertised.listeners=") else row
        for row in config.read_text().splitlines()
    ]
    config.write_text("\n".join(rows) + "\n")


def test_a_broker_that_is_advertised_under_another_port_is_found_again_by_the_address(tmp_path: Path) -> None:
    with ExitStack() as stack:
        stack.callback(remove, tmp_path / "broker")
        try:
            cluster = open_cluster(stack, tmp_path / "broker", brokers=1)
        except NoBroker as no:
            refuse([f"this one restarts a broker, so only deploy/kafka-local will do: {no}"])
            raise
        with _door(cluster.nodes[1].client) as first:
            cluster.kill(1)
            _advertise(cluster, first)
            cluster.launch(1)
            cluster.wait_ready()
            log = stack.enter_context(KafkaLog(make_topics(f"kafka://{cluster.bootstrap}/moved")))
            seen: list[int] = []
            log.follow(CONTROL, 0, 0, lambda records: seen.extend(one.offset for one in records), lambda _: None)
            append(log, CONTROL, new(1))
            assert log.ends(CONTROL, 0)[1] == 1
            cluster.kill(1)
        with _door(cluster.nodes[1].client) as second:
            _advertise(cluster, second)
            cluster.launch(1)
            cluster.wait_ready()
            began = time.monotonic()
            append(log, CONTROL, new(2))
            assert log.ends(CONTROL, 0)[1] == 2
            while seen != [0, 1]:
                assert time.monotonic() - began < 30
                time.sleep(0.05)
            print(f"writing, asking and following went on after {time.monotonic() - began:.1f} s")
            log.close()
