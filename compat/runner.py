"""LegacyAgentRunner: runs an agent on the tasks of a server of the first generation, and posts what it returned."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, cast

from ..core.errors import AttemptTimedOut
from ..core.model.resources import NamedResources, with_keys
from ..core.model.rollout import Triplet
from ..core.model.scalars import number
from ..core.model.span import Span, reads_like_a_span
from ..core.model.store_interface import LightningStoreCapabilities
from ..core.spans.rewards import find_final_reward
from ..runners.agent.decorators import as_agent
from ..runners.agent.litagent import LitAgent, call_for
from ..runners.stop_events import StopSignal
from ..runners.tracing.base import Tracer
from ..runners.worker.agent_call import AgentExecutor, Watchdog, call_agent, error_text, log_failure
from ..runners.worker.heartbeat import Heartbeat, HeartbeatSource
from .client import AgentLightningClient
from .results import ATTEMPT_KEY, ERROR_KEY, LIMIT_KEY, as_trace
from .task_protocol import RolloutLegacy, Task, check_posted

__all__ = ["LegacyAgentRunner", "as_posted"]

_log = logging.getLogger(__name__)
BEAT_SECONDS = 2.0
HANG_FACTOR = 2.0
"""An agent that exceeds the time of its task may still finish it first; after so many times that, it hangs."""
POST_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Pauses between attempts to post a result; after the last it is lost, and the task is executed again."""


class _Heartbeats:
    """What a :class:`Heartbeat` needs of a store, for a client of the first protocol."""

    capabilities = LightningStoreCapabilities(thread_safe=True)

    def __init__(self, client: AgentLightningClient) -> None:
        self._client = client

    async def update_worker(self, worker_id: str, snapshot: object, *, incarnation: str, attempts: Any) -> None:
        """Send one heartbeat; the client knows its worker and incarnation."""
        await asyncio.to_thread(self._client.beat, attempts)


