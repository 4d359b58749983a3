"""LitAgentRunner: claims rollouts from a store, one for each of its slots, and runs an agent on them side by side."""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Literal, TypeVar

from ...core.errors import AgentLightningError, InvalidInput
from ...core.model.hooks import Hook
from ...core.model.resources import NamedResources
from ...core.model.rollout import AttemptedRollout, Rollout, RolloutMode
from ...core.model.store_interface import LightningStore
from ...core.retry import patiently
from ..agent.decorators import as_agent
from ..agent.litagent import LitAgent
from ..stop_events import CombinedEvent, StopSignal
from ..tracing.base import Tracer
from .agent_call import AgentExecutor, Watchdog
from .attempt import AttemptOptions, AttemptRun
from .base import Runner
from .heartbeat import Heartbeat, HeartbeatSource

__all__ = ["LitAgentRunner", "Slot", "serve_slots", "slots_of"]

class Slot:
    """One worker of the store, which runs one attempt at a time; each object is a new incarnation of it."""

    def __init__(self, worker_id: str) -> None:
        self.worker_id = worker_id
        self.incarnation = uuid.uuid4().hex
        self.executor = AgentExecutor()
        self.running: dict[tuple[str, str], None] = {}

    @property
    def heartbeat_source(self) -> HeartbeatSource:
        """What its heartbeats report."""
        return HeartbeatSource(self.worker_id, self.incarnation, lambda: list(self.running))

    @contextmanager
    def marked(self, rollout: AttemptedRollout) -> Generator[None, None, None]:
        """Heartbeats name this attempt while the block runs."""
        key = (rollout.rollout_id, rollout.attempt.attempt_id)
        self.running[key] = None
        try:
            yield
        finally:
            self.running.pop(key, None)


def slots_of(worker_id: str, count: int) -> list[Slot]:
    """One slot has the worker's own id; several have ``<id>-0``, ``<id>-1``, ..."""
    return [Slot(worker_id if count == 1 else f"{worker_id}-{index}") for index in range(count)]


async def serve_slots(
    slots: Sequence[Slot], serve: Callable[[Slot, StopSignal | None], Awaitable[None]], event: StopSignal | None
) -> None:
    """Serve all slots until each has ended; a cancellation cancels them all.

    After the first that fails no attempt is started: running ones may end, then the error is raised.
    """
    if len(slots) == 1:
        await serve(slots[0], event)
        return
    stop = CombinedEvent(event)
    tasks = {asyncio.ensure_future(serve(slot, stop)): slot for slot in slots}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if any(not task.cancelled() and task.exception() is not None for task in done):
            stop.set()
            for task, slot in tasks.items():
                if not slot.running:
                    task.cancel()
            await asyncio.wait(tasks)
    except asyncio.CancelledError:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        raise
    errors = [error for task in tasks if not task.cancelled() and (error := task.exception()) is not None]
    if errors:
        raise errors[0]


T = TypeVar("T")

_log = logging.getLogger(__name__)
PUSH_SECONDS = 20.0
"""How long one call waits for work at a store that delivers it at once (``push_dequeue``)."""
PUSH_SECONDS_WITH_EVENT = 0.5
"""The same where a stop event has to be checked in between."""
IDLE_SECONDS = 3.0
"""After so long without work a runner looks for the reason."""


_RUNTIME_FIELDS = ("_agent", "_store", "_hooks", "_draining", "_replaceable", "_watchdog", "_slots", "_on_execute", "worker_id")


