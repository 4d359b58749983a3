"""`agl demo` as a user starts it: the whole way with a real model, Ctrl+C, and dead processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from agentlightning.cli.demo.agent import score
from agentlightning.cli.demo.candidates import candidates
from agentlightning.cli.demo.command import demo
from agentlightning.cli.demo.model import find_model_file
from agentlightning.cli.demo.reviews import load_reviews, of_split
from agentlightning.core.errors import OptionalDependencyError

from ...openai_stub import openai_stub

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


def finished(folder: Path, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [*AGL, "demo", "--short", "--dir", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env={**os.environ, **env})


def agl_json(*arguments: str) -> Any:
    return json.loads(subprocess.run([*AGL, *arguments], capture_output=True, text=True, check=True).stdout)


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
def test_demo_asks_a_real_model_through_the_log(tmp_path: Path) -> None:
    done = finished(tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    # 3 prompts on 2 reviews, 2 of them on 2 more, and both ends (or one, where the seed is the best) on 4 others.
    assert report["rollouts"] in (3 * 2 + 2 * 2 + 2 * 4, 3 * 2 + 2 * 2 + 4)
    assert report["held_out"]["best"]["answers"] == 4
    assert all(candidate["missing"] == 0 for candidate in report["candidates"])
    assert {candidate["mean"] for candidate in report["candidates"]} != {0.0}
    # What another command reads in the log is what the demo printed.
    shown = agl_json("show", report["run"], "--log", report["log"], "--json")
    assert shown["state"] == "succeeded" and len(shown["rollouts"]) == report["rollouts"]
    assert agl_json("log", "check", "--log", report["log"], "--json")["sound"] is True


@real_model
@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl+C cannot be sent to one process there")
def test_demo_interrupted_says_where_its_rollouts_are_and_leaves_no_process(tmp_path: Path) -> None:
    with started(tmp_path) as process:
        shown = read_until(process, "plain instruction")
        children = children_of(process.pid)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in shown + out + err
    assert gone(children)
    run = re.search(r"stopped; every rollout so far is in the log: .* show (run-\w+) --log (\S+)", err)
    assert run, err
    assert agl_json("show", run[1], "--log", run[2], "--json")["state"] == "interrupted"
    done = finished(tmp_path, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["run"] != run[1], done.stderr


@real_model
@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a POSIX word")
def test_demo_killed_leaves_no_process_behind(tmp_path: Path) -> None:
    with started(tmp_path) as process:
        read_until(process, "plain instruction")
        children = children_of(process.pid)
        assert len(children) >= 3, "a model and two runners"
        process.kill()
        process.wait()
        assert gone(children)
    assert finished(tmp_path).returncode == 0


@real_model
@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a POSIX word")
def test_demo_without_its_model_ends_with_one_sentence(tmp_path: Path) -> None:
    with started(tmp_path) as process:
        read_until(process, "Round 1")
        children = children_of(process.pid)
        log = str(tmp_path / "model.log")
        (model,) = [pid for pid in children if log in {file.path for file in psutil.Process(pid).open_files()}]
        os.kill(model, signal.SIGKILL)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.splitlines()[-1].startswith("agl: the model's process ended with code -9"), err
    assert "Traceback (most" not in err, err
    assert gone(children)


@pytest.mark.parametrize(("chat", "accuracy"), [(False, 0.5), (True, 0.0)])
def test_demo_runs_on_any_endpoint(tmp_path: Path, chat: bool, accuracy: float) -> None:
    """A stub answers at once: "positive" as text, and beside the point as chat."""
    with openai_stub() as stub:
        options = ["--base-url", stub.base_url, "--model", "stub", "--json", "--api-key-env", "MY_KEY"]
        done = finished(tmp_path, *options, *(["--chat"] if chat else []), MY_KEY="sk-very-secret")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["model"], report["held_out"]["best"]["mean"]) == ("stub", accuracy)
    assert not any(b"sk-very-secret" in file.read_bytes() for file in tmp_path.iterdir()), "a key is in the log"


@pytest.mark.parametrize("options", [["--model", "x"], ["--base-url", "http://127.0.0.1:9/v1"], ["--chat"]])
def test_demo_refuses_options_that_do_not_fit(options: list[str]) -> None:
    assert CliRunner().invoke(demo, options).exit_code == 2


def test_demo_help_says_what_it_does_not_show() -> None:
    said = " ".join(CliRunner().invoke(demo, ["--help"]).output.split())
    assert "What it does not show: a clever model" in said


def test_reviews_are_balanced_and_no_pair_spans_two_splits() -> None:
    reviews = load_reviews()
    assert len(reviews) == len({review.text for review in reviews}) == 200
    assert [review.review_id for review in reviews] == [f"r{number:03d}" for number in range(1, 201)]
    for split in ("train", "validation", "test"):
        labels = [review.label for review in of_split(split)]
        for end in range(2, len(labels) + 1, 2):
            assert Counter(labels[:end]) == {"positive": end // 2, "negative": end // 2}


def test_prompts_hold_train_reviews_only() -> None:
    asked = [review.text for split in ("validation", "test") for review in of_split(split)]  # type: ignore[arg-type]
    for candidate in candidates():
        assert candidate.template.count("{review}") == 1
        assert not any(text in candidate.template for text in asked)
        assert candidate.template.format(review="x{y}").count("x{y}") == 1


@pytest.mark.parametrize(
    ("answer", "reward"),
    [(" positive", 1.0), ("Positive\n", 1.0), ("positive review", 1.0), ("positive.", 0.0), ("negative", 0.0), ("", 0.0),
     ("It is positive", 0.0), ("posit", 0.0)],
)  # fmt: skip
def test_the_score_mends_nothing(answer: str, reward: float) -> None:
    assert score(answer, "positive") == reward