class LegacyAgentRunner:
    """Takes one task after the other from `client`, runs `agent` on it inside a trace, and posts the result.

    Methods of an agent may have the first generation's parameters (``task, rollout_id, resources``) or today's
    (``task, resources, rollout``). An exception of the agent is logged and posted as ``metadata["error"]``.

    Args:
        tracer: one whose ``init_worker`` was called.
        triplet_exporter: an adapter that makes triplets of spans; None makes none.
        worker_id: number of the worker, for log lines; ``name`` is its name at the server.
        max_tasks: how many tasks :meth:`iter` takes; None for no limit.
        stop: once it is set no further task is taken.
        done: called after every task.
        hung: called when an agent does not end in twice the time of its task and cannot be cancelled.
    """

    def __init__(
        self,
        agent: Any,
        client: AgentLightningClient,
        tracer: Tracer,
        triplet_exporter: Any = None,
        worker_id: int | None = None,
        max_tasks: int | None = None,
        *,
        name: str | None = None,
        stop: StopSignal | None = None,
        done: Callable[[], None] | None = None,
        hung: Callable[[], None] | None = None,
    ) -> None:
        self.agent: LitAgent[Any] = as_agent(agent)
        self.client = client
        self.tracer = tracer
        self.triplet_exporter = triplet_exporter
        self.worker_id = worker_id
        self.max_tasks = max_tasks
        self._stop = stop
        self._done = done
        on_hang = hung or (lambda: None)
        self._watchdog = Watchdog(on_hang, lambda prefix: on_hang())
        self._executor = AgentExecutor()
        self._running: list[tuple[str, str]] = []
        self._name = name
        if name is not None:
            client.as_worker(name)

    def run(self) -> bool:
        """Wait for one task and execute it; False where it could not be executed, or none came before the stop."""
        return asyncio.run(self.run_async())

    def iter(self) -> int:
        """Execute tasks until there were ``max_tasks``, or the stop; how many."""
        try:
            return asyncio.run(self._iter("sync"))
        finally:
            self._executor.close()

    async def iter_async(self) -> int:
        """As :meth:`iter`."""
        return await self._iter("async")

    async def _iter(self, kind: str) -> int:
        limit = "unlimited" if self.max_tasks is None else str(self.max_tasks)
        _log.info("%s Started %s rollouts (max: %s).", self._prefix(), kind, limit)
        count = 0
        source = HeartbeatSource(self._name or "", "", lambda: self._running)
        store: Any = _Heartbeats(self.client)
        heartbeat = Heartbeat(store, [source], interval=0 if self._name is None else BEAT_SECONDS)
        heartbeat.start()
        try:
            while (self.max_tasks is None or count < self.max_tasks) and not self._stopped():
                if not await self.run_async():
                    continue
                count += 1
                if self._done is not None:
                    self._done()
                if count == 1 or count % 10 == 0:
                    _log.info("%s Progress: %d/%s", self._prefix(), count, limit)
        finally:
            await heartbeat.stop()
        _log.info("%s Finished %s rollouts. Processed %d tasks.", self._prefix(), kind, count)
        return count

    async def run_async(self) -> bool:
        """As :meth:`run`."""
        self.agent.set_runner(self)  # pyright: ignore[reportArgumentType] (one of the first generation)
        task = await self.client.poll_next_task_async(self._stop)
        if task is None:
            return False
        attempt_id = str(task.metadata.get(ATTEMPT_KEY, ""))
        self._running[:] = [(task.rollout_id, attempt_id)] if attempt_id else []
        try:
            return await self._serve(task)
        except asyncio.CancelledError:
            # Another worker can execute it: no result is better than one that says "cancelled".
            if attempt_id and self.client.give_back(task.rollout_id, attempt_id):
                _log.warning("%s Cancelled; the task is given back.", self._prefix(task.rollout_id))
            raise
        finally:
            self._running.clear()

    def _stopped(self) -> bool:
        return self._stop is not None and self._stop.is_set()

    def _prefix(self, rollout_id: str | None = None) -> str:
        parts = [] if self.worker_id is None else [f"Worker {self.worker_id}"]
        parts += [] if rollout_id is None else [f"Rollout {rollout_id}"]
        return f"[{' | '.join(parts) or 'Default Worker'}]"

    async def _serve(self, task: Task) -> bool:
        prefix = self._prefix(task.rollout_id)
        result = RolloutLegacy(rollout_id=task.rollout_id, task=task)
        began = time.monotonic()
        try:
            resources = await self._resources(task)
            result = await self._execute(task, resources)
        except AttemptTimedOut as error:
            # The server has handed the task to another worker by now, whose result counts.
            _log.error("%s %s. The server has handed it out again.", prefix, error)
            return True
        except Exception as error:
            log_failure(error, prefix, "Traceback: metadata of the result, or log level DEBUG.")
            result.metadata = {
                ERROR_KEY: error_text(error),
                "traceback": "".join(traceback.format_exception(error))[-20_000:],
            }
        else:
            length = "N/A" if result.triplets is None else str(len(result.triplets))
            seconds = time.monotonic() - began
            reward = "None" if result.final_reward is None else f"{result.final_reward:.3f}"
            _log.info("%s Completed in %.2fs. Triplet length: %s. Reward: %s", prefix, seconds, length, reward)
        await self._post(result, prefix)
        return True

    async def _resources(self, task: Task) -> NamedResources:
        wanted = task.resources_id
        if wanted is not None:
            update = await self.client.get_resources_by_id_async(wanted)
        else:
            update = await self.client.get_latest_resources_async()
        if update is None:
            raise RuntimeError(f"Failed to fetch resources: {wanted or 'none were ever set'}.")
        return with_keys(update.resources)

    async def _execute(self, task: Task, resources: NamedResources) -> RolloutLegacy:
        self._hook("on_rollout_start", task)
        rollout = RolloutLegacy(rollout_id=task.rollout_id, task=task)
        ids = {"rollout_id": task.rollout_id, "attempt_id": str(task.metadata.get(ATTEMPT_KEY, ""))}
        try:
            # Without ids: no store takes these spans, the trace is posted together with the result.
            async with self._trace(f"rollout_{task.rollout_id}"):
                value = await self._call(task, resources, rollout)
            spans = [span.model_copy(update=ids) for span in self._last_trace()]
            rollout = as_posted(value, task, spans, self.triplet_exporter, self._prefix(task.rollout_id))
        finally:
            self._hook("on_rollout_end", task, rollout)
        return rollout

    def _trace(self, name: str) -> AbstractAsyncContextManager[Any]:
        try:
            return self.tracer.trace_context(name=name)
        except NotImplementedError as error:
            _log.debug("%s; the task runs without one", error)
            return nullcontext()

    def _last_trace(self) -> list[Span]:
        try:
            return self.tracer.get_last_trace()
        except NotImplementedError:
            return []

    async def _call(self, task: Task, resources: NamedResources, rollout: RolloutLegacy) -> Any:
        call = call_for(self.agent, task.mode, task.input, task.rollout_id, resources, rollout)
        seconds = task.metadata.get(LIMIT_KEY)
        limit = seconds * HANG_FACTOR if isinstance(seconds, int | float) else None
        prefix = self._prefix(task.rollout_id)
        return await call_agent(call, self.agent.is_async(), limit, self._executor, self._watchdog, prefix)

    def _hook(self, name: str, task: Task, *more: Any) -> None:
        try:
            getattr(self.agent, name)(task, *more, self, self.tracer)
        except Exception:
            _log.exception("%s Exception in %s.", self._prefix(task.rollout_id), name)

    async def _post(self, result: RolloutLegacy, prefix: str) -> None:
        for pause in (*POST_SECONDS, None):
            if await self.client.post_rollout_async(result) is not None:
                return
            if self.client.refused:
                _log.error("%s The server refuses the result: it does not know this rollout any more.", prefix)
                return
            if pause is None:
                break
            _log.warning("%s The server does not take the result; trying again in %g s.", prefix, pause)
            await asyncio.sleep(pause)
        _log.error("%s The result could not be posted; the server will hand the task out again.", prefix)


