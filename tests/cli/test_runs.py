"""`agl ps`, `agl show RUN` and `agl replay RUN`, on the log that a fit leaves behind."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.algorithms.runs.recorder import RunStart, recorder_for
from agentlightning.algorithms.runs.report import line_of
from agentlightning.cli.runs import _reward_line, _row
from agentlightning.core.log.open_log import open_log
from agentlightning.projections.history.replay import replay
from agentlightning.projections.history.run_index import Run
from agentlightning.projections.history.run_table import RunSummary

from .support import document, documents, invoke

APP = '''
import random
import sys

import agentlightning as agl

PROMPTS = ["Answer: {question}", "Think first, then answer: {question}"]
CHANGED = ["Answer: {question}", "Answer quickly: {question}"]
TASKS = [{"question": "the sky"}, {"question": "the sea"}, {"question": "the sun"}]


@agl.rollout
def agent(task, prompt_template: agl.PromptTemplate):
    return len(prompt_template.template) / 100


async def tried(store, prompts, tasks):
    best, best_reward = None, -1.0
    for prompt in prompts:
        update = await store.add_resources({"prompt": agl.PromptTemplate(template=prompt, engine="f-string")})
        chosen = random.sample(tasks, len(tasks))
        made = [await store.enqueue_rollout(task, "train", update.resources_id) for task in chosen]
        done = await store.wait_for_rollouts([one.rollout_id for one in made])
        rewards = [agl.find_final_reward(list(await store.query_spans(one.rollout_id))) for one in done]
        if sum(rewards) > best_reward:
            best, best_reward = update, sum(rewards)
    return best


@agl.algo
async def search(*, store, train_dataset):
    return await tried(store, PROMPTS, train_dataset)


@agl.algo
async def changed(*, store, train_dataset):
    return await tried(store, CHANGED, train_dataset)


def other():
    return TASKS[:2]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(agl.Trainer(algorithm=search, n_runners=1, strategy="cs", seed=5, name=name).fit(agent, TASKS).run_id)
'''


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A folder with a program and the log of two fits of it."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "app.py").write_text(APP, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "app.py", "capitals", "colours"], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    ids = done.stdout.split()
    return {"folder": folder, "ids": ids, "log": str(folder / ".agl" / "log.db")}


@pytest.fixture(autouse=True)
def here(made: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands are given in the folder of the program."""
    monkeypatch.chdir(made["folder"])
    monkeypatch.syspath_prepend(str(made["folder"]))


def test_ps_lists_the_runs_of_all_logs_here(made: dict[str, Any]) -> None:
    first, second = document("ps")
    assert [first["run_id"], second["run_id"]] == made["ids"]
    assert (first["name"], first["state"], first["rollouts"], first["seed"]) == ("capitals", "succeeded", {"succeeded": 6}, 5)
    expected = (3 * len("Answer: {question}") + 3 * len("Think first, then answer: {question}")) / 600
    assert first["mean_reward"] == pytest.approx(expected) and first["rewarded"] == 6
    code, out = invoke("ps")
    lines = out.splitlines()
    assert code == 0 and len(lines) == 3 and lines[0].split()[:3] == ["run", "name", "algorithm"]
    assert " 6 " in lines[1] and f"{expected:.3f}" in lines[1] and made["ids"][1] in lines[2]


def test_a_mean_says_how_many_rewards_are_missing() -> None:
    found = RunSummary(Run("run-1", 0, 1.0), "x", {"a": "succeeded", "b": "failed"}, {"a": 0.5, "b": None})
    assert "0.500 (1 without)" in _row(found)
    assert _reward_line(found) == "0.5 on average of 1 rollout; 1 rollout without a reward"
    assert found.summary()["missing_rewards"] == 1
    result = agl.FitResult("run-1", rewards=found.rewards, statuses=found.statuses)
    assert (result.missing_rewards, result.summary["missing_rewards"], result.mean_reward) == (1, 1, 0.5)


