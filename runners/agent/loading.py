"""Finds an agent by ``module:name`` and runs it on a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from ...core.errors import InvalidInput
from ...core.importing import find
from ...core.model.hooks import Hook
from ...core.model.store_interface import LightningStore
from ..stop_events import StopSignal
from ..tracing.agentops import AgentOpsTracer
from ..tracing.base import Tracer
from ..worker.runner import LitAgentRunner
from .decorators import as_agent
from .litagent import LitAgent

__all__ = ["load_agent", "run_agent"]


def load_agent(spec: str) -> LitAgent[Any]:
    """The agent that ``spec`` names: ``package.module:agent`` or ``path/to/file.py:agent``.

    The agent is a LitAgent, a class of one (made without arguments) or a function; the name may
    be dotted. A module is looked for in the working directory too. InvalidInput (a ValueError)
    names what is missing, and what the module raised while it was imported, with file and line.
    """
    value = find(spec, "An agent", "agent")
    if isinstance(value, type) and issubclass(value, LitAgent):
        value = cast(Any, value)()
    try:
        return as_agent(value)
    except TypeError as error:
        raise InvalidInput(f"{spec} is no agent: {error}") from None


async def run_agent(
    agent: Any,
    store: LightningStore,
    *,
    worker_id: int = 0,
    max_rollouts: int | None = None,
    event: StopSignal | None = None,
    tracer: Tracer | None = None,
    hooks: Sequence[Hook] | None = None,
    heartbeat_interval: float = 2.0,
    slots: int = 1,
    group: str = "runners",
    worker_name: str | None = None,
    on_stuck: Callable[[str], None] | None = None,
    on_execute: Callable[[str, bool], None] | None = None,
    on_ready: Callable[[], None] | None = None,
) -> int:
    """Execute rollouts of ``store`` with ``agent`` until ``event`` is set or ``max_rollouts`` are done.

    Returns how many agents did not end in time and were given up. ``slots``, ``group``, ``worker_name`` and
    ``on_stuck`` as in :class:`LitAgentRunner`, ``on_execute`` as in its :meth:`~LitAgentRunner.configure`;
    ``on_ready`` is called when all is loaded.
    """
    runner = LitAgentRunner[Any](
        tracer=tracer or AgentOpsTracer(),
        max_rollouts=max_rollouts,
        heartbeat_interval=heartbeat_interval,
        slots=slots,
        group=group,
        worker_name=worker_name,
        on_stuck=on_stuck,
    )
    runner.configure(on_execute=on_execute)
    with runner.run_context(agent=agent, store=store, hooks=hooks, worker_id=worker_id):
        if on_ready is not None:
            on_ready()
        await runner.iter(event=event)
    return runner.given_up
