"""Agents written as functions and as classes: what they are given, and which signatures are refused."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import agentlightning as agl
from agentlightning.core.errors import InvalidInput
from agentlightning.core.model.resources import LLM, PromptTemplate, ProxyLLM, prompts_watched
from agentlightning.core.model.rollout import Attempt, AttemptedRollout, Rollout
from agentlightning.runners.agent.decorators import as_agent
from agentlightning.runners.agent.loading import load_agent

LLM_RESOURCE = LLM(endpoint="http://h/v1", model="m")
PROXY = ProxyLLM(endpoint="http://h/v1", model="p")
PROMPT = PromptTemplate(template="Hi {x}", engine="f-string")


def claimed() -> AttemptedRollout:
    attempt = Attempt(rollout_id="ro-1", attempt_id="at-1", sequence_id=1, start_time=0)
    return AttemptedRollout(rollout_id="ro-1", input="x", start_time=0, attempt=attempt)


def test_decorators_work_with_and_without_parentheses() -> None:
    for decorator, resource, name in (
        (agl.rollout, LLM_RESOURCE, "llm"),
        (agl.llm_rollout, LLM_RESOURCE, "llm"),
        (agl.rollout, PROMPT, "prompt_template"),
        (agl.prompt_rollout, PROMPT, "prompt_template"),
    ):
        body: dict[str, Any] = {}
        exec(f"def agent(task, {name}, rollout=None):\n    'Doc.'\n    return task, {name}, rollout", body)
        wrap: Any = decorator
        for made in (wrap(body["agent"]), wrap()(body["agent"])):
            assert made.rollout("t", {"any": resource}, claimed())[:2] == ("t", resource)
            assert made.rollout("t", {"any": resource}, claimed())[2] == claimed()
            assert made("t", 7) == ("t", 7, None)
            assert (made.__name__, made.__doc__, made.is_async()) == ("agent", "Doc.", False)


async def test_async_functions_are_awaited() -> None:
    @agl.rollout
    async def agent(task: str, llm: LLM, prompt_template: PromptTemplate, resources: Any) -> Any:
        return llm, prompt_template, sorted(resources)

    assert agent.is_async()
    given: Any = {"b": PROMPT, "a": LLM_RESOURCE}
    assert await agent.rollout_async("t", given, claimed()) == (LLM_RESOURCE, PROMPT, ["a", "b"])
    with pytest.raises(RuntimeError):
        agent.rollout("t", given, claimed())


def test_a_proxied_model_is_routed_to_the_attempt() -> None:
    def agent(task: str, llm: LLM) -> Any:
        return llm

    routed: Any = agl.llm_rollout(agent).rollout("t", {"m": PROXY}, claimed())
    assert type(routed) is LLM and routed.endpoint == "http://h/rollout/ro-1/attempt/at-1/v1"
    assert agl.llm_rollout(strip_proxy=False)(agent).rollout("t", {"m": PROXY}, claimed()) is PROXY
    with pytest.raises(ValueError, match="not an AttemptedRollout"):
        agl.llm_rollout(agent).rollout("t", {"m": PROXY}, Rollout(rollout_id="ro-1", input=0, start_time=0))


def test_missing_resources_and_wrong_signatures_are_named() -> None:
    def agent(task: str, prompt_template: PromptTemplate) -> None: ...

    with pytest.raises(ValueError, match="No prompt template resource found"):
        agl.prompt_rollout(agent).rollout("t", {"m": LLM_RESOURCE}, claimed())
    with pytest.raises(ValueError, match="llm"):
        agl.llm_rollout(agent)
    with pytest.raises(ValueError):
        agl.prompt_rollout(lambda prompt_template, task: None)
    with pytest.raises(NotImplementedError, match="Expected signatures"):
        agl.rollout(lambda: None)
    assert agl.rollout(lambda question: 0.5).rollout("t", {}, claimed()) == 0.5  # what an undecorated function may be
    assert agl.rollout(lambda task, judge=None: 0.5).needs_resources is False
    assert agl.rollout(lambda task, rollout: 0.5).needs_resources is False
    for needing in (lambda task, judge: 0.5, lambda task, resources: 0.5, lambda task, llm=None: 0.5):
        assert agl.rollout(needing).needs_resources


def test_plain_functions_become_agents_and_other_things_do_not() -> None:
    assert as_agent(lambda task: 0.5).rollout("t", {}, claimed()) == 0.5
    with pytest.raises(TypeError):
        as_agent(7)
    with pytest.raises(ValueError):
        as_agent(lambda: 0.5)


def test_class_agents_delegate_and_hold_their_runner_weakly() -> None:
    class Agent(agl.LitAgent[str]):
        def rollout(self, task: str, resources: Any, rollout: Any) -> float:
            return float(task)

    agent = Agent()
    assert agent.training_rollout("1", {}, claimed()) == agent.validation_rollout("1", {}, claimed()) == 1.0
    assert not agent.is_async()
    with pytest.raises(ValueError, match="Runner has not been set for this agent."):
        agent.get_runner()
    runner = agl.LitAgentRunner[str](tracer=agl.DummyTracer())
    agent.set_runner(runner)
    assert agent.runner is runner and agent.tracer is runner.tracer
    del runner
    gc.collect()
    with pytest.raises(ValueError):
        agent.get_runner()
    with pytest.raises(ValueError, match="Trainer has not been set for this agent."):
        agent.get_trainer()


def test_agents_are_found_by_file_and_by_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loadable_agent.py").write_text(
        "import agentlightning as agl\ndef plain(task): return 1.0\nclass Mine(agl.LitAgent): pass\nthing = 7\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    assert load_agent(str(tmp_path / "loadable_agent.py") + ":plain").rollout("t", {}, claimed()) == 1.0
    assert type(load_agent("loadable_agent:Mine")).__name__ == "Mine"
    for wrong in ("loadable_agent", "loadable_agent:none", "loadable_agent:thing", "no_such_module:x", "no.py:x"):
        with pytest.raises(ValueError):
            load_agent(wrong)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such_module_xyz", "ModuleNotFoundError: No module named 'no_such_module_xyz' \\(.*broken.py, line 1"),
        ("x = 1\n\ndef f(:\n  pass", "SyntaxError: .*broken.py, line 3"),
        ("def f():\n    raise KeyError('k')\nf()", "KeyError: 'k' \\(.*broken.py, line 2"),
    ],
)
@pytest.mark.parametrize("form", ["{folder}/broken.py:agent", "broken:agent"])
def test_a_module_that_fails_while_it_loads_is_one_sentence_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, said: str, form: str
) -> None:
    (tmp_path / "broken.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(InvalidInput, match=f"broken.* cannot be loaded: {said}"):
        load_agent(form.format(folder=tmp_path))
    assert "broken" not in sys.modules


async def test_an_agent_of_the_first_generation_runs_on_a_store_of_today(store: Any, tracer: Any) -> None:
    class First(agl.LitAgent[Any]):
        def training_rollout(self, task: Any, rollout_id: str, resources: Any) -> float:
            return float(rollout_id.startswith("ro-") and resources["p"].template == "x")

    runner = agl.LitAgentRunner[Any](tracer=tracer)
    resources: Any = {"p": agl.PromptTemplate(template="x", engine="f-string")}
    with runner.run_context(agent=First(), store=store):
        # Without a validation method of its own the training method serves for every mode.
        for mode in ("train", "val", None):
            rollout = await runner.step("t", resources=resources, mode=mode)
            assert agl.find_final_reward(list(await store.query_spans(rollout.rollout_id))) == 1.0


def test_resources_are_given_by_name_and_the_first_of_a_kind_only_where_none_has_the_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @agl.rollout
    def agent(task: str, planner: PromptTemplate, judge: LLM, llm: Any, style: str = "brief", **rest: Any) -> Any:
        return planner, judge, llm, style, rest

    other = PromptTemplate(template="Plan {x}", engine="f-string")
    judge = LLM(endpoint="http://j/v1", model="j")
    given: Any = {"solver": PROMPT, "planner": other, "main": PROXY, "judge": judge}
    result: Any = agent.rollout("t", given, claimed())
    planner, judged, llm, style, rest = result
    assert (planner, judged, style, rest) == (other, judge, "brief", {})
    assert "rollout/ro-1" in llm.endpoint and "Several LLM resources found; using 'main'" in caplog.text
    caplog.clear()
    result = agent.rollout("t", {**given, "llm": judge}, claimed())
    assert result[2] == judge
    assert caplog.text == ""
    with pytest.raises(ValueError, match="parameter 'planner' is no resource; the resources are: judge, main"):
        agent.rollout("t", {"judge": judge, "main": PROXY}, claimed())


def test_a_proxied_model_given_by_name_is_routed_too() -> None:
    @agl.rollout
    def agent(task: str, judge: LLM) -> Any:
        return judge

    routed = agent.rollout("t", {"judge": PROXY}, claimed())
    assert not isinstance(routed, ProxyLLM) and "attempt/at-1" in routed.endpoint  # type: ignore[union-attr]
    plain = agl.llm_rollout(strip_proxy=False)(lambda task, llm: llm)
    assert plain.rollout("t", {"x": PROXY}, claimed()) is PROXY


@pytest.mark.parametrize(
    "template, lost",
    [("{a} {b}", []), ("{a.x} {b[0]:>{c}}", []), ("{a}", ["b"]), ("{{a}} {b}", ["a"]), ("none", ["a", "b"])],
)
def test_the_placeholders_of_a_template_are_those_that_format_fills(template: str, lost: list[str]) -> None:
    class Value(NamedTuple):
        x: int

    values: dict[str, Any] = {"a": Value(1), "b": [1], **({"c": 3} if "{c}" in template else {})}
    with prompts_watched(strict=False) as seen:
        PromptTemplate(template=template, engine="f-string").format(**values)
    assert sorted(seen) == lost
    with prompts_watched(strict=False) as seen, pytest.raises(KeyError, match="missing"):
        PromptTemplate(template="{missing}", engine="f-string").format(a=1)


def test_jinja_templates_are_filled_and_name_what_is_missing() -> None:
    pytest.importorskip("jinja2")
    prompt = PromptTemplate(template="{% for x in xs %}{{ x }},{% endfor %}{{ y }}", engine="jinja")
    assert prompt.format(xs=[1, 2], y="z") == "1,2,z"
    with pytest.raises(KeyError, match="'y'"):
        prompt.format(xs=[])
