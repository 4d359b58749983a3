"""What the commands print is there for a notebook too: plain functions on an open log, without click."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.projections.history.log_check import check_log
from agentlightning.projections.history.rollout_history import rollout_report
from agentlightning.projections.history.run_table import runs_in
from agentlightning.projections.history.timelines import last_activities, run_timeline
from agentlightning.projections.history.topic_reader import Filters, TopicReader
from agentlightning.projections.store.store import EventLogStore
from tests.cli.support import fill


@pytest.fixture(scope="module")
def made() -> Any:
    """A log in memory with a run and what `fill` does."""
    log = MemoryLog()
    store = EventLogStore(log)

    async def work() -> dict[str, Any]:
        run = await store.record_run_event("run.opened", None, {"name": "capitals"})
        return {**await fill(store), "run_id": run["run_id"], "log": log}

    yield asyncio.run(work())
    store.close()


def test_activities_are_facts_and_run_events_that_match(made: dict[str, Any]) -> None:
    views, reader = last_activities(made["log"], Filters(), 99)
    assert [view.type for view in views] == [
        "run.opened", "rollout.enqueued", "attempt.claimed", "attempt.failed", "attempt.claimed", "rollout.completed",
        "rollout.enqueued",
    ]  # fmt: skip
    assert views[-2].body.reward == 0.75 and list(reader.read(Filters())) == []
    only = last_activities(made["log"], Filters(rollout=made["waiting_id"][:8]), 99)[0]
    assert [view.rollout_ids for view in only] == [[made["waiting_id"]]]


def test_the_timeline_of_a_run_has_its_events_and_its_rollouts_only(made: dict[str, Any]) -> None:
    steps = list(run_timeline(made["log"], made["run_id"], {made["waiting_id"]}))
    assert [step.type for step in steps] == ["run.opened", "rollouts.enqueued"]
    assert steps[1].rollouts == [made["waiting_id"]] and steps[1].detail["verdict"] == "accepted"


def test_runs_rollouts_topics_and_the_check_of_a_log(made: dict[str, Any]) -> None:
    log = made["log"]
    (run,) = runs_in(log)
    assert (run.run.name, run.state, run.statuses) == ("capitals", "open", {})
    report = rollout_report(log, made["rollout_id"])
    assert [one["reward"] for one in report["attempts"]] == [0.5, 0.75]
    assert [len(one["late"]) + len(one["refused"]) for one in report["attempts"]] == [1, 0]
    spans = [view for _, view in TopicReader(log, "spans").records(Filters(type="span"))]
    assert {attempt for view in spans for attempt in view.attempt_ids} == set(made["attempts"])
    check = check_log(log)
    assert check.sound and check.findings == [] and check.records["spans"] >= 4
    assert (check.position, check.fingerprint) == (made["position"], made["fingerprint"])
