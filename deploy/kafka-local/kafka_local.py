#!/usr/bin/env python3
"""Apache Kafka without Docker: real brokers on loopback from Maven's jars, for a first try and for the tests.

As a program it starts brokers, prints their address and the `agl` commands to try, and stops with Ctrl+C:

    python kafka_local.py [--brokers 3] [--dir DATA] [--port 9092]

As a module it hands a test a cluster whose nodes can be killed, frozen and brought back:

    with Cluster(folder, brokers=3) as cluster:
        connect(cluster.bootstrap)
        cluster.kill(2)
        cluster.restart(2)

Needs Java 17 or newer, and Maven for the first start, which fetches some 45 jars (43 MB). They stay in
`$XDG_CACHE_HOME/agentlightning/kafka-VERSION` (`~/.cache` without that variable). Standard library only.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from kafka_cluster import SMALL_JVM, Cluster, Node, live_brokers
from kafka_jars import KafkaLocalError, default_cache, kafka_version

__all__ = ["SMALL_JVM", "Cluster", "KafkaLocalError", "Node", "default_cache", "kafka_version", "live_brokers"]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brokers", type=int, default=1, choices=range(1, 10), metavar="N", help="how many; 1 unless given")
    parser.add_argument("--dir", type=Path, help="keep the data here, and go on with it; a temporary folder unless given")
    parser.add_argument("--port", type=int, default=0, help="of the first broker, the next ones follow; free ones unless given")
    parser.add_argument("--jars", type=Path, metavar="CACHE", help=f"where jars are kept; {default_cache()} unless given")
    return parser.parse_args()


def _tell(cluster: Cluster, folder: Path, kept: bool) -> None:
    url = f"kafka://{cluster.nodes[1].client}/dev"
    # In one piece: whoever reads the address may stop the program at once.
    print(
        f"KAFKA_BOOTSTRAP={cluster.bootstrap}\n\n"
        f"Kafka {kafka_version()} is ready, {len(cluster.nodes)} broker{'s' if len(cluster.nodes) > 1 else ''}; "
        f"the data in {folder} {'stays' if kept else 'is deleted at the end'}.\n"
        "Try it, each command in a terminal of its own:\n\n"
        f"  agl kafka init --log {url}\n"
        f"  agl store --log {url}\n"
        f"  agl runner MODULE:AGENT --store {url} --slots 4\n\n"
        "Ctrl+C stops it.",
        flush=True,
    )


def _serve(options: argparse.Namespace, folder: Path, kept: bool) -> None:
    """Start, say so, wait for Ctrl+C or SIGTERM, stop; returns by an exception only."""
    cluster = Cluster(folder, options.brokers, cache=options.jars, port=options.port)
    try:
        cluster.start()
        _tell(cluster, folder, kept)
        while True:
            for number, process in cluster.running.items():
                if process.poll() is not None:
                    raise KafkaLocalError(f"node {number} ended: {cluster.nodes[number].last_words()}")
            time.sleep(0.5)
    finally:
        # Whoever presses Ctrl+C twice must not leave half a stop behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        cluster.stop(at_once=not kept and cluster.has_archive)


def main() -> int:
    """Returns the exit code: 0 after Ctrl+C or SIGTERM, 1 with one sentence on standard error."""
    options = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = options.dir or Path(tempfile.mkdtemp(prefix="kafka-local-"))
    try:
        _serve(options, folder, options.dir is not None)
    except KeyboardInterrupt:
        print("\nKafka has stopped.", flush=True)
    except KafkaLocalError as error:
        print(f"kafka-local: {error}", file=sys.stderr)
        return 1
    finally:
        if options.dir is None:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