def test_ps_looks_into_every_log_of_the_folder(made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out = invoke("ps")
    assert code == 1 and "log.db" in out, "there is no log at all"
    for name in ("log.db", "log-2.db"):
        target = f"sqlite:///.agl/{name}"
        assert invoke("log", "copy", made["log"], target)[0] == 0
    rows = document("ps")
    assert [row["run_id"] for row in rows] == made["ids"] * 2 and len({row["log"] for row in rows}) == 2
    assert invoke("show", made["ids"][0])[0] == 1, "it is in both"
    assert document("show", made["ids"][0], "--log", ".agl/log-2.db")["run_id"] == made["ids"][0]


def test_ps_and_an_empty_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    agl.open_store("sqlite:///./.agl/log.db").close()  # type: ignore[attr-defined]
    code, out = invoke("ps")
    assert code == 0 and out.startswith("No runs in")


async def test_ps_asks_a_store_over_http(made: dict[str, Any]) -> None:
    import asyncio

    store: Any = agl.open_store(f"sqlite:///{made['log']}")
    server = agl.LightningStoreServer(store, host="127.0.0.1", port=0)
    await server.start()
    try:
        rows = await asyncio.to_thread(document, "ps", "--log", server.endpoint)
    finally:
        await server.stop()
        store.close()
    assert [(row["run_id"], row["rollouts"]) for row in rows] == [(one, {"succeeded": 6}) for one in made["ids"]]
    assert rows[0]["mean_reward"] is not None


def test_show_tells_a_run_by_id_beginning_and_name(made: dict[str, Any]) -> None:
    run_id = made["ids"][0]
    for name in (run_id, run_id[:10], "capitals"):
        found = document("show", name)
        assert found["run_id"] == run_id and found["state"] == "succeeded"
    assert len(found["rollouts"]) == 6 and {one["status"] for one in found["rollouts"]} == {"succeeded"}
    kinds = [one["kind"] for one in found["decisions"]]
    once = ["resources.published", "rollouts.enqueued", "rollouts.enqueued", "rollouts.enqueued"]
    assert kinds == [*once, *once, "best.chosen"]
    assert found["best_resources_id"] == found["decisions"][4]["content"]["resources_id"]
    assert found["recorded"] == ["train"] and found["train_size"] == 3
    code, out = invoke("show", "capitals")
    assert code == 0 and "Decisions" in out and "best.chosen" in out and "seed" in out
    rollout_id = found["rollouts"][0]["rollout_id"]
    assert document("show", rollout_id)["metadata"]["agl.run_id"] == run_id, "rollouts are shown as ever"
    code, out = invoke("show", "run-nobody")
    assert code == 1 and "run-nobody" in out
    code, out = invoke("show", "nobody")
    assert code == 1 and "nobody" in out


def test_replay_tells_what_happened_in_order_and_only_of_this_run(made: dict[str, Any]) -> None:
    told = documents("replay", made["ids"][0])
    assert told[0]["type"] == "run.opened" and told[-1]["type"] == "run.closed"
    positions = [one["position"] for one in told]
    assert positions == sorted(set(positions))
    run = document("show", made["ids"][0])
    mine = {one["rollout_id"] for one in run["rollouts"]}
    assert {rollout for one in told for rollout in one["rollouts"]} == mine
    assert sum(one["type"] == "algorithm.decided" for one in told) == 9
    completed = [fact for one in told for fact in one["detail"].get("facts", []) if fact["type"] == "rollout.completed"]
    assert {fact["rollout_id"] for fact in completed} == mine
    code, out = invoke("replay", "capitals", "--instant")
    assert code == 0 and len(out.splitlines()) == len(told) and "attempt 1" in out
    to = positions[5]
    assert [one["position"] for one in documents("replay", "capitals", "--to", str(to))] == positions[:5]


def test_replay_keeps_the_pace_that_is_asked_for(made: dict[str, Any]) -> None:
    told = documents("replay", "capitals")
    took = told[-1]["time"] - told[0]["time"]
    began = time.monotonic()
    assert invoke("replay", "capitals", "--speed", str(took / 0.5))[0] == 0
    assert 0.4 < time.monotonic() - began < 10


def test_replay_with_the_same_algorithm_makes_the_same_decisions(made: dict[str, Any]) -> None:
    for name in ("capitals", made["ids"][1]):
        report = document("replay", name, "--algorithm", "app:search")
        assert report["same"] and report["decisions"] == report["recorded"] == 8
    code, out = invoke("replay", "capitals", "--algorithm", "app:search")
    assert code == 0 and "makes the same decisions" in out


def test_replay_with_a_changed_algorithm_names_the_first_difference(made: dict[str, Any]) -> None:
    code, out = invoke("replay", "capitals", "--algorithm", "app:changed")
    assert code == 1
    first, expected, got = out.splitlines()
    fifth = document("show", "capitals")["decisions"][4]
    assert f"position {fifth['position']}" in first and "after 4 equal decisions" in first
    assert "Think first" in expected and "Answer quickly" in got
    code, out = invoke("replay", "capitals", "--algorithm", "app:changed", "--json")
    assert code == 1 and json.loads(out)["departed"]["position"] == fifth["position"]
    code, out = invoke("replay", "capitals", "--algorithm", "app:search", "--train-dataset", "app:other")
    assert code == 1 and "departs" in out, "with two samples it decides otherwise"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("replay", "capitals", "--algorithm", "app:agent"), "neither an algorithm"),
        (("replay", "capitals", "--algorithm", "app:missing"), "missing"),
        (("replay", "nothing-like-it"), "no run"),
        (("replay", "capitals", "--speed", "2", "--instant"), "exclude"),
        (("replay", "--algorithm", "app:search"), "RUN"),
        (("replay", "capitals", "--train-dataset", "app:other"), "--algorithm"),
    ],
)
def test_what_cannot_be_replayed_is_one_line(args: tuple[str, ...], said: str) -> None:
    code, out = invoke(*args)
    assert code != 0 and said in out and "Traceback" not in out


