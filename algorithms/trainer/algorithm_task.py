"""The two sides of a fit as a trainer hands them to its strategy: the algorithm with its run, and the runner of a worker."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import inspect
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

from ...core.errors import AgentLightningError, InvalidInput
from ...core.loop_thread import LoopTask
from ...core.model.hooks import Hook
from ...core.model.resources import NamedResources
from ...core.model.rollout import RolloutConfig
from ...core.model.store_interface import LightningStore
from ...runners.pool.pickling import pickled_copy
from ...runners.stop_events import ExecutionEvent, until_set
from ...runners.worker.base import Runner
from ..algorithm import Algorithm, seeded
from ..runs.recorder import ALIVE_SECONDS, RunEnd, RunRecorder, RunStart, leftovers, recorder_for, run_store_of
from ..runs.recording_store import BEST, RecordingStore, RunClaimStore, best_content
from .progress import Progress
from .result import FitResult, Outcome, collect

__all__ = ["AlgorithmTask", "RunnerTask"]

_log = logging.getLogger("agentlightning.trainer")
ALIVE_LOOK_SECONDS = 0.1


@dataclass
class AlgorithmTask:
    """An :class:`AlgorithmBundle`: opens a run, lets the algorithm work, and closes the run.

    ``result`` has what came of it once it was called. Without an algorithm the run is open until the stop.
    """

    trainer: Any
    algorithm: Algorithm | None
    start: RunStart
    train_dataset: Any
    val_dataset: Any
    adapter: Any
    """What the trainer was given as its adapter; None for the default one."""
    llm_proxy: Any
    initial_resources: NamedResources | None
    rollout_config: RolloutConfig | None
    run_id: str
    own_runners: bool = False
    """Whether the runners of the strategy take the rollouts of this run only, and no other runner gets them."""
    progress: bool = True
    """Whether a line on standard error says how far it is."""
    result: FitResult | None = None
    runners_failed: bool = False

    @property
    def ends_with_runners(self) -> bool:
        """Whether the run is over when all runners have done their rollouts: nobody would enqueue any more."""
        return self.algorithm is None

    async def __call__(self, store: LightningStore, event: ExecutionEvent) -> None:
        """See the class; raises what the algorithm raises, after the run was closed as failed."""
        recorder = recorder_for(store)
        known = await self._announced(recorder)  # first: a run without a sign of life would be open for ever
        run_id = await recorder.opened(dataclasses.replace(self.start, own_runners=self.own_runners), self.run_id)
        _log.info("Run %s is open.", run_id)
        bound = recorder.bind(run_id, self.own_runners, self.rollout_config)
        outcome: Outcome = "failed"
        ended = _shown_alive(store, run_id) if known else threading.Event()
        try:
            await self._name_leftovers(store, run_id)
            if self.algorithm is None:
                _log.info("No algorithm: the runners execute what others enqueue, until Ctrl+C or their max_rollouts.")
            self._hand_over(bound)
            with self._progress(store, run_id, bound.rollout_ids):
                outcome = await self._work(event)
        except asyncio.CancelledError:
            outcome = "interrupted"
            raise
        except Exception as error:
            _log.error("The algorithm failed: %s: %s", type(error).__name__, error)
            raise
        finally:
            try:
                await self._close(bound, recorder, run_id, outcome)
            finally:
                ended.set()  # a run that could not be closed is lost

    async def _announced(self, recorder: RunRecorder) -> bool:
        """Whether the store takes signs of life; one of an older release keeps no rollouts for the runners of a run either."""
        try:
            await recorder.alive(self.run_id)
        except InvalidInput as error:
            _log.warning("The store is of an older release; other runners may get rollouts of this run: %s", error)
            self.own_runners = False
            return False
        return True

    async def _name_leftovers(self, store: LightningStore, run_id: str) -> None:
        if not self.own_runners:
            return
        try:
            left = await leftovers(store, run_id)
        except AgentLightningError as error:
            _log.warning("Whether rollouts of before are open could not be found out: %s", error)
            return
        if left:
            _log.warning("%s", left)

    async def _close(self, store: RecordingStore, recorder: RunRecorder, run_id: str, outcome: Outcome) -> None:
        best = self.algorithm.get_best_resources() if self.algorithm is not None else None
        self.result = FitResult(run_id, outcome)
        self.result = result = await collect(store, run_id, outcome, store.rollout_ids, best)
        if best is not None and result.best_resources is not None:
            await recorder.decided(run_id, BEST, best_content(best))
        end = RunEnd(outcome, result.best_resources_id, result.best_resources_version, result.summary)
        await recorder.closed(run_id, end)
        _log.info("Run %s is closed: %s.", run_id, outcome)
        if outcome == "succeeded" and result.statuses and "succeeded" not in result.statuses.values():
            _log.warning(
                "Run %s ended, and none of its %d rollouts succeeded: `agl show %s` lists the errors.",
                run_id,
                len(result.statuses),
                run_id,
            )

    def _progress(self, store: LightningStore, run_id: str, rollout_ids: list[str]) -> AbstractContextManager[Any]:
        if not self.progress or self.algorithm is None:
            return nullcontext()
        workers = self.start.parameters.get("n_runners", 0) if self.own_runners else 0
        return Progress(store, run_id, rollout_ids, workers)

    def _hand_over(self, store: LightningStore) -> None:
        algorithm = self.algorithm
        if algorithm is None:
            return
        algorithm.set_best_resources(None)
        algorithm.set_seed(self.start.seed)
        algorithm.set_trainer(self.trainer)
        algorithm.set_store(store)
        # The trainer's default one is loaded when the algorithm asks for it, unless the algorithm takes it in its own way.
        if self.adapter is not None or type(algorithm).set_adapter is not Algorithm.set_adapter:
            algorithm.set_adapter(self.trainer.adapter)
        if self.initial_resources is not None:
            algorithm.set_initial_resources(self.initial_resources)
        if self.llm_proxy is not None:
            self.llm_proxy.set_store(store)
            algorithm.set_llm_proxy(self.llm_proxy)

    async def _work(self, event: ExecutionEvent) -> Outcome:
        """Until the algorithm returns, or the stop: a coroutine is cancelled then, a plain function left behind."""
        stopped = asyncio.ensure_future(until_set(event))
        if self.algorithm is None:
            await stopped
            return "succeeded"
        work = asyncio.ensure_future(self._run(self.algorithm))
        try:
            await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
                return "succeeded"
            return "failed" if self.runners_failed else "interrupted"
        finally:
            stopped.cancel()
            if not work.done():
                work.cancel()
                await asyncio.wait({work})

    async def _run(self, algorithm: Algorithm) -> None:
        arguments = {"train_dataset": self.train_dataset, "val_dataset": self.val_dataset}
        with seeded(self.start.seed):
            if algorithm.is_async():
                await cast(Any, algorithm.run(**arguments))
                return
            result = await _in_thread(lambda: algorithm.run(**arguments))
            if inspect.isawaitable(result):
                await result


def _shown_alive(store: LightningStore, run_id: str) -> threading.Event:
    """Show a store over HTTP that the owner of the run is there, until the event is set.

    From a thread of its own, which beats also while the algorithm blocks its event loop.
    """
    from ...rest.client.client import LightningStoreClient

    ended = threading.Event()
    run_store = run_store_of(store)
    if not isinstance(run_store, LightningStoreClient):
        return ended

    async def beat() -> None:
        client: Any = pickled_copy(run_store)
        try:
            while not ended.is_set():
                try:
                    await recorder_for(client).alive(run_id)
                except AgentLightningError as error:
                    _log.debug("The run's sign of life did not reach the store: %s", error)
                for _ in range(int(ALIVE_SECONDS / ALIVE_LOOK_SECONDS)):
                    if ended.is_set():
                        break
                    await asyncio.sleep(ALIVE_LOOK_SECONDS)
        finally:
            await client.close()

    LoopTask("run-beat", beat).start()
    return ended


async def _in_thread(call: Callable[[], Any]) -> Any:
    """The result of a plain function, run in a daemon thread with this context: it may use an event loop of its own."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def body() -> None:
        result, failure = None, None
        try:
            result = context.run(call)
        except (SystemExit, KeyboardInterrupt, StopIteration, asyncio.CancelledError) as error:
            failure = RuntimeError(f"{type(error).__name__}: {error}")
        except BaseException as error:
            failure = error
        try:
            loop.call_soon_threadsafe(settle, result, failure)
        except RuntimeError as gone:
            _log.debug("The algorithm ended after its run: %s", gone)

    threading.Thread(target=body, name="algorithm-run", daemon=True).start()
    return await future


