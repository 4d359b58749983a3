"""Brokers of Apache Kafka as child processes on loopback, which can be killed, frozen and brought back."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from kafka_jars import KafkaLocalError, default_cache, fetch_jars, java_version

SMALL_JVM = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
"""Starts in half the time and computes some 20 % slower than a JVM as it comes."""
START_SECONDS = 60.0
STOP_SECONDS = 30.0
REPEATED_BY_TOPIC = ("offsets.topic", "transaction.state.log", "share.coordinator.state.topic")


def live_brokers(address: str, timeout_seconds: float = 1.0) -> int:
    """How many live brokers the one at `address` (`host:port`) knows; 0 while it does not answer.

    A Metadata request, version 5, spelt by hand: a client library would have to be installed, and would log retries.
    """
    host, _, port = address.rpartition(":")
    header = struct.pack(">hhih", 3, 5, 1, -1)  # key, version, correlation id, no client id
    body = header + struct.pack(">i?", 0, False)  # no topics, and none is to be created
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout_seconds) as connection:
            connection.sendall(struct.pack(">i", len(body)) + body)
            with connection.makefile("rb") as stream:
                answer = stream.read(16)
    except OSError:
        return 0
    if len(answer) < 16:
        return 0
    _size, _correlation, _throttled, brokers = struct.unpack(">iiii", answer)
    return brokers


def _hold_port(port: int) -> socket.socket:
    """A loopback port that is bound and never listened on: a JVM can take it, nobody else is given it."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind(("127.0.0.1", port))
    except OSError as error:
        held.close()
        raise KafkaLocalError(f"port {port} of 127.0.0.1 cannot be used: {error.strerror}") from error
    return held


def _kafka_id() -> str:
    """Sixteen random bytes as Kafka writes them; the first is fixed because a leading dash is not allowed."""
    return base64.urlsafe_b64encode(b"A" + os.urandom(15)).decode().rstrip("=")


class _Guard:
    """A shell that kills the brokers when this process is gone, also by `kill -9`: they are in sessions of their own."""

    # Every line on its standard input replaces the list; the end of the input is the end of the writer.
    SCRIPT = 'while read -r line; do pids=$line; done; [ -z "$pids" ] || kill -9 $pids'

    def __init__(self) -> None:
        self._shell = subprocess.Popen(
            ["sh", "-c", self.SCRIPT], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
        )

    def watch(self, pids: list[int]) -> None:
        """From now on these, and no others."""
        assert self._shell.stdin is not None
        self._shell.stdin.write(" ".join(map(str, pids)) + "\n")
        self._shell.stdin.flush()

    def close(self) -> None:
        """Let it go; the list must be empty by now."""
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        self._shell.wait()


class Node:
    """Broker and controller in one JVM. `client` and `controller` are its addresses, `log` what it wrote to stderr.

    `listeners` has the addresses of those that the cluster was asked for beside them, by name.
    """

    def __init__(self, folder: Path, ports: tuple[int, int], directory_id: str, listeners: Iterable[str] = ()) -> None:
        self.folder, self.directory_id = folder, directory_id
        self.config, self.log = folder / "server.properties", folder / "broker.log"
        self._held = [_hold_port(port) for port in ports]
        self.ports = tuple(held.getsockname()[1] for held in self._held)
        self.client, self.controller = (f"127.0.0.1:{port}" for port in self.ports)
        self.listeners: dict[str, str] = {}
        for name in listeners:
            self._held.append(_hold_port(0))
            self.listeners[name] = f"127.0.0.1:{self._held[-1].getsockname()[1]}"

    def last_words(self) -> str:
        """The end of its log."""
        return self.log.read_text(encoding="utf-8", errors="replace").strip()[-2000:] if self.log.exists() else ""

    def close(self) -> None:
        """Give its ports back."""
        for held in self._held:
            held.close()