def test_replay_of_the_log_stays_what_it_was(made: dict[str, Any]) -> None:
    report = document("replay", made["log"])
    with open_log(f"sqlite:///{made['log']}", readonly=True) as log:
        state, met = replay(log)
    assert (report["position"], report["fingerprint"]) == (met.position, met.fingerprint)
    assert report["rollouts"] == {"succeeded": 12} and state.skipped > 0
    assert document("replay")["fingerprint"] == met.fingerprint


def test_the_log_commands_read_events_of_runs(made: dict[str, Any]) -> None:
    rows = documents("log", "grep", "", "--type", "run", "--log", made["log"])
    assert [row["type"] for row in rows] == ["run.opened", "run.closed"] * 2
    assert rows[0]["body"]["event"]["parameters"]["n_runners"] == 1


def test_the_line_of_a_traceback_is_found_however_many_empty_lines_it_has() -> None:
    stack = "Traceback\n" + "\n" * 200_000 + '  File "/home/me/app.py", line 7, in ask\n    raise ValueError\n'
    began = time.monotonic()
    assert line_of(stack) == "app.py:7 in ask: raise ValueError"
    assert time.monotonic() - began < 5


def test_the_line_of_a_traceback_is_the_agents_and_not_one_of_this_package() -> None:
    own = '  File "/home/me/core/app.py", line 7, in ask\n    store.add()\n'
    package = "".join(
        f'  File "{file}", line 9, in x\n    y()\n'
        for file in (agl.LitAgentRunner.__init__.__code__.co_filename, "/srv/agentlightning/projections/store/rollouts.py")
    )
    assert line_of(f"Traceback\n{own}{package}") == "app.py:7 in ask: store.add()"


def test_show_run_has_candidates_with_the_best_one_in_full_and_rows_that_say_what_was_asked(made: dict[str, Any]) -> None:
    found = document("show", "capitals")
    first, second = found["candidates"]
    assert (first["rollouts"], second["rollouts"], first["missing"], first["failed"]) == (3, 3, 0, 0)
    assert first["mean_reward"] == pytest.approx(0.18) and second["mean_reward"] == pytest.approx(0.36)
    assert (first["best"], second["best"]) == (False, True)
    assert second["resources"]["prompt"]["template"] == "Think first, then answer: {question}"
    assert {one["input"]["question"] for one in found["rollouts"]} == {"the sky", "the sea", "the sun"}
    code, out = invoke("show", "capitals")
    assert code == 0 and "Candidates" in out and "\n    Think first, then answer: {question}\n" in out
    assert "the sea" in out


