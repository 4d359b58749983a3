"""Agents on LangGraph, LangChain and the OpenAI Agents SDK: their model calls, tools and errors are in the trace."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.core.model.span import Span
from agentlightning.projections.store.memory_store import InMemoryLightningStore

from ...openai_stub import ANSWER, TOKENS, Stub, openai_stub

pytest.importorskip("langgraph")
pytest.importorskip("langchain_openai")
pytest.importorskip("agents")


@pytest.fixture
def stub() -> Iterator[Stub]:
    """A stub for each test: LangChain keeps the clients of an address, and with them the event loop of another test."""
    with openai_stub() as server:
        yield server


async def run(
    store: InMemoryLightningStore, stub: Stub, agent: Any, count: int = 1, model: str = "m"
) -> list[list[Span]]:
    """The spans of each of so many rollouts, run side by side."""
    await store.add_resources({"llm": agl.LLM(endpoint=stub.base_url, model=model, api_key="none")})
    rollouts = [await store.enqueue_rollout(f"Question {number}") for number in range(count)]
    runner = agl.LitAgentRunner[str](tracer=agl.AgentOpsTracer(agentops_managed=False), max_rollouts=count, slots=count)
    with runner.run_context(agent=agent, store=store):
        await runner.iter()
    return [list(await store.query_spans(rollout.rollout_id)) for rollout in rollouts]


def calls_of(spans: list[Span]) -> list[Span]:
    return [span for span in spans if span.name in ("openai.chat.completion", "openai.responses.create")]


def tool_names(spans: list[Span]) -> list[str]:
    return [span.name for span in spans if span.name.startswith("tool_call.")]


async def test_a_tool_using_graph_is_traced_and_graphs_side_by_side_stay_apart(
    store: InMemoryLightningStore, stub: Stub
) -> None:
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode, tools_condition

    @tool
    def get_weather(city: str) -> str:
        """Weather of a city."""
        agl.emit_message(f"looking at {city}")
        return f"It rains in {city}"

    @agl.rollout
    def agent(task: str, llm: agl.LLM) -> float:
        model = ChatOpenAI(model=llm.model, base_url=llm.endpoint, api_key="none").bind_tools([get_weather])  # type: ignore[arg-type]

        def think(state: Any) -> Any:
            return {"messages": [model.invoke(state["messages"])]}

        graph = StateGraph(MessagesState)
        graph.add_node("think", think)
        graph.add_node("tools", ToolNode([get_weather]))
        graph.add_edge(START, "think")
        graph.add_conditional_edges("think", tools_condition)
        graph.add_edge("tools", "think")
        start: Any = {"messages": [("user", task)]}
        final = graph.compile().invoke(start)
        return float(final["messages"][-1].content == ANSWER)

    for number, spans in enumerate(await run(store, stub, agent, count=3, model="m-tokens")):
        first, second = calls_of(spans)
        assert first.attributes["gen_ai.prompt.0.content"] == f"Question {number}"
        assert second.attributes["gen_ai.prompt.2.content"] == "It rains in Paris"
        assert second.attributes["gen_ai.completion.0.content"] == ANSWER
        assert second.attributes["response_token_ids"] == TOKENS
        assert tool_names(spans) == ["tool_call.get_weather"]
        messages = [agl.get_message_value(span) for span in spans if span.name == "agentlightning.message"]
        assert messages == ["looking at Paris"]
        assert agl.find_final_reward(spans) == 1.0


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_the_handler_puts_model_calls_below_the_nodes_of_a_graph(
    store: InMemoryLightningStore, stub: Stub, asynchronous: bool
) -> None:
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    from langgraph.graph import START, MessagesState, StateGraph

    @tool
    def look_up(city: str) -> str:
        """Look a city up."""
        raise ValueError(f"no {city}")

    def graph_for(llm: agl.LLM) -> Any:
        model = ChatOpenAI(model=llm.model, base_url=llm.endpoint, api_key="none")  # type: ignore[arg-type]

        def think(state: Any) -> Any:
            return {"messages": [model.invoke(state["messages"])]}

        async def think_async(state: Any) -> Any:
            return {"messages": [await model.ainvoke(state["messages"])]}

        graph = StateGraph(MessagesState)
        graph.add_node("think", think_async if asynchronous else think)
        graph.add_edge(START, "think")
        return graph.compile()

    def config() -> Any:
        tracer = agl.get_active_tracer()
        assert tracer is not None
        return {"callbacks": [tracer.get_langchain_handler(["mine"])]}

    def function(task: str, llm: agl.LLM) -> float:
        graph_for(llm).invoke({"messages": [("user", task)]}, config())
        with pytest.raises(ValueError, match="no Paris"):
            look_up.invoke({"city": "Paris"}, config())
        return 1.0

    async def coroutine(task: str, llm: agl.LLM) -> float:
        await graph_for(llm).ainvoke({"messages": [("user", task)]}, config())
        with pytest.raises(ValueError, match="no Paris"):
            await look_up.ainvoke({"city": "Paris"}, config())
        return 1.0

    for spans in await run(store, stub, coroutine if asynchronous else function, count=2):
        by_id = {span.span_id: span for span in spans}
        (call,) = calls_of(spans)
        path: list[str] = []
        at: Span | None = call
        while at is not None:
            path.append(at.name)
            at = by_id.get(at.parent_id or "")
        assert path[:3] == ["openai.chat.completion", "langchain.Chain.think", "langchain.Chain.LangGraph"]
        assert path[-1].endswith(".session")
        (failed,) = [span for span in spans if span.name == "langchain.Tool.look_up"]
        assert failed.status.status_code == "ERROR" and failed.attributes["langchain.tags"] == ["mine"]


@pytest.mark.parametrize("options", [{}, {"include_response_headers": True}, {"use_responses_api": True}], ids=str)
@pytest.mark.parametrize("asynchronous", [True, False])
async def test_langchain_streams_are_recorded_whole(
    store: InMemoryLightningStore, stub: Stub, asynchronous: bool, options: dict[str, Any]
) -> None:
    from langchain_openai import ChatOpenAI

    def model(llm: agl.LLM) -> Any:
        return ChatOpenAI(model=llm.model, base_url=llm.endpoint, api_key="none", stream_usage=True, **options)  # type: ignore[arg-type]

    async def coroutine(task: str, llm: agl.LLM) -> float:
        return float(len([piece async for piece in model(llm).astream(task)]))

    def function(task: str, llm: agl.LLM) -> float:
        return float(len(list(model(llm).stream(task))))

    (spans,) = await run(store, stub, coroutine if asynchronous else function, model="m-tokens")
    (call,) = calls_of(spans)
    assert call.attributes["gen_ai.prompt.0.content"] == "Question 0"
    assert call.attributes["gen_ai.completion.0.content"] == ANSWER
    assert call.attributes["gen_ai.usage.total_tokens"] == 18
    assert call.attributes["response_token_ids"] == TOKENS
    assert call.attributes["gen_ai.request.streaming"] is True


async def test_an_error_of_the_model_is_on_its_span_and_ends_the_attempt(
    store: InMemoryLightningStore, stub: Stub
) -> None:
    from langchain_openai import ChatOpenAI

    def agent(task: str, llm: agl.LLM) -> None:
        ChatOpenAI(model=llm.model, base_url=llm.endpoint, api_key="none", max_retries=0).invoke(task)  # type: ignore[arg-type]

    (spans,) = await run(store, stub, agent, model="broken")
    (call,) = calls_of(spans)
    assert call.status.status_code == "ERROR" and "The model is broken" in str(call.status.description)
    assert [rollout.status for rollout in await store.query_rollouts()] == ["failed"]


@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_the_openai_agents_sdk_is_traced(store: InMemoryLightningStore, stub: Stub, api: str) -> None:
    import agents
    from openai import AsyncOpenAI

    agents.set_tracing_disabled(True)

    @agents.function_tool
    def get_weather(city: str) -> str:
        """Weather of a city."""
        return f"It rains in {city}"

    async def agent(task: str, llm: agl.LLM) -> float:
        client = AsyncOpenAI(base_url=llm.endpoint, api_key="none")
        kinds: Any = {"chat": agents.OpenAIChatCompletionsModel, "responses": agents.OpenAIResponsesModel}
        made = agents.Agent(
            name="weather",
            instructions="Be brief.",
            model=kinds[api](model=llm.model, openai_client=client),
            tools=[get_weather] if api == "chat" else [],
        )
        return float((await agents.Runner.run(made, task)).final_output == ANSWER)

    (spans,) = await run(store, stub, agent)
    assert agl.find_final_reward(spans) == 1.0
    if api == "chat":
        first, second = calls_of(spans)
        assert first.attributes["gen_ai.prompt.0.content"] == "Be brief."
        assert tool_names(spans) == ["tool_call.get_weather"]
        assert json.loads(str(first.attributes["gen_ai.completion.0.tool_calls.0.arguments"])) == {"city": "Paris"}
        assert second.attributes["gen_ai.completion.0.content"] == ANSWER
    else:
        assert [span.name for span in spans if span.name.startswith("openai.")] == ["openai.responses.create"]


@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_streams_of_the_openai_agents_sdk_are_traced(
    store: InMemoryLightningStore, stub: Stub, api: str
) -> None:
    import agents
    from openai import AsyncOpenAI

    agents.set_tracing_disabled(True)

    async def agent(task: str, llm: agl.LLM) -> float:
        client = AsyncOpenAI(base_url=llm.endpoint, api_key="none")
        kinds: Any = {"chat": agents.OpenAIChatCompletionsModel, "responses": agents.OpenAIResponsesModel}
        made = agents.Agent(name="a", model=kinds[api](model=llm.model, openai_client=client))
        streamed = agents.Runner.run_streamed(made, task)
        async for _ in streamed.stream_events():
            await asyncio.sleep(0)
        return float(streamed.final_output == ANSWER)

    (spans,) = await run(store, stub, agent, model="m-tokens")
    (call,) = calls_of(spans)
    assert agl.find_final_reward(spans) == 1.0
    assert call.attributes["gen_ai.completion.0.content"] == ANSWER and call.attributes["response_token_ids"] == TOKENS