class Cluster:
    """So many nodes, numbered from 1, with their data in `folder`; a cluster that was stopped there goes on.

    `bootstrap` is what clients connect to; a node's number is its broker id. `properties` override those of every
    server, `jvm` the flags of every JVM, `cache` where jars are kept. `port` is that of the first broker, the next ones
    follow; 0 takes free ones. Not for several threads at once. Every method that waits raises KafkaLocalError.

    `listeners` are doors beside the open one, each with its protocol (SASL_SSL and so on); what such a door needs, keys
    and who may come in, is said by `properties`. `format_options` go to every format, as --add-scram does.
    """

    def __init__(
        self,
        folder: Path,
        brokers: int = 1,
        *,
        properties: Mapping[str, object] | None = None,
        listeners: Mapping[str, str] | None = None,
        format_options: Sequence[str] = (),
        jvm: tuple[str, ...] = SMALL_JVM,
        cache: Path | None = None,
        port: int = 0,
    ) -> None:
        version = java_version()
        cache = (cache or default_cache()).resolve()
        jars = fetch_jars(cache)
        # The JVM compares the class path with that of the archive, hence sorted.
        self._classpath = os.pathsep.join(sorted(map(str, jars.glob("*.jar"))))
        self._jvm = jvm
        self._archive = cache / f"classes-{version}.jsa"
        self._new_archive = cache / f"classes-{version}.{os.getpid()}.{os.urandom(3).hex()}"
        self._properties = dict(properties or {})
        self._listeners = dict(listeners or {})
        self._format_options = tuple(format_options)
        self._folder = folder.resolve()
        self.cluster_id, self.nodes = self._lay_out(brokers, port)
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self._guard: _Guard | None = None

    @property
    def bootstrap(self) -> str:
        """All brokers, `host:port`, separated by commas."""
        return ",".join(node.client for node in self.nodes.values())

    @property
    def has_archive(self) -> bool:
        """Whether the class archive is there, which halves the time of a start; the first clean stop makes it."""
        return self._archive.exists()

    def start(self) -> None:
        """Format what is new, launch every node, and wait until all of them answer."""
        try:
            self._guard = _Guard()
            self._format()
            for number in self.nodes:
                self.launch(number)
            self.wait_ready()
        except BaseException:
            self.stop(at_once=True)
            raise

    def launch(self, number: int) -> None:
        """Start a node that does not run, with the data it had; `wait_ready` waits for it."""
        assert number not in self.running, f"node {number} runs"
        command = self._java("kafka.Kafka", str(self.nodes[number].config))
        if number == 1 and not self.has_archive:
            command.insert(1, f"-XX:ArchiveClassesAtExit={self._new_archive}")
        with self.nodes[number].log.open("ab") as log:
            # A session of its own: Ctrl+C in the terminal is for us, who then stop it in order.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.running[number] = process
        self._tell_guard()

    def wait_ready(self, timeout_seconds: float = START_SECONDS) -> None:
        """Return when every running node knows as many live brokers as run; none of them may be frozen."""
        deadline = time.monotonic() + timeout_seconds
        for number, process in self.running.items():
            node = self.nodes[number]
            while live_brokers(node.client) < len(self.running):
                if process.poll() is not None:
                    raise KafkaLocalError(f"node {number} ended with code {process.returncode}: {node.last_words()}")
                if time.monotonic() > deadline:
                    raise KafkaLocalError(f"node {number} is not ready after {timeout_seconds:g} s: {node.last_words()}")
                time.sleep(0.05)

    def kill(self, number: int) -> None:
        """Crash a node (SIGKILL); returns when it is gone."""
        self._end(number, signal.SIGKILL)

    def shut_down(self, number: int) -> None:
        """Stop one node in order (SIGTERM): it hands its partitions to others first. SIGKILL after 30 s."""
        self._end(number, signal.SIGTERM)

    def freeze(self, number: int) -> None:
        """Stop a node's time (SIGSTOP): its connections stay open and answer nothing."""
        self.running[number].send_signal(signal.SIGSTOP)

    def thaw(self, number: int) -> None:
        """End a freeze; nothing happens to a node that is not frozen."""
        self.running[number].send_signal(signal.SIGCONT)

    def restart(self, number: int) -> None:
        """Bring a node back, crashing it first where it runs, and wait until all that run are ready."""
        if number in self.running:
            self.kill(number)
        self.launch(number)
        self.wait_ready()

    def heal(self) -> None:
        """Thaw what is frozen, launch what does not run, wait until all are ready: what a test leaves to the next."""
        for number in self.nodes:
            if number in self.running and self.running[number].poll() is not None:
                self._end(number, signal.SIGKILL)
            if number in self.running:
                self.thaw(number)
            else:
                self.launch(number)
        self.wait_ready()

    def stop(self, at_once: bool = False) -> None:
        """End all nodes and free the ports. `at_once` crashes them: quicker, for data that nobody reads again."""
        for process in self.running.values():
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGKILL if at_once else signal.SIGTERM)
        for number in list(self.running):
            self._end(number, signal.SIGKILL if at_once else signal.SIGTERM)
        for node in self.nodes.values():
            node.close()
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        if self._new_archive.exists():
            # Half an archive, from a JVM that was killed while it wrote, is none.
            if at_once:
                self._new_archive.unlink()
            else:
                os.replace(self._new_archive, self._archive)

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    def _end(self, number: int, how: int) -> None:
        process = self.running[number]
        process.send_signal(how)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        del self.running[number]
        self._tell_guard()

    def _tell_guard(self) -> None:
        if self._guard is not None:
            self._guard.watch([process.pid for process in self.running.values()])

    def _lay_out(self, brokers: int, port: int) -> tuple[str, dict[int, Node]]:
        """Ids and ports: those of the cluster that is in the folder, else new ones. The controllers' ports must stay."""
        plan = self._folder / "cluster.json"
        kept: dict[str, Any]
        if plan.exists():
            kept = json.loads(plan.read_text(encoding="utf-8"))
            if len(kept["nodes"]) != brokers:
                raise KafkaLocalError(f"{self._folder} holds a cluster of {len(kept['nodes'])}, not of {brokers}")
        else:
            kept = {"cluster_id": _kafka_id(), "nodes": [{"ports": [0, 0], "id": _kafka_id()} for _ in range(brokers)]}
        nodes: dict[int, Node] = {}
        for number, row in enumerate(kept["nodes"], 1):
            client = port + number - 1 if port else row["ports"][0]
            nodes[number] = Node(
                self._folder / f"node{number}", (client, row["ports"][1]), row["id"], self._listeners
            )
            row["ports"] = list(nodes[number].ports)
        self._folder.mkdir(parents=True, exist_ok=True)
        plan.write_text(json.dumps(kept), encoding="utf-8")
        return kept["cluster_id"], nodes

    def _format(self) -> None:
        """Write every node's properties, and format the folders of those that have no data; all at once."""
        voters = ",".join(f"{number}@{n.controller}:{n.directory_id}" for number, n in self.nodes.items())
        forming: dict[int, subprocess.Popen[str]] = {}
        for number, node in self.nodes.items():
            node.folder.mkdir(exist_ok=True)
            rows = [f"{key}={value}\n" for key, value in self._server_properties(number).items()]
            node.config.write_text("".join(rows), encoding="utf-8")
            if (node.folder / "data" / "meta.properties").exists():
                continue
            form = ["format", "--config", str(node.config), "--cluster-id", self.cluster_id, "--initial-controllers", voters]
            form += self._format_options
            forming[number] = subprocess.Popen(
                self._java("kafka.tools.StorageTool", *form), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        said = {number: process.communicate()[0] for number, process in forming.items()}
        for number, process in forming.items():
            if process.returncode:
                raise KafkaLocalError(f"the folder of node {number} could not be formatted: {said[number].strip()[-2000:]}")

    def _java(self, *arguments: str) -> list[str]:
        command = ["java", *self._jvm, "-Xlog:disable", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
        command.append("-Dorg.slf4j.simpleLogger.showDateTime=true")
        if self.has_archive:
            command.append(f"-XX:SharedArchiveFile={self._archive}")
        return [*command, "-cp", self._classpath, *arguments]

    def _server_properties(self, number: int) -> dict[str, object]:
        """Replicated as far as there are brokers, no topic by accident, and time-outs that suit tests and one machine."""
        node, copies = self.nodes[number], min(3, len(self.nodes))
        doors = [f"PLAINTEXT://{node.client}", *(f"{name}://{address}" for name, address in node.listeners.items())]
        protocols = {"PLAINTEXT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT", **self._listeners}
        rows: dict[str, object] = {
            "process.roles": "broker,controller",
            "node.id": number,
            "controller.quorum.bootstrap.servers": ",".join(n.controller for n in self.nodes.values()),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listeners": ",".join([*doors, f"CONTROLLER://{node.controller}"]),
            "advertised.listeners": ",".join(doors),
            "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
            "log.dirs": node.folder / "data",
            "auto.create.topics.enable": "false",
            "default.replication.factor": copies,
            "min.insync.replicas": max(1, copies - 1),
            # A crashed broker keeps its partitions, and its own id from coming back, for so long (9000 as it comes).
            "broker.session.timeout.ms": 3000,
            "broker.heartbeat.interval.ms": 500,
            # Members of a group need not wait for others (3000), and may be given up sooner than after 6 s.
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 1000,
            "group.share.min.record.lock.duration.ms": 1000,
            # Many small topics come and go in tests: little memory and few files for each.
            "log.cleaner.dedupe.buffer.size": 16 << 20,
            "log.index.size.max.bytes": 1 << 20,
            "log.segment.delete.delay.ms": 1000,
        }
        for topic in REPEATED_BY_TOPIC:
            rows[f"{topic}.replication.factor"] = copies
            rows[f"{topic}.num.partitions"] = 1
            if topic != "offsets.topic":
                rows[f"{topic}.min.isr"] = max(1, copies - 1)
        return rows | self._properties
