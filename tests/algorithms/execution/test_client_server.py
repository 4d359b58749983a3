"""One program in several roles: an algorithm that serves, and runners that find it and stop when its run is closed."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

import agentlightning as agl

from ..program import SEARCH, program

ROLES = (
    SEARCH
    + """
if __name__ == "__main__":
    agl.setup_logging()
    n_runners = int(sys.argv[1])
    result = agl.Trainer(algorithm=search, n_runners=n_runners).fit(agent, ["the sky", "the sea", "the sun"])
    show(result)
"""
)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.parametrize("n_runners", ["1", "2"])
def test_runners_started_by_role_work_for_the_algorithm_and_stop_when_its_run_closes(
    tmp_path: Path, n_runners: str
) -> None:
    port = free_port()
    folders = [tmp_path / name for name in ("runner", "algorithm")]
    for folder in folders:
        folder.mkdir()
    settings = {"AGL_SERVER_HOST": "127.0.0.1", "AGL_SERVER_PORT": port}
    # The runners are there first, as they may be, and wait for the store.
    with program(ROLES, folders[0], n_runners, AGL_CURRENT_ROLE="runner", **settings) as runner:
        runner.says("role=runner")
        with program(ROLES, folders[1], "1", AGL_CURRENT_ROLE="algorithm", **settings) as algorithm:
            result = algorithm.result()
            assert result["best"] == "Please {question}" and result["statuses"] == ["succeeded"] * 6
        assert runner.result()["run_id"] == ""
        assert "is over; the runners stop." in runner.text and "Traceback" not in runner.text
        assert runner.left_over() == []
    assert not (folders[0] / ".agl").exists()


def test_a_runner_by_role_ends_at_ctrl_c_while_it_waits_for_its_store(tmp_path: Path) -> None:
    settings = {"AGL_SERVER_PORT": free_port(), "AGL_CURRENT_ROLE": "runner"}
    with program(ROLES, tmp_path, "1", **settings) as runner:
        runner.says("waiting for the store")
        runner.interrupt()
        assert runner.ends(15) == 0, runner.text
        assert "Traceback" not in runner.text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"role": "boss"}, "role must be"),
        ({"main_process": "other"}, "main_process must be"),
        ({"main_process": "runner", "n_runners": 2}, "n_runners=1"),
        ({"main_process": "runner", "role": "algorithm"}, "role='both'"),
        ({"n_runners": 0}, "at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        agl.ClientServerExecutionStrategy(**arguments)  # type: ignore[arg-type]


def test_the_environment_sets_what_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGL_CURRENT_ROLE", "runner")
    monkeypatch.setenv("AGL_SERVER_HOST", "store.example")
    monkeypatch.setenv("AGL_SERVER_PORT", "4848")
    monkeypatch.setenv("AGL_MANAGED_STORE", "off")
    found = agl.ClientServerExecutionStrategy()
    assert (found.role, found.server_host, found.server_port, found.managed_store) == (
        "runner",
        "store.example",
        4848,
        False,
    )
    given = agl.ClientServerExecutionStrategy(role="both", server_host="localhost", server_port=1, managed_store=True)
    assert (given.role, given.server_host, given.server_port, given.managed_store) == ("both", "localhost", 1, True)
    monkeypatch.setenv("AGL_SERVER_PORT", "many")
    with pytest.raises(ValueError, match="AGL_SERVER_PORT must be an integer"):
        agl.ClientServerExecutionStrategy()
    monkeypatch.setenv("AGL_SERVER_PORT", "4848")
    monkeypatch.setenv("AGL_MANAGED_STORE", "maybe")
    with pytest.raises(ValueError, match="AGL_MANAGED_STORE"):
        agl.ClientServerExecutionStrategy()


def test_workers_of_a_fork_server_work_until_the_end_of_the_run_and_load_what_they_use(tmp_path: Path) -> None:
    text = (
        SEARCH
        + """
UNUSED = ("aiohttp", "aiokafka", "openai", "sqlite3", "starlette", "uvicorn",
          "agentlightning.projections.store", "agentlightning.rest.server")
search_agent = agent

@agl.rollout
def agent(task: str, prompt_template: agl.PromptTemplate) -> float:
    loaded = [name for name in sys.modules if name.startswith(UNUSED)]
    assert not loaded, loaded
    return search_agent(task, prompt_template)

if __name__ == "__main__":
    agl.setup_logging()
    strategy = agl.ClientServerExecutionStrategy(n_runners=2, start_method="forkserver")
    show(agl.Trainer(algorithm=search, strategy=strategy).fit(agent, ["a", "b", "c"]))
"""
    )
    with program(text, tmp_path) as fit:
        assert fit.result()["rewards"] == [0.25] * 3 + [1.0] * 3
        assert "Traceback" not in fit.text and "another process takes its place" not in fit.text
        assert fit.left_over() == []


def test_the_one_runner_may_stay_in_the_main_process(tmp_path: Path) -> None:
    text = (
        SEARCH
        + """
if __name__ == "__main__":
    agl.setup_logging()
    strategy = agl.ClientServerExecutionStrategy(main_process="runner")
    show(agl.Trainer(algorithm=search, strategy=strategy).fit(agent, ["a", "b", "c"]))
"""
    )
    with program(text, tmp_path) as fit:
        result = fit.result()
        assert result["rewards"] == [0.25] * 3 + [1.0] * 3
