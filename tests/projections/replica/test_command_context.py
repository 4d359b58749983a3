"""A command is found again by its id, whatever characters the caller chose for it."""

from __future__ import annotations

import pytest

from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.projections.history.rollout_history import find_rollout
from agentlightning.projections.replica.command_context import Call, serve
from agentlightning.projections.store.store import EventLogStore


@pytest.mark.parametrize("command_id", ["plain", '"quoted" \\ ü'])
async def test_the_event_of_a_command_is_found_in_the_log(command_id: str) -> None:
    with EventLogStore(MemoryLog()) as store:
        serve(Call(command_id, None, False, repeatable=True))
        rollout = await store.enqueue_rollout("x")
        assert store.engine.recorded(command_id) is not None
        assert find_rollout(store.engine.log, rollout.rollout_id[:6]) == rollout.rollout_id
