"""`agl log` on a file: topics, filters, derived topics, raw bytes, and a check that finds every changed record."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest

import agentlightning as agl
from agentlightning.cli.terminal import printable
from agentlightning.core.log.interface import Record
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.projections.facts.publisher import Cursor
from agentlightning.projections.history.record_view import Decoder
from agentlightning.projections.replica.settings import StoreSettings

from .support import document, documents, fill, invoke, make_log


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("log")
    return {"file": str(folder / "log.db"), **make_log(folder / "log.db")}


def test_every_topic_is_listed_also_the_derived_ones(made: dict[str, Any]) -> None:
    rows = {row["topic"]: row for row in document("log", "topics", "--log", made["file"])}
    assert list(rows) == ["control", "spans", "liveness", "blobs", "snapshots", "dead", "tasks", "facts"]
    assert rows["control"]["records"] == made["position"]
    assert rows["spans"]["records"] == 4
    assert rows["tasks"]["records"] == 3
    assert rows["facts"]["records"] > rows["tasks"]["records"]
    code, out = invoke("log", "topics", "--log", made["file"])
    assert code == 0 and "derived from control" in out


def test_tail_shows_the_last_records_decoded(made: dict[str, Any]) -> None:
    seen = documents("log", "tail", "-n", "3", "--log", made["file"])
    assert [one["position"] for one in seen] == [made["position"] - 3, made["position"] - 2, made["position"] - 1]
    assert seen[-1]["type"] == "rollouts.enqueued"
    assert seen[-1]["body"]["event"]["rollouts"][0]["input"] == "second"
    assert documents("log", "tail", "-n", "0", "--log", made["file"]) == []


def test_snapshots_are_shown_by_what_they_hold(tmp_path: Path) -> None:
    store: Any = agl.open_store(f"sqlite:///{tmp_path}/log.db", settings=StoreSettings(snapshot_every=1))
    asyncio.run(fill(store))
    store.close()
    rows = documents("log", "tail", "snapshots", "-n", "99", "--log", f"{tmp_path}/log.db")
    assert {row["type"] for row in rows} == {"manifest", "chunk"}
    assert all(row["body"]["log_id"] for row in rows if row["type"] == "manifest")
    cursor = msgspec.json.encode(Cursor(log_id="a", position=3, fingerprint="b", writer="w"))
    with MemoryLog() as log:
        view = Decoder(log).view(Record("snapshots", 0, 7, "facts", cursor, 1_000_000, ()))
    assert (view.type, view.problem, view.body["position"]) == ("cursor", "", 3)


def test_tail_without_a_topic_is_what_happened(made: dict[str, Any]) -> None:
    code, out = invoke("log", "tail", "-n", "99", "--log", made["file"])
    lines = out.splitlines()
    assert code == 0 and len(lines) == 6, "two rollouts, two claims, a failure that is retried, an outcome"
    assert "in the queue" in lines[0] and "attempt 1 claimed by worker-0" in lines[1]
    assert "attempt 1 failed" in lines[2] and "attempt 2 claimed by worker-1" in lines[3]
    assert lines[4].endswith("succeeded, reward 0.75") and made["rollout_id"] in lines[4]
    assert made["waiting_id"] in lines[5]
    assert invoke("log", "tail", "-n", "2", "--log", made["file"])[1].splitlines() == lines[-2:]
    only = invoke("log", "tail", "--type", "rollout.completed", "--log", made["file"])[1]
    assert only.splitlines() == lines[4:5]


def test_filters_by_rollout_attempt_and_type(made: dict[str, Any]) -> None:
    rollout, attempt = made["rollout_id"], made["attempts"][0]

    def types(*args: str) -> list[str]:
        return [one["type"] for one in documents("log", "tail", "-n", "99", "--log", made["file"], *args)]

    assert types("--rollout", made["waiting_id"]) == ["rollouts.enqueued"]
    assert types("--rollout", rollout)[:2] == ["rollouts.enqueued", "attempt.claimed"]
    assert types("--attempt", attempt) == ["attempt.claimed"]
    assert types("spans", "--attempt", attempt[:6]) == ["span", "span"]
    assert set(types("--type", "attempt")) == {"attempt.claimed", "attempt.observed", "attempt.updated"}
    assert types("--type", "attempt.claimed") == ["attempt.claimed"] * 2
    assert types("--type", "attempt.expired") == []
    code, out = invoke("log", "tail", "--type", "attempt.cl", "--log", made["file"])
    assert code == 1 and "attempt.claimed" in out, "a type that no record can have is an error that lists the types"
    assert invoke("log", "grep", "x", "--type", "nothing", "--log", made["file"])[0] == 1


def test_filters_by_position_and_time(made: dict[str, Any]) -> None:
    every = documents("log", "tail", "-n", "99", "--log", made["file"])
    some = documents("log", "tail", "-n", "99", "--log", made["file"], "--since", "2", "--until", "5")
    assert [one["position"] for one in some] == [2, 3, 4]
    assert documents("log", "tail", "--log", made["file"], "--until", "2001-01-01") == []
    assert documents("log", "tail", "-n", "99", "--log", made["file"], "--since", "2001-01-01T00:00:00Z") == every
    assert documents("log", "tail", "spans", "--log", made["file"], "--since", "2999-01-01") == []
    assert len(documents("log", "tail", "spans", "--log", made["file"], "--since", "2001-01-01")) == 4


def test_facts_and_tasks_are_derived_with_deterministic_ids(made: dict[str, Any]) -> None:
    facts = documents("log", "tail", "facts", "-n", "99", "--log", made["file"])
    assert [one["offset"] for one in facts] == list(range(len(facts)))
    for fact in facts:
        position, index = fact["body"]["id"].split("/")
        assert int(position) == fact["position"] and index.isdigit()
    tasks = documents("log", "tail", "tasks", "-n", "99", "--log", made["file"])
    assert {one["type"] for one in tasks} == {"rollout.claimable"}
    assert [one["body"] for one in tasks] == [one["body"] for one in facts if one["type"] == "rollout.claimable"]
    completed = documents("log", "tail", "facts", "--type", "rollout.completed", "--log", made["file"])
    assert [(one["key"], one["body"]["data"]["status"]) for one in completed] == [(made["rollout_id"], "succeeded")]
    between = documents("log", "tail", "facts", "-n", "1", "--since", "3", "--until", "5", "--log", made["file"])
    assert between[0]["position"] == 4


def test_a_record_is_shown_in_full_or_as_its_bytes(made: dict[str, Any]) -> None:
    whole = document("log", "show", "1", "--log", made["file"])
    assert whole["headers"]["t"] == whole["type"] == "rollouts.enqueued"
    raw = document("log", "show", "1", "--raw", "--log", made["file"])
    assert bytes.fromhex(raw["value"]) and raw["body"] is None
    code, out = invoke("log", "show", "1", "--log", made["file"])
    assert code == 0 and "wie geht's?" in out
    code, out = invoke("log", "show", "999", "--log", made["file"])
    assert (code, out) == (1, "agl: control has no record at position 999\n")


def test_grep_finds_in_control_and_spans_and_says_so_by_its_exit_code(made: dict[str, Any]) -> None:
    hits = documents("log", "grep", "try 1", "--log", made["file"])
    assert [(one["topic"], one["attempt_ids"]) for one in hits] == [("spans", [made["attempts"][1]])]
    assert [one["topic"] for one in documents("log", "grep", "-i", "WIE GEHT", "--log", made["file"])] == ["control"]
    assert invoke("log", "grep", "nobody wrote this", "--log", made["file"]) == (1, "")
    assert invoke("log", "grep", "(", "--log", made["file"])[0] == 2


def test_control_characters_of_a_log_never_reach_the_terminal(made: dict[str, Any]) -> None:
    code, out = invoke("log", "show", "0", "spans", "--log", made["file"])
    assert code == 0 and "hello \\u001b[31mx" in out
    assert printable("a\x1b[31m\r\ud800é") == "a\\x1b[31m\\r\\ud800é"


def test_an_unknown_topic_is_refused_with_the_known_ones(made: dict[str, Any]) -> None:
    code, out = invoke("log", "tail", "nope", "--log", made["file"])
    assert code == 1 and "facts" in out and len(out.splitlines()) == 1


def test_check_says_that_a_file_is_sound_and_gives_its_fingerprint(made: dict[str, Any]) -> None:
    report = document("log", "check", "--log", made["file"])
    assert report["sound"] and (report["position"], report["fingerprint"]) == (made["position"], made["fingerprint"])


@pytest.mark.parametrize(
    ("statement", "word"),
    [
        ("UPDATE control SET value = replace(value, x'{0}', x'{1}') WHERE offset = 4", "4"),
        ("DELETE FROM control WHERE offset = 4", "4"),
        ("UPDATE spans SET key = 'ro-000000000000' WHERE offset = 2", "2"),
    ],
)
def test_check_finds_a_changed_or_missing_record(made: dict[str, Any], tmp_path: Path, statement: str, word: str) -> None:
    copy = tmp_path / "copy.db"
    shutil.copy(made["file"], copy)
    db = sqlite3.connect(copy)
    tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    control = next(name for name in tables if "control" in name)
    spans = next(name for name in tables if "spans" in name)
    sql = statement.format(b"failed".hex(), b"passed".hex())
    sql = sql.replace(" control ", f" {control} ").replace(" spans ", f" {spans} ")
    assert db.execute(sql).rowcount == 1
    db.commit()
    db.close()
    code, out = invoke("log", "check", "--log", str(copy))
    assert code == 1 and "not sound" in out and word in out
    if "control" in statement:
        code, out = invoke("replay", str(copy))
        assert code == 1 and word in out and len(out.splitlines()) == 1


def test_check_tells_a_file_that_is_no_log(tmp_path: Path) -> None:
    (tmp_path / "rubbish.db").write_bytes(b"this is no database" * 100)
    code, out = invoke("log", "check", "--log", str(tmp_path / "rubbish.db"))
    assert code == 1 and "not sound" in out


def test_a_copy_has_the_same_records_and_fingerprint(made: dict[str, Any], tmp_path: Path) -> None:
    copied = document("log", "copy", made["file"], str(tmp_path / "copy.db"))
    assert copied["records"]["control"] == made["position"]
    assert document("log", "check", "--log", str(tmp_path / "copy.db"))["fingerprint"] == made["fingerprint"]
    code, out = invoke("log", "copy", made["file"], str(tmp_path / "copy.db"))
    assert code == 1 and "exists" in out
    code, out = invoke("log", "copy", made["file"], "localhost:9092/dev")
    assert code == 1 and "write http://localhost:9092/dev" in out
    code, out = invoke("log", "check", "--log", "localhost:4747")
    assert code == 1 and "write http://localhost:4747" in out


def test_a_served_log_is_copied_through_its_store_and_no_credentials_are_printed(
    made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document("log", "copy", made["file"], str(tmp_path / "log.db"))
    store: Any = agl.open_store(f"sqlite:///{tmp_path}/log.db")
    server = agl.LightningStoreServer(store, host="127.0.0.1", port=0, token="t")
    asyncio.run(server.start())
    try:
        address = server.endpoint.replace("//", "//somebody:hidden@")
        assert invoke("log", "copy", address, str(tmp_path / "served.db"), "--token", "t")[0] == 0
        for token, command in (("t", "check"), ("t", "topics"), ("wrong", "check"), ("wrong", "tail")):
            code, out = invoke("log", command, "--log", address, "--token", token)
            assert code == (0 if token == "t" else 1) and "hidden" not in out
        code, out = invoke("replay", "--log", address, "--token", "t")
        assert code == 0 and server.endpoint in out and "hidden" not in out
    finally:
        asyncio.run(server.stop())
        store.close()
    fingerprint = document("log", "check", "--log", str(tmp_path / "served.db"))["fingerprint"]
    assert fingerprint == document("log", "check", "--log", str(tmp_path / "log.db"))["fingerprint"]


@pytest.mark.parametrize("text", ["\u00b2", "9" * 40])
def test_what_is_no_position_is_wrong_usage(made: dict[str, Any], text: str) -> None:
    code, out = invoke("log", "tail", "--since", text, "--log", made["file"])
    assert code == 2 and "neither a position nor a time" in out
