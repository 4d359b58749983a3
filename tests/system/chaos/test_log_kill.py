"""durable: `kill -9` of the process that writes the log, at random moments under load, loses no acknowledged record."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentlightning.core.log.sqlite import SqliteLog, check_file
from agentlightning.core.log.topics import BLOBS, CONTROL, LIVENESS, SPANS

WRITER = """
import sys, threading
from agentlightning.core.log.interface import Ack, NewRecord
from agentlightning.core.log.sqlite import SqliteLog
from agentlightning.core.log.sqlite import log as sqlite_log

sqlite_log.CHECKPOINT_PAGES = 50  # so that the kill hits checkpoints too
sqlite_log.RESTART_PAGES = 200
log = SqliteLog(sys.argv[1])
room = threading.Semaphore(64)
out = sys.stdout.buffer

def done(topic, number):
    def told(ack):
        # One write for one line: the pipe keeps what was written before the kill.
        out.write(b"%s %d %d\\n" % (topic.encode(), number, ack.base_offset))
        out.flush()
        room.release()
    return told

number = log.ends("control", 0)[1]
while True:
    for topic in ("spans", "control", "liveness", "blobs"):
        room.acquire()
        record = NewRecord("key%d" % (number % 5), b"%d" % number + b"." * (number % 700), number)
        log.append(topic, 0, [record], done(topic, number))
    number += 1
"""


def load_and_kill(path: Path, seconds: float) -> dict[str, list[tuple[int, int]]]:
    """Run a writer, kill it after its first answers and `seconds`; what was acknowledged, by topic: (number, offset)."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    lines = [process.stdout.readline()]
    assert lines[0], "the writer did not start"
    time.sleep(seconds)
    process.kill()
    lines += process.stdout.read().splitlines()
    process.wait()
    process.stdout.close()
    acknowledged: dict[str, list[tuple[int, int]]] = {}
    for line in lines:
        topic, number, offset = line.split()
        acknowledged.setdefault(topic.decode(), []).append((int(number), int(offset)))
    return acknowledged


def kill_again_and_again(path: Path, rounds: int) -> None:
    rng = random.Random(rounds)
    everything: dict[int, int] = {}
    for _ in range(rounds):
        acknowledged = load_and_kill(path, rng.uniform(0, 0.25))
        everything.update({offset: number for number, offset in acknowledged.get(CONTROL, ())})
        began = time.monotonic()
        with SqliteLog(path) as log:
            assert time.monotonic() - began < 3
            end = log.ends(CONTROL, 0)[1]
            records = log.read(CONTROL, 0, 0, end + 1)
            assert [record.offset for record in records] == list(range(end))
            numbers = {record.offset: int(record.value.split(b".")[0]) for record in records}
            assert {offset: numbers.get(offset) for offset in everything} == everything
            spans = {record.offset for record in log.read(SPANS, 0, 0, end + 1000)}
            assert {offset for _, offset in acknowledged.get(SPANS, ())} <= spans
            # A heartbeat may be lost, but what is newer than an acknowledged one of its key may replace it only.
            for topic in (LIVENESS, BLOBS):
                for number, offset in acknowledged.get(topic, ()):
                    newest = log.read_key(topic, f"key{number % 5}")
                    assert len(newest) == 1 and newest[0].offset >= offset
        assert check_file(path).sound
    assert len(everything) > 10 * rounds


def test_durable_a_killed_writer_loses_no_acknowledged_record(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path / "log.db", 5)


@pytest.mark.chaos
@pytest.mark.slow
def test_durable_a_killed_writer_loses_no_acknowledged_record_in_twenty_rounds(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path / "log.db", 20)
