"""The views of a log file are what the guide shows: one rollout, looked at with the program sqlite3."""

from __future__ import annotations

import asyncio
import re
import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.log.open_log import open_log

PAGE = Path(__file__).parents[4] / "docs" / "how-to" / "look-with-sqlite3-and-kcat.md"
BLOCKS = re.findall(r'```console\n\$ sqlite3 \.agl/log\.db "(.*?)"\n(.*?)```', PAGE.read_text(encoding="utf-8"), re.DOTALL)
NAMES = re.compile(r"\b(ro|at|rs)-[0-9a-f]+|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}")


async def one_rollout(store: agl.EventLogStore) -> None:
    """A prompt, a rollout, its attempt with a model call and a reward, and its outcome."""
    await store.add_resources({"prompt_template": agl.PromptTemplate(template="Answer: {question}", engine="f-string")})
    await store.enqueue_rollout({"question": "What is the capital of France?"})
    await store.update_worker("worker-1", {"cpu": 0.5})
    claimed = await store.dequeue_rollout(worker_id="worker-1")
    assert claimed is not None
    spans: list[tuple[str, dict[str, Any]]] = [
        ("chat.completions", {"gen_ai.prompt.0.content": "Answer: ...", "gen_ai.completion.0.content": "Paris"}),
        ("agentlightning.annotation", {"agentlightning.reward.0.value": 1.0}),
    ]
    for name, attributes in spans:
        span = agl.Span.from_attributes(
            rollout_id=claimed.rollout_id,
            attempt_id=claimed.attempt.attempt_id,
            sequence_id=0,
            name=name,
            attributes=attributes,
        )
        await store.add_span(span)
    await store.update_attempt(claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded")


def shown(path: Path, query: str) -> str:
    if shutil.which("sqlite3"):
        return subprocess.run(["sqlite3", path, query], check=True, capture_output=True, text=True).stdout
    with sqlite3.connect(path) as db:
        return "".join("|".join("" if one is None else str(one) for one in row) + "\n" for row in db.execute(query))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("views") / "log.db"
    with agl.EventLogStore(open_log(f"sqlite:///{path}")) as store:
        asyncio.run(one_rollout(store))
    return path


@pytest.mark.skipif(sqlite3.sqlite_version_info < (3, 38), reason="the operator ->> is younger than this SQLite")
@pytest.mark.parametrize(("query", "output"), BLOCKS, ids=[str(number) for number in range(len(BLOCKS))])
def test_the_guide_shows_what_sqlite3_prints(log: Path, query: str, output: str) -> None:
    assert NAMES.sub("...", shown(log, query)) == NAMES.sub("...", output)


def test_the_guide_shows_every_topic_that_a_file_stores() -> None:
    text = " ".join(query for query, _ in BLOCKS)
    assert all(f"from {topic}" in text for topic in ("control", "spans", "liveness", "blobs", "dead", "snapshots"))


def test_a_record_that_is_no_json_does_not_hide_the_others(log: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    shutil.copy(log, copy)
    with sqlite3.connect(copy) as db:
        db.execute("UPDATE control_0 SET value = ? WHERE offset = 1", (b"\xff{",))
        db.commit()
        rows = db.execute("SELECT position, type FROM control WHERE position < 3").fetchall()
    assert rows == [(0, "log.opened"), (1, None), (2, "rollouts.enqueued")]
