"""`agl show` and `agl replay`: one rollout as it was, and the whole state at any position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentlightning.cli.show import span_tree
from agentlightning.core.errors import InvalidInput, PositionUnknown
from agentlightning.core.fold.state import dump
from agentlightning.core.log.open_log import open_log
from agentlightning.projections.history.replay import replay

from .support import document, invoke, make_log, span


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("log")
    return {"file": str(folder / "log.db"), **make_log(folder / "log.db")}


def test_replay_gives_position_and_fingerprint_of_the_live_store(made: dict[str, Any]) -> None:
    report = document("replay", made["file"])
    assert (report["position"], report["fingerprint"]) == (made["position"], made["fingerprint"])
    assert report["rollouts"] == {"queuing": 1, "succeeded": 1}
    assert report["queue"] == [made["waiting_id"]]
    assert report["refused"] == {"late": 1}
    assert [worker["worker_id"] for worker in report["workers"]] == ["worker-0", "worker-1"]


def test_replay_to_a_position_is_the_state_that_the_store_had_there(made: dict[str, Any]) -> None:
    position, fingerprint = made["middle"]
    report = document("replay", made["file"], "--to", str(position))
    assert (report["position"], report["fingerprint"]) == (position, fingerprint)
    assert report["rollouts"] == {"requeuing": 1}
    assert report["queue"] == [made["rollout_id"]]
    code, out = invoke("replay", made["file"], "--to", str(position))
    assert code == 0 and fingerprint in out
    assert document("replay", made["file"], "--to", "0")["fingerprint"] == ""


def test_replay_beyond_the_end_is_refused_with_the_end(made: dict[str, Any]) -> None:
    code, out = invoke("replay", made["file"], "--to", "999")
    assert code == 1 and str(made["position"]) in out
    with open_log(f"sqlite:///{made['file']}", readonly=True) as log:
        with pytest.raises(PositionUnknown):
            replay(log, to=999)
        with pytest.raises(InvalidInput):
            replay(log, to=-1)
        assert dump(replay(log)[0]) == dump(replay(log, to=made["position"])[0])


def test_replay_counts_rollouts_that_left_hot_state(tmp_path: Path) -> None:
    import asyncio

    from agentlightning.projections.replica.settings import StoreSettings
    from agentlightning.rest.open_store import open_store

    async def many(store: Any) -> None:
        ids: list[str] = []
        for number in range(8):
            ids.append((await store.start_rollout(number)).rollout_id)
            await store.update_rollout(ids[-1], status="succeeded")
        await store.update_rollout(ids[0], metadata={"brought": "back"})

    store: Any = open_store(f"sqlite:///{tmp_path / 'log.db'}", settings=StoreSettings(archive_after=4))
    asyncio.run(many(store))
    expected = store.report()["rollouts"]
    store.close()
    assert document("replay", str(tmp_path / "log.db"))["rollouts"] == expected == {"succeeded": 8}


def test_show_tells_attempts_refused_results_rewards_and_what_was_said(made: dict[str, Any]) -> None:
    found = document("show", made["rollout_id"], "--log", made["file"])
    assert found["status"] == "succeeded" and found["input"] == {"question": "wie geht's?"}
    assert [(one["status"], one["reward"], one["spans"]) for one in found["attempts"]] == [
        ("failed", 0.5, 2),
        ("succeeded", 0.75, 2),
    ]
    assert [one["reason"] for one in found["attempts"][0]["refused"]] == ["late"]
    assert found["attempts"][1]["refused"] == []
    assert [one["verdict"] for one in found["events"]][-1] == "refused: late"
    assert [one["value"] for one in found["rewards"]] == [0.5, 0.75]
    code, out = invoke("show", made["rollout_id"], "--log", made["file"])
    assert code == 0
    for part in ("250 ms", "reward 0.75", "Say hi, try 1", "refused result", "late", "openai.chat", "(511 characters)"):
        assert part in out
    full = invoke("show", made["rollout_id"], "--full", "--log", made["file"])[1]
    assert "x" * 500 in full
    # Escaped, not merely stripped on the way to a pipe: a terminal gets the same letters.
    assert "hello \\x1b[31mx" in out and "hello \\x1b[31mx" in full


def test_show_takes_the_beginning_of_an_id_also_of_an_attempt(made: dict[str, Any]) -> None:
    for name in (made["rollout_id"][:9], made["attempts"][1], made["attempts"][0][:7]):
        assert document("show", name, "--log", made["file"])["rollout_id"] == made["rollout_id"]
    code, out = invoke("show", "ro-", "--log", made["file"])
    assert code == 1 and made["waiting_id"] in out and made["rollout_id"] in out
    code, out = invoke("show", "ro-zzz", "--log", made["file"])
    assert code == 1 and len(out.splitlines()) == 1


def test_a_rollout_that_only_waits_is_shown(made: dict[str, Any]) -> None:
    code, out = invoke("show", made["waiting_id"], "--log", made["file"])
    assert code == 0 and "queuing" in out and "No attempt yet" in out


def test_every_span_is_in_the_tree_once_also_in_a_circle() -> None:
    one, two, alone = (span("ro-1", "at-1", name) for name in ("one", "two", "alone"))
    one.parent_id, two.parent_id, alone.parent_id = two.span_id, one.span_id, "f" * 16
    chain = [span("ro-1", "at-1", "deep-0")]
    for depth in range(1, 2000):
        chain.append(span("ro-1", "at-1", f"deep-{depth}", chain[-1].span_id))
    text = "\n".join(span_tree([one, two, alone, *chain]))
    assert sum(text.count(name) for name in ("one", "two")) >= 2
    for name in ("alone", "deep-0", "deep-1999"):
        assert len([line for line in text.splitlines() if name in line.split()]) == 1