@dataclass
class RunnerTask:
    """A :class:`RunnerBundle`: every worker gets a runner and a tracer of its own.

    ``make`` makes one. Everything here must be picklable.
    """

    agent: Any
    hooks: Sequence[Hook]
    make: Callable[[], Runner[Any]]
    trainer: Any
    run_id: str | None = None
    """The run whose rollouts it executes; None for whatever the store hands out."""
    worker_name: str | None = None
    on_stuck: Callable[[str], None] | None = None
    max_rollouts: int | None = None
    """What is left of it in a process that replaces another one; None where the runner's own counts."""
    on_execute: Callable[[str, bool], None] | None = None
    """See :meth:`LitAgentRunner.configure`."""
    on_ready: Callable[[], None] | None = None
    """Called when all is loaded, before the first rollout is asked for."""
    given_up: int = 0
    """How many agents were given up; of more use in a process that ends because of them."""

    async def __call__(self, store: LightningStore, worker_id: int, event: ExecutionEvent) -> None:
        """Execute rollouts as worker ``worker_id``."""
        from ...runners.worker.runner import LitAgentRunner  # a worker needs it; the process of the algorithm does not

        runner = self.make()
        if isinstance(runner, LitAgentRunner):
            runner.configure(self.on_stuck, self.worker_name, self.run_id, self.max_rollouts, self.on_execute)
        elif self.run_id is not None:
            store = RunClaimStore(store, self.run_id)
        self.agent.set_trainer(self.trainer)
        with runner.run_context(agent=self.agent, store=store, hooks=self.hooks, worker_id=worker_id):
            try:
                if self.on_ready is not None:
                    self.on_ready()
                await runner.iter(event=event)
            finally:
                self.given_up += getattr(runner, "given_up", 0)