def test_latest_is_the_newest_run_and_the_newest_of_a_name_is_named(
    made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert document("show", "latest")["run_id"] == made["ids"][1]
    assert document("best", "latest")["run_id"] == document("best")["run_id"] == made["ids"][1]
    monkeypatch.chdir(tmp_path)
    Path("r").mkdir()
    with agl.open_store("sqlite:///./.agl/log.db") as store:  # type: ignore[attr-defined]
        old, new = (start_run(store, "r") for _ in range(2))
        start_run(store, "other")
    for command in ("show", "replay"):
        code, out = invoke(command, "r")
        assert code == 0 and new in out and f"2 runs are named r; this is the newest, {new}" in out, "r begins run- and ro-"
    assert document("show", old)["run_id"] == old


def start_run(store: Any, name: str) -> str:
    import asyncio

    from agentlightning.algorithms.runs.recorder import RunStart, recorder_for

    return asyncio.run(recorder_for(store).opened(RunStart(name, "search")))


def test_best_saves_the_text_of_the_prompt(made: dict[str, Any], tmp_path: Path) -> None:
    code, out = invoke("best", "capitals", "--save", str(tmp_path / "best.txt"))
    assert code == 0 and "named best by the algorithm" in out and "0.360" in out
    assert (tmp_path / "best.txt").read_text() == "Think first, then answer: {question}\n"
    assert invoke("best", "capitals", "--save", str(tmp_path / "best.json"))[0] == 0
    assert json.loads((tmp_path / "best.json").read_text())["prompt"]["engine"] == "f-string"
    assert "Think first" in invoke("best", "capitals")[1]


def test_show_resources_is_every_version_with_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    monkeypatch.chdir(tmp_path)

    async def publish(store: Any) -> None:
        for text in ("Answer.\nBe brief.", "Answer.\nBe kind."):
            await store.update_resources("rs-prompt", {"main": agl.PromptTemplate(template=text, engine="f-string")})

    with agl.open_store("sqlite:///./.agl/log.db") as store:  # type: ignore[attr-defined]
        asyncio.run(publish(store))
    assert [one["version"] for one in document("show", "rs-prompt")["versions"]] == [1, 2]
    code, out = invoke("show", "rs-pro")
    assert code == 0 and "  -  Be brief." in out and "  +  Be kind." in out


async def test_every_looking_command_reads_a_store_over_http(made: dict[str, Any]) -> None:
    import asyncio

    store: Any = agl.open_store(f"sqlite:///{made['log']}")
    server = agl.LightningStoreServer(store, host="127.0.0.1", port=0, token="secret")
    await server.start()
    where = ("--log", server.endpoint, "--token", "secret")
    try:
        code, out = await asyncio.to_thread(invoke, "show", "capitals", "--log", server.endpoint)
        assert code == 1 and "token" in out
        for command in (
            ("show", "capitals"), ("best", "capitals"), ("replay", "capitals"), ("replay",), ("log", "topics"),
            ("log", "tail"), ("log", "tail", "spans"), ("log", "grep", "sky"), ("log", "show", "1"), ("log", "check"),
        ):  # fmt: skip
            there = await asyncio.to_thread(invoke, *command, *where)
            here = await asyncio.to_thread(invoke, *command, "--log", made["log"])
            if command == ("log", "check"):
                assert "is sound" in there[1] and there[1].split("position")[1] == here[1].split("position")[1]
                continue
            assert there[0] == here[0] == 0
            same = [[line for line in out.splitlines() if not line.startswith("log ")] for _, out in (there, here)]
            assert same[0] == same[1], command
        rollout = (await asyncio.to_thread(document, "show", "capitals", *where))["rollouts"][0]["rollout_id"]
        assert (await asyncio.to_thread(document, "show", rollout, *where))["attempts"][0]["status"] == "succeeded"
    finally:
        await server.stop()
        store.close()


def test_a_store_that_is_down_is_one_line_within_seconds() -> None:
    began = time.monotonic()
    for command in (("ps",), ("show", "latest"), ("log", "tail"), ("dead", "ls"), ("replay",)):
        code, out = invoke(*command, "--log", "http://127.0.0.1:9")
        assert code == 1 and "127.0.0.1:9" in out and "Traceback" not in out
    assert time.monotonic() - began < 20
    code, out = invoke("ps", "--log", "localhost:4747")
    assert code == 1 and "http://localhost:4747" in out


def test_tables_fit_the_terminal_and_keep_ids(made: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for width in (80, 100):
        monkeypatch.setenv("COLUMNS", str(width))
        for command in (("ps",), ("show", "capitals"), ("replay", "capitals"), ("log", "tail", "control"), ("log", "tail")):
            out = invoke(*command)[1]
            wide = [line for line in out.splitlines() if len(line) > width and not line.startswith("log ")]
            assert wide == [], command
        assert made["ids"][0] in invoke("ps")[1]


def test_cancel_ends_what_is_open_of_a_run_in_a_file_and_in_a_store_that_serves(tmp_path: Path) -> None:
    store: Any = agl.open_store(f"sqlite:///{tmp_path}/log.db")
    server = agl.LightningStoreServer(store, host="127.0.0.1", port=0)

    async def left_behind(name: str) -> str:
        recorder = recorder_for(store)
        run_id = await recorder.opened(RunStart(name=name))
        await recorder.bind(run_id, own_runners=True).enqueue_rollout(name)
        return run_id

    async def serve() -> str:
        await server.start()
        return await left_behind("served")

    try:
        served, filed = asyncio.run(serve()), asyncio.run(left_behind("filed"))
        done = document("cancel", "served", "--store", server.endpoint)
        assert done["run_id"] == served and len(done["rollout_ids"]) == 1
        asyncio.run(server.stop())
    finally:
        store.close()
    assert invoke("cancel", filed[:15], "--log", f"{tmp_path}/log.db") == (0, f"{filed}: 1 rollout cancelled.\n")
    assert invoke("cancel", "filed", "--log", f"{tmp_path}/log.db") == (0, f"{filed}: nothing was open.\n")
    code, out = invoke("cancel", "nobody", "--log", f"{tmp_path}/log.db")
    assert code == 1 and "no run" in out
