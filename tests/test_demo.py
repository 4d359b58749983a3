"""`agl demo` as a user starts it: the whole way with a real model, Ctrl+C, dead processes, and a log that was touched."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from agentlightning.cli.demo import run as demo_run
from agentlightning.cli.demo.command import demo
from agentlightning.cli.demo.model import find_model_file
from agentlightning.core.errors import OptionalDependencyError
from agentlightning.core.events import payload
from agentlightning.core.log.sqlite.schema import checksum
from agentlightning.projections.spans import schema as span_records

from .openai_stub import openai_stub

AGL = [sys.executable, "-m", "agentlightning"]


def has_model() -> bool:
    try:
        find_model_file()
    except OptionalDependencyError:
        return False
    return True


real_model = pytest.mark.skipif(not has_model(), reason="the demo's model is not installed (make setup installs it)")


@contextmanager
def started(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`agl demo --short` in a process of its own, whose output can be read; killed at the end if it is still there."""
    command = [*AGL, "demo", "--short", "--dir", str(folder), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def finished(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [*AGL, "demo", "--short", "--dir", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def read_until(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if word in line:
            return "".join(lines)
    raise AssertionError(f"it ended without {word!r}: {''.join(lines)} {process.stderr and process.stderr.read()}")


def children_of(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in found.splitlines() if int(line.split()[1]) == pid]


def gone(pids: list[int], seconds: float = 20.0) -> bool:
    """Whether all of them end within so many seconds; a zombie counts as ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = subprocess.run(["ps", "-A", "-o", "pid=,stat="], capture_output=True, text=True, check=True).stdout
        alive = {int(line.split()[0]) for line in found.splitlines() if not line.split()[1].startswith("Z")}
        if not alive & set(pids):
            return True
        time.sleep(0.1)
    return False


@real_model
def test_demo_asks_a_real_model_through_the_log_and_proves_it(tmp_path: Path) -> None:
    done = finished(tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["proved"] is True
    # 3 prompts on 2 reviews, 2 of them on 2 more, and both ends (or one, where the seed is the best) on 4 others.
    assert told["questions"]["asked"] in (3 * 2 + 2 * 2 + 2 * 4, 3 * 2 + 2 * 2 + 4)
    assert told["held_out"]["best"]["answers"] == 4
    assert told["first_reward_seconds"] is not None
    assert all(candidate["missing"] == 0 for candidate in told["candidates"])
    assert {candidate["mean"] for candidate in told["candidates"]} != {0.0}
    # A third opinion, by another command.
    replay = subprocess.run(
        [*AGL, "replay", f"sqlite:///{tmp_path / 'log.db'}", "--json"], capture_output=True, text=True, check=True
    )
    folded = json.loads(replay.stdout)
    assert (folded["position"], folded["fingerprint"]) == (told["control_events"], told["fingerprint"]["live"])


@real_model
@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl+C cannot be sent to one process there")
def test_demo_interrupted_says_one_line_and_the_next_start_goes_on(tmp_path: Path) -> None:
    with started(tmp_path) as process:
        shown = read_until(process, "first reward")
        children = children_of(process.pid)
        assert len(children) == 3, "a model and two runners"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.count("\n") == 1 and "stopped" in err, err
    assert "Traceback" not in shown + out
    assert gone(children)
    done = finished(tmp_path)
    assert done.returncode == 0, done.stderr
    kept = re.search(r"interrupted: (\d+) rewards? (?:is|are) kept, (\d+) open questions?", done.stdout)
    again = re.search(r"(\d+) questions asked, (\d+) known from before", done.stdout)
    assert kept and int(kept[1]) >= 1, done.stdout
    assert again and again[2] == kept[1]
    assert "proved" in done.stdout
    third = finished(tmp_path)
    assert "1 earlier demo, 1 finished" in third.stdout
    assert "was interrupted" not in third.stdout


@real_model
@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a POSIX word")
def test_demo_killed_leaves_no_process_behind_and_loses_no_reward(tmp_path: Path) -> None:
    with started(tmp_path) as process:
        read_until(process, "first reward")
        children = children_of(process.pid)
        process.kill()
        process.wait()
        assert gone(children)
    done = finished(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "interrupted: " in done.stdout
    assert "interrupted: 0 rewards" not in done.stdout


@real_model
@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a POSIX word")
def test_demo_goes_on_when_a_runner_is_killed(tmp_path: Path) -> None:
    with started(tmp_path) as process:
        read_until(process, "first reward")
        os.kill(_child(process.pid, "worker", "--worker-id 1"), signal.SIGKILL)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "runner-1 ended with code -9" in out
    assert "proved" in out


@real_model
@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a POSIX word")
def test_demo_without_its_model_ends_with_one_sentence(tmp_path: Path) -> None:
    with started(tmp_path) as process:
        read_until(process, "first reward")
        children = children_of(process.pid)
        os.kill(_child(process.pid, "demo.model"), signal.SIGKILL)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.count("\n") == 1 and "model ended with code -9" in err
    assert gone(children)


def _child(parent: int, *words: str) -> int:
    for pid in children_of(parent):
        command = subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True).stdout
        if all(word in command for word in words):
            return pid
    raise AssertionError(f"no child with {words}")


def invoke(folder: Path, *options: str) -> Result:
    """The command in this process, against a stub that answers at once: "positive" as text, and beside the point as chat."""
    with openai_stub() as stub:
        address = ["--base-url", stub.base_url, "--model", "stub"]
        return CliRunner().invoke(demo, ["--short", "--dir", str(folder), *address, *options])


@pytest.mark.parametrize(("chat", "accuracy"), [(False, 0.5), (True, 0.0)])
def test_demo_runs_on_any_endpoint(
    tmp_path: Path, chat: bool, accuracy: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    done = invoke(tmp_path, "--json", "--api-key-env", "MY_KEY", *(["--chat"] if chat else []))
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["proved"], told["model"], told["held_out"]["best"]["accuracy"]) == (True, "stub", accuracy)
    assert not any(b"sk-very-secret" in file.read_bytes() for file in tmp_path.iterdir()), "a key is in the log"


Touch = Callable[[str, sqlite3.Connection], None]


def touch_control(mend: bool) -> Touch:
    """Changes a digit in a control event; `mend`: with a check sum that fits again."""

    def touch(_: str, db: sqlite3.Connection) -> None:
        rows = db.execute("SELECT offset, value FROM control_0 ORDER BY offset").fetchall()
        offset, value = next((o, bytes(v)) for o, v in rows if b"r041" in bytes(v))
        _rewrite(db, "control_0", offset, value.replace(b"r041", b"r042", 1), mend)

    return touch


def touch_reward(_: str, db: sqlite3.Connection) -> None:
    """Turns the reward of one answer from 0 to 1, with a check sum that fits."""
    rows = db.execute("SELECT offset, value FROM spans_0 ORDER BY offset").fetchall()
    for offset, value in rows:
        record = span_records.decode(bytes(value))
        if not isinstance(record, span_records.SpanAdded):
            continue
        body = payload.decode(bytes(record.body))
        names = [name for name in body["attributes"] if name.endswith(".value") and "reward" in name]
        if not names or body["attributes"][names[0]] == 1.0:  # runners answer in any order
            continue
        body["attributes"][names[0]] = 1.0
        changed = span_records.SpanAdded(
            record.rollout_id, record.attempt_id, record.span_id, payload.inline(payload.encode(body)), record.sequence_id
        )
        _rewrite(db, "spans_0", offset, span_records.encode(changed), True)
        return
    raise AssertionError("no reward span")


def _rewrite(db: sqlite3.Connection, table: str, offset: int, value: bytes, mend: bool) -> None:
    stamp, key, headers, crc = db.execute(
        f"SELECT ts, key, headers, crc FROM {table} WHERE offset = ?", [offset]
    ).fetchone()
    crc = checksum(offset, stamp, key, headers, value) if mend else crc
    db.execute(f"UPDATE {table} SET value = ?, crc = ? WHERE offset = ?", [value, crc, offset])


@pytest.mark.parametrize(
    ("touch", "words"),
    [
        (touch_control(mend=False), "was altered"),
        (touch_control(mend=True), "NOT PROVED: the live store had fingerprint"),
        (touch_reward, "NOT PROVED: the reward of ro-"),
    ],
    ids=["torn event", "forged event", "forged reward"],
)
def test_demo_fails_where_one_stored_event_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, touch: Touch, words: str
) -> None:
    opinion = demo_run.second_opinion

    async def after_the_touch(options: demo_run.Options) -> Any:
        db = sqlite3.connect(options.folder / "log.db", isolation_level=None)
        touch("log.db", db)
        db.close()
        return await opinion(options)

    monkeypatch.setattr(demo_run, "second_opinion", after_the_touch)
    done = invoke(tmp_path)
    assert done.exit_code == 1, done.output
    assert words in done.output + str(done.exception)
    assert "proved: a second process" not in done.output


@pytest.mark.parametrize("options", [["--model", "x"], ["--base-url", "http://127.0.0.1:9/v1"], ["--chat"]])
def test_demo_refuses_options_that_do_not_fit(options: list[str]) -> None:
    with suppress(SystemExit):
        assert CliRunner().invoke(demo, options).exit_code == 2


def test_demo_help_says_what_it_does_not_show() -> None:
    said = " ".join(CliRunner().invoke(demo, ["--help"]).output.split())
    assert "What it does not show: a clever model" in said
