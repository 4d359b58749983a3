"""A failed attempt is told in one line, whatever its exception is like; the traceback is where the line says."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import agentlightning as agl
from agentlightning.projections.store.memory_store import InMemoryLightningStore

from ..support import PROMPT, run_two, told


class Mute(Exception):
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise ValueError("no words")


class MuteToo(BaseException):
    """The same, and no Exception."""

    __str__ = Mute.__str__


def raiser(error: BaseException) -> Any:
    """An agent that raises it for the task "bad"."""

    def agent(task: str) -> float:
        if task == "bad":
            raise error
        return 1.0

    return agent


def awaited(agent: Any) -> Any:
    """The agent as a coroutine function."""

    async def coroutine(task: str) -> float:
        return agent(task)

    return coroutine


async def test_a_failing_attempt_is_one_line_that_says_where_its_traceback_is(
    store: InMemoryLightningStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "agentlightning")
    await store.add_resources(PROMPT)
    rollouts = [await store.enqueue_rollout("bad") for _ in range(3)]
    runner = agl.LitAgentRunner[str](tracer=agl.OtelTracer(), max_rollouts=3)
    with runner.run_context(agent=raiser(ValueError("no luck.\nand more")), store=store):
        await runner.iter()
    lines = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.exc_info for record in lines] == [None] * 3
    for rollout, record in zip(rollouts, lines, strict=True):
        text = record.getMessage()
        prefix = f"[Worker 0 | Rollout {rollout.rollout_id}] Exception during rollout. "
        assert text.startswith(f"{prefix}ValueError: no luck. ... (")
        assert "test_failures.py, line " in text and f"`agl show {rollout.rollout_id}`" in text and "\n" not in text
    assert sum(record.exc_info is not None for record in caplog.records) == 3


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("\ud800 \x1b[31m \x00 é"), r"ValueError: \ud800 \x1b[31m \x00 é ("),
        (ValueError("x" * 10_000), "xxx ... ("),
        (ValueError(), "ValueError ("),
        (SystemExit("enough"), "RuntimeError: SystemExit: enough (test_failures.py, line "),
        (Mute(), "Mute: <message that cannot be written: ValueError> ("),
    ],
)
async def test_the_line_can_be_printed_whatever_the_error_says(
    store: InMemoryLightningStore, caplog: pytest.LogCaptureFixture, error: BaseException, said: str
) -> None:
    await run_two(store, raiser(error))
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert said in line and line.isprintable() and len(line) < 500


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("error", [Mute(), MuteToo()])
async def test_an_exception_that_cannot_say_what_it_is_costs_its_attempt_and_not_the_runner(
    store: InMemoryLightningStore, error: BaseException, asynchronous: bool
) -> None:
    agent = raiser(error)
    attempt, spans, _ = await run_two(store, awaited(agent) if asynchronous else agent)
    assert attempt.status == "failed" and "message that cannot be written" in attempt.metadata["error"]
    assert type(error).__name__ in told(spans)["stacktrace"]


async def test_an_operation_passes_such_an_exception_on(store: InMemoryLightningStore) -> None:
    def agent(task: str) -> float:
        for propagate in (True, False):
            with pytest.raises(Mute), agl.operation(propagate=propagate):
                raise Mute
        return 1.0

    _, spans, _ = await run_two(store, agent)
    (operation,) = [span for span in spans if span.name == "agentlightning.operation"]
    assert operation.status.status_code == "ERROR" and [event.name for event in operation.events] == ["exception"]


async def test_what_cannot_be_stored_is_logged_whole(
    store: InMemoryLightningStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no room")

    await store.add_resources(PROMPT)
    runner = agl.LitAgentRunner[str](tracer=agl.OtelTracer())
    with runner.run_context(agent=raiser(ValueError("no luck")), store=store):
        monkeypatch.setattr(store, "add_many_spans", refused)
        with pytest.raises(RuntimeError, match="no room"):
            await runner.step("bad")
    assert "no luck" in caplog.text and "in agent" in caplog.text
