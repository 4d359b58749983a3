"""Resources: prompts that format, endpoints that route, and what a store accepts."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import sys
import tracemalloc
from decimal import Decimal
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel, ValidationError

import agentlightning as agl
from agentlightning.core.errors import InvalidInput, OptionalDependencyError, PayloadTooLarge
from agentlightning.core.model import prompt_format
from agentlightning.core.model.resources import LLM, PromptTemplate, ProxyLLM, ResourcesUpdate, validate_resources
from agentlightning.core.model.rollout import Attempt, AttemptedRollout


def proxy(endpoint: str = "http://h:1/v1") -> ProxyLLM:
    return ProxyLLM(endpoint=endpoint, model="m", api_key="k", sampling_parameters={"temperature": 0.5})


def test_a_bare_string_becomes_an_f_string_prompt() -> None:
    assert validate_resources({"p": "Hello {name}"}) == {
        "p": PromptTemplate(template="Hello {name}", engine="f-string")
    }


def test_resources_come_back_from_json_in_their_own_class() -> None:
    resources = validate_resources(
        {
            "a": LLM(endpoint="e", model="m"),
            "b": proxy(),
            "c": {"resource_type": "prompt_template", "template": "t", "engine": "poml"},
        }
    )
    update = ResourcesUpdate(resources_id="rs", create_time=1.0, update_time=2.0, version=1, resources=resources)
    again = ResourcesUpdate.model_validate_json(update.model_dump_json())
    assert again == update
    assert [type(value) for value in again.resources.values()] == [LLM, ProxyLLM, PromptTemplate]


def test_validated_resources_share_nothing_with_the_callers() -> None:
    llm = LLM(endpoint="e", model="m", sampling_parameters={"stop": ["a"]})
    stored = validate_resources({"llm": llm})
    llm.sampling_parameters["stop"].append("b")
    llm.model = "other"
    assert stored["llm"] == LLM(endpoint="e", model="m", sampling_parameters={"stop": ["a"]})


@pytest.mark.parametrize(
    "resources",
    [
        {"a": 3},
        {"a": None},
        {"a": {"template": "t", "engine": "f-string"}},
        {"a": {"resource_type": "tool"}},
        {"a": {"resource_type": "prompt_template", "template": "t"}},
        {"a": {"resource_type": "prompt_template", "template": "t", "engine": "mustache"}},
        {1: "text"},
        ["text"],
        "text",
        None,
    ],
)
def test_anything_else_is_refused_with_a_value_error(resources: Any) -> None:
    with pytest.raises(ValueError) as caught:
        validate_resources(resources)
    assert isinstance(caught.value, ValidationError)


def test_all_fields_of_an_update_are_required() -> None:
    with pytest.raises(ValidationError) as caught:
        ResourcesUpdate.model_validate({"resources_id": "rs", "resources": {}})
    assert {error["loc"][0] for error in caught.value.errors()} == {"create_time", "update_time", "version"}


class TestPromptTemplate:
    def test_f_strings_are_filled_with_format_specs_too(self) -> None:
        template = PromptTemplate(template="{name}: {score:.2f} {{kept}}", engine="f-string")
        assert template.format(name="x", score=0.5, unused=1) == "x: 0.50 {kept}"

    def test_a_missing_placeholder_is_named(self) -> None:
        with pytest.raises(KeyError, match="asks for 'any_question', and the values that are given are: question"):
            PromptTemplate(template="{any_question}", engine="f-string").format(question="?")
        with pytest.raises(KeyError, match=r"are written \{\{ and \}\}"):
            PromptTemplate(template='Answer with {"room": 1} {task}', engine="f-string").format(task="?")

    @pytest.mark.parametrize(("template", "error"), [("{", ValueError), ("}", ValueError), ("{}", IndexError)])
    def test_unbalanced_braces_pass_through_as_formats_own_errors(self, template: str, error: type[Exception]) -> None:
        with pytest.raises(error, match=r"are written \{\{ and \}\}"):
            PromptTemplate(template=template, engine="f-string").format(a=1)

    @pytest.mark.parametrize(("engine", "library"), [("jinja", "jinja2"), ("poml", "poml")])
    def test_a_missing_engine_says_what_to_install(
        self, engine: Any, library: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, library, None)
        monkeypatch.setattr(prompt_format, "_poml_allowed", True)
        with pytest.raises(OptionalDependencyError, match=f"pip install {library}") as caught:
            PromptTemplate(template="t", engine=engine).format()
        assert isinstance(caught.value, ImportError)

    def test_jinja_is_filled_in_its_sandbox(self) -> None:
        pytest.importorskip("jinja2")
        template = PromptTemplate(template="{% for x in xs %}{{ x }};{% endfor %}", engine="jinja")
        assert template.format(xs=[1, 2]) == "1;2;"
        with pytest.raises(KeyError, match="xs"):
            template.format()
        with pytest.raises(Exception, match="unsafe"):
            PromptTemplate(template="{{ x.__class__.__mro__ }}", engine="jinja").format(x=1)

    def test_poml_messages_are_joined(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = ModuleType("poml")
        seen: list[Any] = []

        def render(markup: str, context: dict[str, Any]) -> list[dict[str, Any]]:
            seen.append((markup, context))
            return [{"speaker": "system", "content": "one"}, {"speaker": "human", "content": "two"}]

        fake.__dict__["poml"] = render
        monkeypatch.setitem(sys.modules, "poml", fake)
        monkeypatch.setattr(prompt_format, "_poml_allowed", True)
        assert PromptTemplate(template="<poml/>", engine="poml").format(a=1) == "one\n\ntwo"
        assert seen == [("<poml/>", {"a": 1})]


class Inner(BaseModel):
    text: str = "inner"
    _private: str = "hidden"

    @property
    def computed(self) -> str:
        return "computed"


@dataclasses.dataclass
class Data:
    name: str = "data"


class Point(NamedTuple):
    x: int = 1


VALUES: dict[str, Any] = {
    "n": 3, "x": 0.5, "s": "text", "none": None, "task": {"q": "why", "0": "zero", 1: "one", "deep": [{"a": "b"}]},
    "items": ["first", "second"], "model": Inner(), "data": Data(), "point": Point(), "when": datetime.date(2026, 1, 31),
    "llm": LLM(
        endpoint="http://u:pw@h/v1", model="m", api_key="sk-secret", sampling_parameters={"extra_headers": {"X": "sk-2"}}
    ),
    "self": "me", "function": dataclasses.dataclass, "decimal": Decimal("1.25"),
}  # fmt: skip


class TestWhatAPromptMayRead:
    @pytest.mark.parametrize(
        ("template", "filled"),
        [
            ("{n:>5}|{x:.2f}|{s!r}|{none}|{decimal:.1f}", "    3|0.50|'text'|None|1.2"),
            ("{task[q]} {task[1]} {task[deep][0][a]} {items[1]}", "why one b second"),
            ("{model.text} {data.name} {point.x} {point[0]} {when:%Y} {when.year}", "inner data 1 1 2026 2026"),
            ("{llm.model} {self} {s:{n}}", "m me text"),
            ("{{ {s} }}", "{ text }"),
        ],
    )
    def test_values_items_and_declared_fields(self, template: str, filled: str) -> None:
        assert PromptTemplate(template=template, engine="f-string").format(**VALUES) == filled

    @pytest.mark.parametrize(
        "template",
        [
            "{llm.api_key}", "{llm.sampling_parameters}", "{llm.__class__}", "{llm.get_base_url.__globals__}",
            "{function.__globals__[sys]}", "{s.__class__.__mro__}", "{s.upper}", "{model.computed}", "{model._private}",
            "{model.model_dump}", "{n.real}", "{task.q}", "{llm[api_key]}", "{function[x]}", "{data.__dict__}",
        ],
    )  # fmt: skip
    def test_nothing_else_of_an_object(self, template: str) -> None:
        with pytest.raises(InvalidInput, match="prompt") as refused:
            PromptTemplate(template=template, engine="f-string").format(**VALUES)
        assert "sk-" not in str(refused.value)

    @pytest.mark.parametrize(
        "template",
        ["{s:>1000000000}", "{x:.1000000000f}", "{n:01000000000}", "{when:%1000000000d}", "{s:{big}}", "{n:>10001}"],
    )
    def test_widths_are_bounded(self, template: str) -> None:
        with pytest.raises(InvalidInput, match="asks for more than 10,000 characters"):
            PromptTemplate(template=template, engine="f-string").format(**VALUES, big=1_000_000_000)

    def test_the_result_is_bounded(self) -> None:
        for engine, template in (("f-string", "{s}" * 100), ("jinja", "{{ s }}" * 100), ("jinja", "{{ s * 100 }}")):
            with pytest.raises(PayloadTooLarge, match="longer than 64,000,000"):
                PromptTemplate(template=template, engine=engine).format(s="x" * 1_000_000)  # type: ignore[arg-type]

    def test_a_product_that_is_none_takes_no_memory(self) -> None:
        pytest.importorskip("jinja2")
        prompt = PromptTemplate(template="{{ s * s }}", engine="jinja")
        tracemalloc.start()
        try:
            with pytest.raises(TypeError):
                prompt.format(s="x" * 4_000)
            assert tracemalloc.get_traced_memory()[1] < 8_000_000
        finally:
            tracemalloc.stop()

    def test_no_prompt_shows_a_key(self) -> None:
        for template in ("{llm}", "{llm!r}", "{all}", "{{ llm }}", "{{ all }}", "{{ llm.api_key }}"):
            engine: Any = "jinja" if "{{" in template else "f-string"
            try:
                shown = PromptTemplate(template=template, engine=engine).format(
                    llm=VALUES["llm"], all={"llm": VALUES["llm"]}
                )
            except Exception as error:
                shown = str(error)
            assert "sk-" not in shown and "pw" not in shown, (template, shown)

    def test_poml_is_refused_unless_the_process_allows_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = ModuleType("poml")
        fake.__dict__["poml"] = lambda markup, context: [{"content": "ran"}]
        monkeypatch.setitem(sys.modules, "poml", fake)
        monkeypatch.setattr(prompt_format, "_poml_allowed", False)
        prompt = PromptTemplate(template="<poml/>", engine="poml")
        with pytest.raises(InvalidInput, match=r"run commands .* call agentlightning.allow_poml\(\)"):
            prompt.format()
        agl.allow_poml()
        assert prompt.format() == "ran"


class TestEndpoints:
    def test_a_plain_model_ignores_the_ids(self) -> None:
        llm = LLM(endpoint="http://h/v1", model="m")
        assert (
            llm.get_base_url()
            == llm.get_base_url("r", "a")
            == llm.get_base_url(rollout_id="r", attempt_id="a")
            == "http://h/v1"
        )

    @pytest.mark.parametrize(
        ("endpoint", "routed"),
        [
            ("http://h:1/v1/", "http://h:1/rollout/r/attempt/a/v1"),
            ("http://h:1/v1", "http://h:1/rollout/r/attempt/a/v1"),
            ("http://h:1", "http://h:1/rollout/r/attempt/a"),
            ("http://h:1/", "http://h:1/rollout/r/attempt/a"),
            ("http://h:1/v12", "http://h:1/v12/rollout/r/attempt/a"),
        ],
    )
    def test_a_proxied_model_routes_to_the_attempt(self, endpoint: str, routed: str) -> None:
        assert proxy(endpoint).get_base_url("r", "a") == routed
        assert proxy(endpoint).get_base_url(rollout_id="r", attempt_id="a") == routed
        assert proxy(endpoint).get_base_url(None, None) == endpoint

    @pytest.mark.parametrize("ids", [("r", None), (None, "a"), (1, 2)])
    def test_half_an_address_is_refused(self, ids: tuple[Any, Any]) -> None:
        with pytest.raises(ValueError, match="rollout_id and attempt_id must be strings or all be empty"):
            proxy().get_base_url(*ids)

    def test_binding_an_attempt_gives_a_plain_model(self) -> None:
        attempt = Attempt(rollout_id="r", attempt_id="a", sequence_id=1, start_time=1.0)
        rollout = AttemptedRollout(rollout_id="r", input=None, start_time=1.0, attempt=attempt)
        bound = proxy().with_attempted_rollout(rollout)
        assert type(bound) is LLM
        assert bound == LLM(
            endpoint="http://h:1/rollout/r/attempt/a/v1",
            model="m",
            api_key="k",
            sampling_parameters={"temperature": 0.5},
        )

    def test_only_a_direct_read_of_a_proxied_endpoint_warns(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.WARNING)
        llm = proxy()
        llm.get_base_url("r", "a")
        repr(llm)
        assert llm == ProxyLLM.model_validate_json(llm.model_dump_json()) == llm.model_copy(deep=True)
        assert validate_resources({"p": llm})
        assert caplog.text == ""
        assert llm.endpoint == "http://h:1/v1"
        assert "get_base_url(rollout_id, attempt_id)" in caplog.text
