"""The legacy runner, and the loader that stands for a server: what agents return, and what is posted for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.compat.client import DevTaskLoader
from agentlightning.compat.runner import LegacyAgentRunner
from agentlightning.compat.task_protocol import RolloutLegacy, Task
from agentlightning.core.model.rollout import Triplet

RESOURCES: dict[str, Any] = {"prompt": agl.PromptTemplate(template="{q}", engine="f-string")}


@pytest.fixture
def tracer() -> Iterator[agl.OtelTracer]:
    made = agl.AgentOpsTracer(agentops_managed=False)
    made.init()
    made.init_worker(0)
    yield made
    made.teardown_worker(0)
    made.teardown()


class Agent(agl.LitAgent[Any]):
    def __init__(self, value: Any = None) -> None:
        super().__init__()
        self.value = value

    def training_rollout(self, task: Any, rollout_id: str, resources: Any) -> Any:  # type: ignore[override]
        return self.value(task, rollout_id, resources) if callable(self.value) else self.value


def run(agent: Any, tracer: Any, tasks: list[Any] | None = None, exporter: Any = None) -> RolloutLegacy:
    """What one task became."""
    tasks = tasks or [Task(rollout_id="rollout-1", input={"q": 1}, mode="train")]
    loader = DevTaskLoader(tasks, RESOURCES)
    assert LegacyAgentRunner(agent, loader, tracer, exporter, 0, 1).iter() == 1
    return loader.rollouts[0]


@pytest.mark.parametrize(("value", "reward"), [(0.5, 0.5), (1, 1.0), (True, 1.0), (None, None)])
def test_numbers_are_rewards_whole_ones_too(value: Any, reward: float | None, tracer: agl.OtelTracer) -> None:
    assert run(Agent(value), tracer).final_reward == reward


def test_the_agent_gets_what_the_first_generation_gave(tracer: agl.OtelTracer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "agentlightning")
    seen: list[Any] = []

    def body(*arguments: Any) -> float:
        seen.extend(arguments)
        return 0.631

    run(Agent(body), tracer)
    assert seen == [{"q": 1}, "rollout-1", RESOURCES]
    assert "[Task 1 Received] ID: rollout-1" in caplog.text
    assert "[Worker 0] Started sync rollouts (max: 1)." in caplog.text
    assert "[Worker 0 | Rollout rollout-1] Completed in 0.0" in caplog.text and "Reward: 0.631" in caplog.text


def test_emitters_work_inside_and_the_trace_is_posted(tracer: agl.OtelTracer) -> None:
    def body(*_: Any) -> None:
        agl.emit_message("hello")
        agl.emit_reward(0.25)

    result = run(Agent(body), tracer, exporter=_Exporter())
    assert result.final_reward == 0.25
    assert result.trace is not None and {"agentlightning.message", "rollout_rollout-1.session"} <= {
        span["name"] for span in result.trace
    }
    assert {span["rollout_id"] for span in result.trace} == {"rollout-1"}
    assert result.triplets is not None and result.triplets[0].prompt == len(result.trace)


class _Exporter:
    def export(self, spans: Any) -> list[Triplet]:
        return [Triplet(prompt=len(spans), response="", reward=None)]


def test_triplets_and_a_whole_rollout_may_be_returned(tracer: agl.OtelTracer) -> None:
    triplet = Triplet(prompt="p", response="r", reward=0.5)
    result = run(Agent([triplet]), tracer)
    assert (result.triplets, result.final_reward) == ([triplet], 0.5)
    whole = RolloutLegacy(rollout_id="other", final_reward=0.75, logs=["said"])
    result = run(Agent(whole), tracer)
    assert (result.rollout_id, result.final_reward, result.logs) == ("rollout-1", 0.75, ["said"])


def test_what_goes_wrong_is_posted_as_an_error_without_a_reward(tracer: agl.OtelTracer) -> None:
    def fails(*_: Any) -> float:
        raise KeyError("lost")

    def leaves(*_: Any) -> float:
        raise SystemExit(3)

    for body, words in ((fails, "KeyError: 'lost'"), (leaves, "SystemExit: 3"), ("a text", "Invalid raw result type")):
        result = run(Agent(body), tracer)
        assert result.final_reward is None and words in result.metadata["error"]


def test_a_training_method_serves_for_every_mode_and_todays_agents_run_too(tracer: agl.OtelTracer) -> None:
    assert run(Agent(0.5), tracer, ["plain input"]).final_reward == 0.5

    @agl.prompt_rollout
    def modern(task: Any, prompt_template: agl.PromptTemplate) -> float:
        return float(prompt_template.format(q=task["q"]))

    assert run(modern, tracer).final_reward == 1.0

    class Async(agl.LitAgent[Any]):
        async def training_rollout_async(self, task: Any, rollout_id: str, resources: Any) -> Any:  # type: ignore[override]
            return float(len(rollout_id))

    assert run(Async(), tracer).final_reward == 9.0


def test_the_loader_goes_round_and_refuses_what_is_no_list_of_tasks(tracer: agl.OtelTracer) -> None:
    loader = DevTaskLoader(["a", "b"], RESOURCES)
    assert LegacyAgentRunner(Agent(0.5), loader, tracer, None, 0, 3).iter() == 3
    assert [rollout.rollout_id for rollout in loader.rollouts] == ["local_task_001", "local_task_002", "local_task_003"]
    assert loader.rollouts[2].task is not None and loader.rollouts[2].task.input == "a"
    for tasks in ([], "abc", ["a", Task(rollout_id="r", input="b")]):
        with pytest.raises(ValueError):
            DevTaskLoader(tasks, RESOURCES)
    with pytest.raises(ValueError):
        loader.get_resources_by_id("other")


def test_a_text_among_the_loaders_resources_is_a_prompt_template_as_on_a_server() -> None:
    update = DevTaskLoader(["a"], {"prompt": "Be brief."}).get_latest_resources()
    assert update is not None
    assert update.resources["prompt"] == agl.PromptTemplate(template="Be brief.", engine="f-string")
    with pytest.raises(ValueError):
        DevTaskLoader(["a"], {"prompt": 3})


@pytest.mark.parametrize("endpoint", ["", "ftp://h", "http://", "http://h:99999", "http://h:x", "http://h:0", "http://[h"])
def test_an_endpoint_where_no_server_can_be_is_refused_at_once(endpoint: str) -> None:
    with pytest.raises(ValueError, match="is no address of a server"):
        agl.AgentLightningClient(endpoint)


def test_a_stop_ends_the_iteration(tracer: agl.OtelTracer) -> None:
    stop = threading.Event()

    def body(*_: Any) -> float:
        stop.set()
        return 1.0

    loader = DevTaskLoader(["a"], RESOURCES)
    assert LegacyAgentRunner(Agent(body), loader, tracer, None, 0, None, stop=stop).iter() == 1