class LitAgentRunner(Runner[T]):
    """Runs an agent on the rollouts of a store: ``LitAgentRunner[str](tracer=AgentOpsTracer())``.

    Args:
        tracer: records what the agent does.
        max_rollouts: how many rollouts :meth:`iter` executes; None for no limit, 0 for none.
        poll_interval: seconds between claims while the queue is empty; unused where the store delivers work at once
            (``push_dequeue``).
        heartbeat_interval: seconds between heartbeats; 0 or less sends none.
        interval_jitter: seconds by which both pauses vary at random.
        heartbeat_launch_mode: ``thread`` also beats while the agent blocks the event loop.
        heartbeat_include_gpu: heartbeats report the graphics cards too, where ``nvidia-smi`` is installed.
        slots: how many rollouts :meth:`iter` executes at the same time. More than one are as many
            workers in the store, ``Worker-N-0``, ``Worker-N-1``, ...
        group: the consumer group whose hints decide what is claimed first, on a store of this process
            with a log on Kafka; other stores decide it themselves.
        capture_output: keep what an attempt prints and logs beside its spans.
        strict_traces: an attempt whose trace lacks a model call, a reward or token ids fails; without it the
            attempt's metadata name what is missing.
        worker_name: name in the store and in log lines instead of the worker's number.
        on_stuck: called, in a thread of its own, with the log prefix of an attempt that is long past its time
            limit and still blocks the event loop. With it :meth:`iter` also ends, after the running attempts, once an
            agent was given up: for processes under a supervisor.
    """

    def __init__(
        self,
        tracer: Tracer,
        max_rollouts: int | None = None,
        poll_interval: float = 5.0,
        heartbeat_interval: float = 2.0,
        interval_jitter: float = 0.5,
        heartbeat_launch_mode: Literal["asyncio", "thread"] = "thread",
        heartbeat_include_gpu: bool = False,
        slots: int = 1,
        group: str = "runners",
        capture_output: bool = True,
        strict_traces: bool = False,
        worker_name: str | None = None,
        on_stuck: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__()
        if heartbeat_launch_mode not in ("asyncio", "thread"):
            raise InvalidInput(f"Unknown heartbeat launch mode: {heartbeat_launch_mode!r}")
        if slots < 1 or not group:
            raise InvalidInput(f"a runner has at least one slot and a group with a name, not {slots} and {group!r}")
        if max_rollouts is not None and max_rollouts < 0:
            raise InvalidInput(f"max_rollouts is {max_rollouts}; it takes 0 or more, or None for no limit")
        self._tracer = tracer
        self._max_rollouts = max_rollouts
        self._poll_interval = poll_interval
        self._heartbeat_interval = heartbeat_interval
        self._jitter = interval_jitter
        self._heartbeat_mode: Literal["asyncio", "thread"] = heartbeat_launch_mode
        self._include_gpu = heartbeat_include_gpu
        self._agent: LitAgent[T] | None = None
        self._store: LightningStore | None = None
        self._hooks: list[Hook] = []
        self._count = slots
        self._group = group
        self._worker_name = worker_name
        self._run_id: str | None = None
        self._on_execute: Callable[[str, bool], None] | None = None
        self._idle_explained = False
        self._reset(on_stuck, capture_output, strict_traces)
        self._slots = slots_of(self.get_worker_id(), slots)
        self._started = 0
        self._done = 0

    def _reset(self, on_stuck: Callable[[str], None] | None, capture_output: bool, strict_traces: bool) -> None:
        self._draining = CombinedEvent(None)
        self._replaceable = on_stuck is not None
        self._watchdog = Watchdog(lambda: self._draining.set(), on_stuck or _log_stuck)
        self._options = AttemptOptions(self._watchdog, capture_output, strict_traces)

    def __getstate__(self) -> dict[str, Any]:
        """The settings only: a runner in another process, or a copy, has run nothing yet."""
        kept = {name: value for name, value in vars(self).items() if name not in _RUNTIME_FIELDS}
        return {**kept, "_options": (self._options.capture_output, self._options.strict_traces)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        capture_output, strict_traces = state.pop("_options")
        vars(self).update(state, _agent=None, _store=None, _hooks=[], _on_execute=None, worker_id=None, _started=0, _done=0)
        self._reset(None, capture_output, strict_traces)
        self._slots = slots_of(self.get_worker_id(), self._count)

    def configure(
        self,
        on_stuck: Callable[[str], None] | None = None,
        worker_name: str | None = None,
        run_id: str | None = None,
        max_rollouts: int | None = None,
        on_execute: Callable[[str, bool], None] | None = None,
    ) -> None:
        """Set arguments of the class before :meth:`iter`: the first two where they were not given.

        ``run_id``: claim rollouts of this run only; the store has to be able to (``run_claims``). ``max_rollouts``: what
        is left of it, where an earlier process of this worker has run some. ``on_execute``: called with the rollout's id
        and True before an attempt, and with False after it.
        """
        self._worker_name = self._worker_name or worker_name
        self._run_id = run_id
        self._on_execute = on_execute
        if max_rollouts is not None:
            self._max_rollouts = max_rollouts
        if on_stuck is not None:
            self._reset(on_stuck, self._options.capture_output, self._options.strict_traces)

    @property
    def tracer(self) -> Tracer:
        """The tracer given to the constructor."""
        return self._tracer

    @property
    def given_up(self) -> int:
        """How many agents did not end in time and were given up, since the runner was made."""
        return self._watchdog.count

    def init(self, agent: Any, *, hooks: Sequence[Hook] | None = None, **kwargs: Any) -> None:
        """Take the agent, a LitAgent or a plain function, and a copy of the hooks."""
        self._agent = as_agent(agent)
        self._agent.set_runner(self)
        self._hooks = list(hooks or ())
        self._tracer.init()

    def init_worker(self, worker_id: int, store: LightningStore, **kwargs: Any) -> None:
        """Take the store, an opened one, and start the tracer; a new incarnation of this worker begins."""
        if isinstance(store, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidInput(f"A runner takes a store and not its address; open it first: open_store({store!r})")
        self.worker_id = worker_id
        self._store = store
        self._slots = slots_of(self.get_worker_id(), self._count)
        self._tracer.init_worker(worker_id, store)

    def teardown_worker(self, worker_id: int, *args: Any, **kwargs: Any) -> None:
        """Stop the tracer, and the threads in which agents ran."""
        for slot in self._slots:
            slot.executor.close()
        self._tracer.teardown_worker(worker_id)

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Forget agent, store and hooks."""
        self._agent = None
        self._store = None
        self._hooks = []
        self.worker_id = None
        self._tracer.teardown()

    def get_agent(self) -> LitAgent[T]:
        """The agent; ValueError before :meth:`init`."""
        if self._agent is None:
            raise InvalidInput("Agent not initialized. Call init() first.")
        return self._agent

    def get_store(self) -> LightningStore:
        """The store; ValueError before :meth:`init_worker`."""
        if self._store is None:
            raise InvalidInput("Store not initialized. Call init_worker() first.")
        return self._store

    def get_worker_id(self) -> str:
        """``Worker-N``, the name of this worker in the store."""
        name = self._name
        return "Worker-Unknown" if name is None else f"Worker-{name}"

    @property
    def _name(self) -> str | int | None:
        """The worker's name, or number; None while there is no worker."""
        return self.worker_id if self.worker_id is None or self._worker_name is None else self._worker_name

    def _prefix(self, rollout_id: str | None = None) -> str:
        parts: list[str] = []
        if self.worker_id is not None:
            parts.append(f"Worker {self._name}")
        if rollout_id is not None:
            parts.append(f"Rollout {rollout_id}")
        return f"[{' | '.join(parts) or 'Default Worker'}]"

    async def iter(self, *, event: StopSignal | None = None) -> None:
        """Claim and execute rollouts until ``event`` is set or ``max_rollouts`` are done.

        An agent that fails is recorded and the next rollout follows. While the store does not
        answer the runner waits; every other error of a claim (a wrong token) goes on. A
        cancellation ends the running attempt as failed and goes on.
        """
        limit = "unlimited" if self._max_rollouts is None else str(self._max_rollouts)
        _log.info("%s Started async rollouts (max: %s).", self._prefix(), limit)
        self._started = self._done = 0
        heartbeat = self._heartbeat()
        heartbeat.start()
        if self._replaceable:
            self._draining = CombinedEvent(event)
            event = self._draining
        try:
            await heartbeat.register(self._prefix())
            async with self._hints():
                await serve_slots(self._slots, self._serve, event)
        finally:
            await heartbeat.stop()
        _log.info("%s Finished async rollouts. Processed %d tasks.", self._prefix(), self._done)

    async def _serve(self, slot: Slot, event: StopSignal | None) -> None:
        """Claim and execute in one slot until ``event`` is set, or all slots together have started ``max_rollouts``."""
        limit = "unlimited" if self._max_rollouts is None else str(self._max_rollouts)
        while self._max_rollouts is None or self._started < self._max_rollouts:
            self._started += 1
            rollout = await self._claim(slot, event)
            if rollout is None:
                return
            await self._execute(rollout, slot)
            self._done += 1
            if self._done == 1 or self._done % 10 == 0:
                _log.info("%s Progress: %d/%s", self._prefix(), self._done, limit)

    @asynccontextmanager
    async def _hints(self) -> AsyncGenerator[None, None]:
        """Be a member of the group of runners, where the store is one of this process on a shared log."""
        feed, store = None, self.get_store()
        if hasattr(store, "engine"):  # a client has none, and its process does not load the store's own modules
            from ...projections.queue.task_hints import feed_of

            feed = feed_of(store, self._group, self.get_worker_id())
        if feed is None:
            yield
            return
        with feed:
            try:
                yield
            finally:
                await asyncio.to_thread(feed.close)

    def _heartbeat(self) -> Heartbeat:
        if self.worker_id is None:
            _log.warning("%s Without a worker id no heartbeats are sent.", self._prefix())
        return Heartbeat(
            self.get_store(),
            [slot.heartbeat_source for slot in self._slots],
            interval=0 if self.worker_id is None else self._heartbeat_interval,
            jitter=self._jitter,
            mode=self._heartbeat_mode,
            include_gpu=self._include_gpu,
            extra=lambda: {"agents_given_up": self.given_up} if self.given_up else {},
        )

    async def _claim(self, slot: Slot, event: StopSignal | None) -> AttemptedRollout | None:
        """The next rollout; None once ``event`` is set."""
        store, worker = self.get_store(), slot.worker_id
        push = bool(store.capabilities.get("push_dequeue", False))
        seconds = PUSH_SECONDS if event is None else PUSH_SECONDS_WITH_EVENT
        run: dict[str, Any] = {} if self._run_id is None else {"run_id": self._run_id}
        began = time.monotonic()
        while event is None or not event.is_set():
            if push:
                rollout = await patiently(
                    lambda: store.dequeue_rollout(worker, wait_seconds=seconds, incarnation=slot.incarnation, **run),
                    self._prefix(),
                )
            else:
                rollout = await patiently(lambda: store.dequeue_rollout(worker, **run), self._prefix())
            if rollout is not None:
                return rollout
            if not self._idle_explained and time.monotonic() - began > IDLE_SECONDS:
                await self._explain_idle()
            if push:
                # A store that ignores the waiting time must not cause a busy loop.
                await asyncio.sleep(0.001)
            else:
                await self._poll_pause(event)
        return None

    async def _explain_idle(self) -> None:
        """Log once, where that is so, that the open runs of the store have runners of their own."""
        self._idle_explained = True
        store = self.get_store()
        if self._run_id is not None or not store.capabilities.get("run_claims", False):
            return
        try:
            runs = await store.query_runs(brief=True)
        except AgentLightningError as error:
            _log.debug("%s The runs of the store cannot be read: %s", self._prefix(), error)
            return
        kept = [run["run_id"] for run in runs if run["closed_at"] is None and run.get("own_runners")]
        if kept:
            _log.warning(
                "%s No work: run %s has runners of its own, and no other runner gets its rollouts. This one executes "
                "what is enqueued outside of such runs.",
                self._prefix(),
                kept[-1],
            )

    async def _poll_pause(self, event: StopSignal | None) -> None:
        left = max(0.01, self._poll_interval + random.uniform(-self._jitter, self._jitter))
        while left > 0 and (event is None or not event.is_set()):
            piece = left if event is None else min(0.1, left)
            await asyncio.sleep(piece)
            left -= piece

    async def _execute(self, rollout: AttemptedRollout, slot: Slot) -> Exception | None:
        with slot.marked(rollout), self._reported(rollout.rollout_id):
            return await AttemptRun(
                runner=self,
                agent=self.get_agent(),
                store=self.get_store(),
                tracer=self._tracer,
                hooks=self._hooks,
                rollout=rollout,
                prefix=self._prefix(rollout.rollout_id),
                options=self._options,
                executor=slot.executor,
            ).run()

    @contextmanager
    def _reported(self, rollout_id: str) -> Generator[None, None, None]:
        if self._on_execute is None:
            yield
            return
        self._on_execute(rollout_id, True)
        try:
            yield
        finally:
            self._on_execute(rollout_id, False)

    async def step(
        self,
        input: T,
        *,
        resources: NamedResources | None = None,
        mode: RolloutMode | None = None,
        event: StopSignal | None = None,
    ) -> Rollout:
        """Execute one rollout without the queue and return it as it ended.

        ``resources`` are added to the store first, and are the latest from then on. What the
        agent raises is raised here, after the attempt was recorded as failed.
        """
        store = self.get_store()
        resources_id = None
        if resources is not None:
            resources_id = (await store.add_resources(resources)).resources_id
        rollout = await store.start_rollout(input, mode=mode, resources_id=resources_id, worker_id=self.get_worker_id())
        error = await self._execute(rollout, self._slots[0])
        if error is not None:
            raise error
        finished = await store.get_rollout_by_id(rollout.rollout_id)
        if finished is None:
            raise RuntimeError(f"Rollout {rollout.rollout_id} is gone from the store")
        return finished


def _log_stuck(prefix: str) -> None:
    _log.error("%s The agent is past its time limit and blocks the event loop: only ending this process ends it.", prefix)