def as_posted(value: Any, task: Task, spans: Sequence[Span], exporter: Any, prefix: str) -> RolloutLegacy:
    """What the agent returned, as the rollout to post: a number, triplets, spans or their dicts, `RolloutLegacy`, or None.

    `spans` are what the tracer recorded; they are the trace unless the agent returned one, and triplets are made of
    them unless the agent returned some. Without a reward of its own the rollout has that of its last triplet, or the
    last one that was emitted. TypeError for anything else, ValueError for NaN and infinities as rewards.
    """
    rollout = RolloutLegacy(rollout_id=task.rollout_id, task=task)
    returned: Sequence[Any] = ()
    if isinstance(value, RolloutLegacy):
        rollout = value.model_copy(update={"rollout_id": task.rollout_id, "task": task})
    elif number(value) is not None:
        if isinstance(value, bool):
            _log.warning("%s Reward is not a number, got: bool. Auto converting to float.", prefix)
        rollout.final_reward = number(value)
    elif isinstance(value, list):
        items = cast("list[Any]", value)
        if items and all(isinstance(item, Triplet) for item in items):
            rollout.triplets = items
        else:
            rollout.trace, returned = _trace(items, task)
    elif value is not None:
        raise TypeError(
            "Invalid raw result type. It's expected to be none, a number, or a list of triplets or spans, "
            f"but got: {type(value).__name__}"
        )
    if rollout.trace is None and spans:
        rollout.trace, returned = _trace(list(spans), task)
    if returned and rollout.triplets is None:
        rollout.triplets = _triplets(returned, exporter, prefix)
    if rollout.final_reward is None:
        last = rollout.triplets[-1].reward if rollout.triplets else None
        rollout.final_reward = last if last is not None else find_final_reward(spans)
    check_posted(rollout)
    return rollout


def _trace(items: list[Any], task: Task) -> tuple[list[dict[str, Any]], list[Any]]:
    """The spans as dicts, and those of them that an adapter can read."""
    dicts: list[dict[str, Any]] = []
    readable: list[Any] = []
    for item in items:
        if not isinstance(item, Span) and reads_like_a_span(item):
            item = Span.from_opentelemetry(item, task.rollout_id, "", len(dicts))
        if isinstance(item, Span):
            dicts += as_trace([item])
            readable.append(item)
        elif isinstance(item, dict):
            dicts.append(cast("dict[str, Any]", item))
        else:
            raise TypeError(f"A list of results holds triplets or spans of one kind, not {type(item).__name__}")
    return dicts, readable


def _triplets(spans: Sequence[Any], exporter: Any, prefix: str) -> list[Triplet] | None:
    if exporter is None:
        return None
    convert = getattr(exporter, "adapt", None) or exporter.export
    try:
        return convert(spans)
    except Exception as error:
        # The reward and the trace are posted without them.
        _log.warning("%s No triplets: %s: %s", prefix, type(error).__name__, error)
        return None
