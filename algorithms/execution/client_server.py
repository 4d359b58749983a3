"""ClientServerExecutionStrategy: runners in processes of their own, which reach the store over HTTP."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import secrets
import signal
import socket
import threading
import time
from functools import partial
from typing import Any, Literal, cast

from ...core.errors import InvalidInput, NotFound
from ...core.events.run_events import LOST
from ...core.loop_thread import LoopTask, first_error, run_to_end
from ...core.model.rollout import Worker
from ...core.model.store_interface import LightningStore
from ...core.retry import patiently
from ...runners.pool.pickling import pickled_copy
from ...runners.stop_events import CombinedEvent, ExecutionEvent, InterruptHandler, ThreadingEvent, until_set
from ..runs.recorder import claims_for_runs
from .base import (
    AlgorithmBundle,
    ExecutionStrategy,
    ManagedRunner,
    RunnerBundle,
    ends_with_runners,
    report_failure,
    seconds_or_more,
    whole_number,
)
from .env_vars import LightningEnvVar, resolve_bool_env_var, resolve_int_env_var, resolve_str_env_var
from .env_vars import token as token_of_environment
from .runner_pool import RunnerPool

__all__ = ["ClientServerExecutionStrategy", "open_run", "until_run_closes"]

_log = logging.getLogger(__name__)
DEFAULT_PORT = 4747
LOOK_SECONDS = 0.05
NOTICE_SECONDS = 5.0
"""How long runners elsewhere are given to notice that the run is closed; they look every second."""
SILENT_SECONDS = 2.5
"""A worker that sent nothing for so long has stopped: it asks for work twice a second, or sends heartbeats."""
LOST_SECONDS = 10.0
POLL_SECONDS = 1.0
NEXT_SECONDS = 15.0
"""How long after a run was lost its program may take to be started again, before its runners stop."""
LONGEST_HOST = 40
HURRIED_SECONDS = 0.5
"""How long an algorithm may take to end after a second Ctrl+C."""


class ClientServerExecutionStrategy(ExecutionStrategy):
    """``"cs"``: the algorithm and the store in one process, each runner in another, perhaps on other machines.

    What is None is read from the environment, which launches one program in several roles. Runners are started anew,
    so they find an agent that a module or the program's main file defines; one that they cannot find is forked.

    Args:
        role: ``algorithm`` serves the store and runs the algorithm, ``runner`` runs the agent on a store that serves,
            ``both`` does both and starts ``n_runners`` processes. AGL_CURRENT_ROLE, else ``both``.
        server_host: where the store serves and is found. AGL_SERVER_HOST, else localhost. Other addresses than those
            of this machine need a token.
        server_port: AGL_SERVER_PORT, else 4747; in the role ``both`` a free one, as for 0.
        graceful_timeout: seconds that running rollouts may take when the run stops; then they are cancelled.
        terminate_timeout: seconds after that, and after each harder way of ending a process.
        main_process: ``runner`` keeps the one runner in this process' main thread, and the algorithm in another thread.
        managed_store: False uses the given store as it is, in every process. AGL_MANAGED_STORE, else True.
        allowed_exit_codes: of runner processes that had to be ended; RuntimeError for any other.
        start_method: of multiprocessing; None is ``spawn``, with ``fork`` for agents that cannot be pickled.
        token: asked of every caller of the store. AGL_TOKEN.
    """

    alias = "cs"

    def __init__(
        self,
        role: Literal["algorithm", "runner", "both"] | None = None,
        server_host: str | None = None,
        server_port: int | None = None,
        n_runners: int = 1,
        graceful_timeout: float = 10.0,
        terminate_timeout: float = 10.0,
        main_process: Literal["algorithm", "runner"] = "algorithm",
        managed_store: bool | None = None,
        allowed_exit_codes: tuple[int, ...] = (0, -signal.SIGTERM),
        start_method: Literal["spawn", "forkserver", "fork"] | None = None,
        token: str | None = None,
    ) -> None:
        found = resolve_str_env_var(LightningEnvVar.AGL_CURRENT_ROLE, role, "both")
        if found not in ("algorithm", "runner", "both"):
            raise InvalidInput(f"role must be one of 'algorithm', 'runner' or 'both', got {found!r}")
        if main_process not in ("algorithm", "runner"):
            raise InvalidInput("main_process must be 'algorithm' or 'runner'")
        whole_number("n_runners", n_runners, 1)
        for name, seconds in (("graceful_timeout", graceful_timeout), ("terminate_timeout", terminate_timeout)):
            seconds_or_more(name, seconds)
        if main_process == "runner" and (found != "both" or n_runners != 1):
            raise InvalidInput("main_process='runner' requires role='both' and n_runners=1")
        self.role = found
        self.server_host = cast(str, resolve_str_env_var(LightningEnvVar.AGL_SERVER_HOST, server_host, "localhost"))
        self.server_port = resolve_int_env_var(LightningEnvVar.AGL_SERVER_PORT, server_port)
        if self.server_port is not None and not 0 <= self.server_port <= 65535:
            name = "server_port" if server_port is not None else LightningEnvVar.AGL_SERVER_PORT.value
            raise InvalidInput(f"{name} is {self.server_port}, which is no port: it takes 0 to 65535")
        self.n_runners = n_runners
        self.graceful_timeout = graceful_timeout
        self.terminate_timeout = terminate_timeout
        self.main_process: Literal["algorithm", "runner"] = main_process
        self.managed_store = bool(resolve_bool_env_var(LightningEnvVar.AGL_MANAGED_STORE, managed_store, True))
        self.allowed_exit_codes = allowed_exit_codes
        self.start_method = start_method
        self.token = token or token_of_environment()
        """Asked of every caller of the store; AGL_TOKEN unless one was given."""

    @property
    def own_runners(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the process of the algorithm starts the runners."""
        return self.role == "both"

    @property
    def needs_store(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """False for a runner, which reaches the store of the algorithm's process."""
        return self.role != "runner" or not self.managed_store

    def execute(self, algorithm: AlgorithmBundle, runner: RunnerBundle, store: LightningStore) -> None:
        """See the class. What the algorithm raises is raised here, and RuntimeError where the runners cannot work."""
        _log.info(
            "Starting client-server execution with %d runner(s) [role=%s, main_process=%s]",
            self.n_runners,
            self.role,
            self.main_process,
        )
        execution = _Execution(self, algorithm, runner)
        with InterruptHandler(execution.stop, execution.at_once, self.graceful_timeout):
            if self.role == "runner":
                execution.run_runners(self.remote() if self.managed_store else store)
            else:
                execution.run_algorithm(store)

    def remote(self) -> LightningStore:
        """A client of the store that serves at the configured address; it waits for the store as long as it takes."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.server_host, self.server_host)
        return _client(f"http://{host}:{self.server_port or DEFAULT_PORT}", self.token)

    def serve(self, store: LightningStore) -> Any:
        """A server of ``store``, not yet started, on the configured address."""
        unasked = 0 if self.role == "both" else DEFAULT_PORT
        port = unasked if self.server_port is None else self.server_port
        return _server(store, self.server_host, port, self.token)


def _is_client(store: LightningStore) -> bool:
    from ...rest.client.client import LightningStoreClient

    return isinstance(store, LightningStoreClient)


def _client(address: str, token: str | None) -> LightningStore:
    from ...rest.client.client import LightningStoreClient

    return LightningStoreClient(address, token=token, patience_seconds=math.inf)


def _server(store: LightningStore, host: str, port: int, token: str | None) -> Any:
    from ...rest.server.delegating_store import LightningStoreThreaded
    from ...rest.server.server import LightningStoreServer, PythonServerLauncherArgs

    if not store.capabilities.get("thread_safe", False):
        store = LightningStoreThreaded(store)
    launch = PythonServerLauncherArgs(port=port, host=host, launch_mode="thread")
    return LightningStoreServer(store, launcher_args=launch, token=token)


class _Execution:
    """One call of `execute`."""

    def __init__(
        self, strategy: ClientServerExecutionStrategy, algorithm: AlgorithmBundle, runner: RunnerBundle
    ) -> None:
        self._strategy = strategy
        self._algorithm = algorithm
        self._runner = runner
        self._event = ThreadingEvent()
        self._hurry = threading.Event()
        self._pool: RunnerPool | None = None

    def stop(self) -> None:
        self._event.set()

    def at_once(self) -> None:
        self._event.set()
        self._hurry.set()

    # Runners only

    def run_runners(self, store: LightningStore) -> None:
        """Until the run closes, all have done their rollouts, or Ctrl+C.

        They work for the run that is open, or opens next: one whose end is noticed. Where that was lost and its program
        has been started again, they go on with the next run.
        """
        while not self._event.is_set():
            run_id = self._found_run(store)
            if self._event.is_set():
                return
            runner = self._runner
            if isinstance(runner, ManagedRunner) and not ends_with_runners(self._algorithm) and claims_for_runs(store):
                runner.run_id = run_id
            stop = ThreadingEvent()
            goes_on = threading.Event()
            if run_id is not None:
                watch = (store, run_id, stop, goes_on)
                threading.Thread(target=self._watch_run, args=watch, name="agl-run", daemon=True).start()
            self._work_for_run(store, stop)
            if not goes_on.is_set():
                self._event.set()

    def _work_for_run(self, store: LightningStore, stop: ThreadingEvent) -> None:
        """Run the runners until the end of all, or of the run (``stop``)."""
        strategy = self._strategy
        over = CombinedEvent(self._event, stop)
        if strategy.n_runners == 1:
            self._run_here(store, over)
            return
        # Machines that run several programs of this kind each have a runner 0.
        seen = pickled_copy(store) if strategy.managed_store else store
        pool = RunnerPool(self._runner, strategy.n_runners or 1, seen, strategy.start_method, stop.set, _host())
        self._pool = pool
        pool.start()
        while not over.wait(LOOK_SECONDS):
            pass
        self._end_pool(None)

    def _run_here(self, store: LightningStore, event: ExecutionEvent) -> None:
        if isinstance(self._runner, ManagedRunner) and self._runner.worker_name is None:
            self._runner.worker_name = f"{_host()}-{os.getpid()}-{secrets.token_hex(3)}"
        seen = pickled_copy(store) if self._strategy.managed_store else store
        part = LoopTask("runner-0", lambda: self._then_close(self._runner(seen, 0, event), seen))
        threading.Thread(target=self._cancel_late, args=(part, event), name="agl-stopper", daemon=True).start()
        part.run()
        if part.error is not None:
            raise part.error

    async def _then_close(self, work: Any, store: LightningStore) -> None:
        try:
            await work
        finally:
            if self._strategy.managed_store:
                await cast(Any, store).close()

    def _cancel_late(self, part: LoopTask, event: ExecutionEvent | None = None) -> None:
        """Cancel what still runs when its time after a stop is over; a second Ctrl+C takes the time away."""
        (event or self._event).wait()
        self._hurry.wait(self._strategy.graceful_timeout)
        part.cancel()

    def _found_run(self, store: LightningStore) -> str | None:
        """The run to work for; None after Ctrl+C, and for a store that keeps no runs."""
        watching = pickled_copy(store) if self._strategy.managed_store else store
        found: list[str | None] = []

        async def find() -> None:
            found.append(await open_run(watching, self._event))

        part = LoopTask("run-watch", lambda: self._then_close(find(), watching))
        part.start()
        while not part.done.is_set() and not self._event.wait(LOOK_SECONDS):
            pass
        if part.error is not None:
            raise part.error
        return found[0] if found else None

    def _watch_run(
        self, store: LightningStore, run_id: str, stop: ThreadingEvent, goes_on: threading.Event
    ) -> None:
        """Stop when the run is closed; ``goes_on`` where another one is to be worked for."""
        watching = pickled_copy(store) if self._strategy.managed_store else store

        async def watch() -> None:
            if await until_run_closes(watching, run_id, CombinedEvent(self._event, stop)):
                goes_on.set()

        part = LoopTask("run-watch", lambda: self._then_close(watch(), watching))
        part.run()
        if part.error is not None:
            _log.warning("The end of the run will not be noticed here: %s", part.error)
        elif not self._event.is_set() and not stop.is_set():
            _log.info("Run %s is over; the runners %s.", run_id, "go on with the next" if goes_on.is_set() else "stop")
            stop.set()

    # The algorithm, with or without runners of its own

    def run_algorithm(self, store: LightningStore) -> None:
        strategy, event = self._strategy, self._event
        serving = self._serve(store)
        used: LightningStore = serving if serving is not None else store
        algorithm = LoopTask("algorithm", lambda: self._algorithm(used, event), lambda part: event.set())
        try:
            if strategy.role == "both" and strategy.main_process == "runner":
                self._runner_in_main(algorithm, used)
                return
            if strategy.role == "both":
                self._start_pool(used)
            threading.Thread(target=self._cancel_late, args=(algorithm,), name="agl-stopper", daemon=True).start()
            _log.info("Running algorithm...")
            algorithm.run()
            if strategy.role == "algorithm":
                _linger(used, self._hurry, strategy.graceful_timeout)
            self._end_pool(algorithm.error)
        finally:
            event.set()
            if self._pool is not None:
                self._pool.stop(0.0, 1.0, self._hurry)
            if serving is not None:
                _stop(serving)
        if algorithm.error is not None:
            raise algorithm.error

    def _serve(self, store: LightningStore) -> Any:
        """The store as a server that has started; None where it serves already, or is not ours to serve."""
        strategy = self._strategy
        if not strategy.managed_store or (strategy.role == "both" and _is_client(store)):
            return None
        server = strategy.serve(store)
        run_to_end("store-start", server.start)
        _log.info("Starting LightningStore server on %s", server.endpoint.removeprefix("http://"))
        return server

    def _start_pool(self, store: LightningStore) -> None:
        _log.info("Spawning runner processes...")
        strategy = self._strategy
        endpoint = getattr(store, "endpoint", None)
        seen = _client(endpoint, strategy.token) if endpoint is not None else store
        self._pool = RunnerPool(self._runner, strategy.n_runners or 1, seen, strategy.start_method, self._pool_ended)
        self._pool.start()

    def _pool_ended(self) -> None:
        pool = self._pool
        if pool is None:
            return
        if pool.failure is not None:
            report_failure(self._algorithm)
            self._event.set()
        elif ends_with_runners(self._algorithm):
            self._event.set()
        elif not self._event.is_set():
            _log.warning("All runners have done their max_rollouts; the algorithm goes on without them.")

    def _end_pool(self, error: BaseException | None) -> None:
        """Stop the processes. RuntimeError where they could not work, or ended as they should not, unless `error` is one."""
        if self._pool is None:
            return
        pool, self._pool, strategy = self._pool, None, self._strategy
        _log.info("Shutting down subprocesses")
        codes = pool.stop(strategy.graceful_timeout, strategy.terminate_timeout, self._hurry)
        if error is not None:
            return
        if pool.failure is not None:
            raise RuntimeError(pool.failure.message)
        bad = [code for code in codes if code is not None and code not in strategy.allowed_exit_codes]
        if bad and not self._hurry.is_set():
            raise RuntimeError(f"Runner processes ended with unexpected exit codes: {bad}")

    def _runner_in_main(self, algorithm: LoopTask, store: LightningStore) -> None:
        event = self._event
        alone = ends_with_runners(self._algorithm)
        runner = LoopTask(
            "runner-0", lambda: self._runner(store, 0, event), lambda part: event.set() if part.error or alone else None
        )
        for part in (algorithm, runner):
            threading.Thread(target=self._cancel_late, args=(part,), name="agl-stopper", daemon=True).start()
        algorithm.start()
        runner.run()
        while not algorithm.done.wait(LOOK_SECONDS):
            if self._hurry.is_set():
                algorithm.done.wait(HURRIED_SECONDS)
                break
        error = first_error([algorithm, runner])
        if error is not None:
            raise error


def _host() -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in socket.gethostname())[:LONGEST_HOST]


def _linger(store: LightningStore, hurry: threading.Event, grace_seconds: float) -> None:
    """Serve on while runners elsewhere notice that the run is closed, and finish what they run."""

    async def wait() -> None:
        began = time.monotonic()
        while not hurry.is_set() and time.monotonic() - began < NOTICE_SECONDS + grace_seconds:
            now, workers = time.time(), await store.query_workers()
            busy = any(one.status == "busy" and now - _last_heard(one) < LOST_SECONDS for one in workers)
            if not busy and time.monotonic() - began >= NOTICE_SECONDS:
                return
            if all(now - _last_heard(one) > SILENT_SECONDS for one in workers):
                return
            await asyncio.sleep(LOOK_SECONDS)

    run_to_end("linger", wait)


def _last_heard(worker: Worker) -> float:
    times = (worker.last_heartbeat_time, worker.last_dequeue_time, worker.last_busy_time, worker.last_idle_time)
    return max(time or 0.0 for time in times)


def _stop(server: Any) -> None:
    try:
        run_to_end("store-stop", server.stop)
    except Exception:
        # The run is over and its result stands; the port goes with the process.
        _log.exception("The store's server did not stop well.")


async def open_run(store: LightningStore, event: ExecutionEvent) -> str | None:
    """The newest run that is open, or else the next one that opens; None once ``event`` is set, or for a store without runs.

    A run that has runners of its own is none to work for.
    """
    query: Any = getattr(store, "query_runs", None)
    known: set[str] | None = None
    explained = False
    while query is not None and not event.is_set():
        found = await patiently(partial(query, brief=True), "The run")
        runs = _for_others(found)
        taken = [run["run_id"] for run in found if run["closed_at"] is None and run not in runs]
        if taken and not explained:
            explained = True
            _log.warning("Run %s has runners of its own, and no others get its rollouts; waiting for another run.", taken[-1])
        opened = [run["run_id"] for run in runs if run["closed_at"] is None]
        # A run that was opened and closed between two looks was the one to wait for.
        passed = [] if known is None else [run["run_id"] for run in runs if run["run_id"] not in known]
        if opened or passed:
            return (opened or passed)[-1]
        known = {run["run_id"] for run in runs}
        await until_set(event, POLL_SECONDS)
    return None


async def until_run_closes(store: LightningStore, run_id: str, event: ExecutionEvent) -> bool:
    """Return when the run is closed, or when ``event`` is set; whether there is another run to go on with.

    That is so where the run was lost, or is gone with its store, and its program was started again.
    """
    query: Any = cast(Any, store).query_runs
    lost_at: float | None = None
    while not event.is_set():
        try:
            [run] = await patiently(partial(query, run_id, brief=True), "The end of the run")
        except NotFound:  # the store was begun anew
            return True
        if run["closed_at"] is not None and run["outcome"] != LOST:
            return False
        if run["closed_at"] is not None:
            runs = _for_others(await patiently(partial(query, brief=True), "The end of the run"))
            later = [one for one in runs if one["opened_at"] > run["opened_at"]]
            lost_at = time.monotonic() if lost_at is None else lost_at
            if later or time.monotonic() - lost_at > NEXT_SECONDS:
                return any(one["closed_at"] is None for one in later)
        await until_set(event, POLL_SECONDS)
    return False


def _for_others(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without those that have runners of their own, which older stores do not know."""
    return [run for run in runs if not run.get("own_runners")]
