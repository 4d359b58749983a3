"""Processor time and requests to the broker: of this process, or of a command of `agl` that runs under this module.

`python -m tests.benchmarks.counted FILE store --log kafka://...` is `agl store --log kafka://...`; ten times a second it writes
what it has used so far into FILE, as a line of JSON.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiokafka.conn

SAMPLE_SECONDS = 0.1


@dataclass
class Used:
    """What a process has used up to a moment: its processor time in seconds, and its requests by kind."""

    cpu: float = 0.0
    requests: Counter[str] = field(default_factory=Counter[str])

    def since(self, before: Used) -> Used:
        """What was used after `before`."""
        return Used(self.cpu - before.cpu, self.requests - before.requests)

    def kinds(self, count: int) -> str:
        """The requests of each kind for one of `count`, the most frequent first."""
        return ", ".join(f"{name} {number / count:.2f}" for name, number in self.requests.most_common(6))


_REQUESTS: Counter[str] = Counter()


def count_requests() -> None:
    """Count the requests that this process sends from now on."""
    connection: Any = aiokafka.conn.AIOKafkaConnection
    send = connection.send

    def counted(self: Any, request: Any, *arguments: Any, **options: Any) -> Any:
        _REQUESTS[type(request).__name__.partition("Request")[0]] += 1
        return send(self, request, *arguments, **options)

    connection.send = counted


def used() -> Used:
    """Of this process so far."""
    return Used(time.process_time(), _REQUESTS.copy())


def used_at(file: Path, moment: float) -> Used:
    """Of a process that writes into `file`, at a moment of `time.time()`; the last sample before it."""
    found = Used()
    for line in file.read_text().splitlines():
        at, cpu, requests = json.loads(line)
        if at > moment:
            break
        found = Used(cpu, Counter(requests))
    return found


def _sample(file: Path) -> None:
    with file.open("a", buffering=1) as out:
        while True:
            out.write(json.dumps([time.time(), time.process_time(), _REQUESTS.copy()]) + "\n")
            time.sleep(SAMPLE_SECONDS)


def main() -> None:
    """Run the command."""
    from agentlightning.cli import main as agl

    count_requests()
    threading.Thread(target=_sample, args=(Path(sys.argv[1]),), daemon=True).start()
    del sys.argv[1]
    sys.exit(agl())


if __name__ == "__main__":
    main()
