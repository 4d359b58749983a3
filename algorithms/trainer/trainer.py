"""Trainer: puts an algorithm, an agent and a store together and runs them to the end."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Sequence
from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from ...core.errors import InvalidInput
from ...core.model.hooks import Hook
from ...core.model.resources import NamedResources, validate_resources
from ...core.model.rollout import RolloutConfig
from ...core.model.scalars import plain_scalar
from ...core.model.store_interface import LightningStore
from ...runners.agent.decorators import as_agent
from ...runners.pool.process import exit_if_importing
from ...runners.tracing.base import Tracer
from ...runners.worker.base import Runner
from ..algorithm import Algorithm
from ..baseline import Baseline, FastAlgorithm
from ..execution.base import ExecutionStrategy, whole_number
from ..execution.client_server import ClientServerExecutionStrategy
from ..runs.recorder import RunStart, claims_for_runs, new_run_id
from .algorithm_task import AlgorithmTask, RunnerTask
from .components import RunnerFactory, Spec, StoreHandle, TracerFactory, build_component
from .result import FitResult

if TYPE_CHECKING:
    from ..adapters.base import Adapter

__all__ = ["Trainer"]

_log = logging.getLogger("agentlightning.trainer")
_EXECUTION = f"{__name__.rpartition('.trainer.')[0]}.execution"
_STRATEGIES = {
    "shm": f"{_EXECUTION}.shared_memory.SharedMemoryExecutionStrategy",
    "cs": f"{_EXECUTION}.client_server.ClientServerExecutionStrategy",
}
_CARRIED = ("n_runners", "max_rollouts", "initial_resources", "port", "rollout_config", "tracer", "_dev", "daemon")


class Trainer:
    """Runs an algorithm and its runners: ``Trainer(algorithm=search, n_runners=4).fit(agent, tasks)``.

    Components may be given as objects, classes, names or dicts, see `build_component`.

    Args:
        n_runners: workers that run the agent; 1 when None. That of a strategy wins.
        max_rollouts: how many rollouts each worker executes, also where its process has to be replaced; None for no
            limit.
        initial_resources: what the algorithm starts with; texts are prompts.
        tracer: records what agents do; AgentOpsTracer when None. Every worker gets one of its own.
        adapter: makes training data of spans; TracerTraceToTriplet when None. A dict without a type has its arguments.
        store: a store, or its address. None: the log file ``./.agl/log.db``, which the next start finds again; where
            another process writes that file, one of its own beside it.
        runner: a LitAgentRunner when None. Every worker gets one of its own.
        strategy: ``"cs"`` (when None), runners in processes of their own; ``"shm"``, runners in threads.
        port: where the store serves, with a client-server strategy.
        algorithm: an Algorithm, an ``@algo`` function, or None: the runners work on what others enqueue.
        llm_proxy: a proxy of models, handed to the algorithm.
        hooks: a hook, or several, called around every rollout.
        rollout_config: timeouts and retries of the rollouts that the algorithm enqueues without saying so itself.
        seed: of ``random`` (and numpy's, where it is loaded) while the algorithm runs; kept with the run, for its replay.
        name: of the run in the log.
        progress: say on standard error how far a fit is: one live line on a terminal, a line every 10 s elsewhere.
        dev, n_workers, max_tasks, triplet_exporter: older names of ``dev()``, ``n_runners``, ``max_rollouts`` and
            ``adapter``.
        daemon: whether worker processes of the first generation are daemons.
    """

    def __init__(
        self,
        *,
        dev: bool = False,
        n_runners: int | None = None,
        max_rollouts: int | None = None,
        initial_resources: NamedResources | None = None,
        tracer: Spec[Tracer] = None,
        adapter: Spec[Adapter[Any, Any]] = None,
        store: Spec[LightningStore] | PathLike[str] = None,
        runner: Spec[Runner[Any]] = None,
        strategy: Spec[ExecutionStrategy] = None,
        port: int | None = None,
        algorithm: Spec[Algorithm] = None,
        llm_proxy: Any = None,
        n_workers: int | None = None,
        max_tasks: int | None = None,
        daemon: bool = True,
        triplet_exporter: Spec[Adapter[Any, Any]] = None,
        hooks: Hook | Sequence[Hook] | None = None,
        rollout_config: RolloutConfig | None = None,
        seed: int | None = None,
        name: str = "",
        progress: bool = True,
    ) -> None:
        _warn_of_older_names(dev=dev or None, n_workers=n_workers, max_tasks=max_tasks)
        if not daemon:
            _log.warning("daemon=False matters for worker processes of the first generation only.")
        self._dev = dev
        self.daemon = daemon
        self.port = port
        self.seed: int | None = plain_scalar(seed)
        self.name = name
        self.progress = progress
        self.rollout_config = rollout_config
        self.max_rollouts = _given_number(max_rollouts=max_rollouts, max_tasks=max_tasks)
        self.n_runners: int = _given_number(n_runners=n_runners, n_workers=n_workers) or 1
        self.initial_resources = None if initial_resources is None else validate_resources(initial_resources)
        self.hooks: tuple[Hook, ...] = (hooks,) if isinstance(hooks, Hook) else tuple(hooks or ())
        self._adapter_spec = adapter if adapter is not None else triplet_exporter
        self._adapter: Any = None
        self._stores = StoreHandle(store)
        self.strategy = self._make_strategy(strategy)
        self.n_runners = self.strategy.n_runners or self.n_runners
        self._tracer_spec = tracer
        self._runner_spec = runner
        self.tracer: Tracer = TracerFactory(tracer, daemon)()
        self.algorithm = _algorithm(algorithm)
        self.llm_proxy = self._make_proxy(llm_proxy)

    # Components

    def _make_strategy(self, spec: Any) -> ExecutionStrategy:
        defaults: dict[str, Any] = {"n_runners": self.n_runners}
        if self.port is not None:
            defaults["server_port"] = self.port
        strategy = build_component(
            spec,
            expected_type=ExecutionStrategy,
            spec_name="strategy",
            default_factory=lambda: ClientServerExecutionStrategy(**defaults),
            optional_defaults=defaults,
            registry=_STRATEGIES,
        )
        assert strategy is not None
        if isinstance(strategy, ClientServerExecutionStrategy) and self.port is not None:
            strategy.server_port = self.port
        return strategy

    def _make_proxy(self, spec: Any) -> Any:
        """Any object that is not a spec is taken for a proxy: this package has no class of its own to compare with."""
        if not isinstance(spec, str | dict | type):
            return spec
        return build_component(
            spec, expected_type=object, spec_name="llm_proxy", optional_defaults={"store": self._stores.get}
        )

    @property
    def adapter(self) -> Any:
        """What makes training data of spans; built when it is first needed."""
        if self._adapter is None:
            from ..adapters.base import Adapter
            from ..adapters.triplets import TracerTraceToTriplet

            self._adapter = build_component(
                self._adapter_spec,
                expected_type=cast("type[Any]", Adapter),
                spec_name="adapter",
                default_factory=TracerTraceToTriplet,
                dict_requires_type=False,
                dict_default_cls=TracerTraceToTriplet,
            )
        return self._adapter

    @property
    def triplet_exporter(self) -> Any:
        """The older name of :attr:`adapter`."""
        return self.adapter

    @property
    def store(self) -> LightningStore:
        """The store, opened if it is not; one that was opened before a fit stays open after it."""
        return self._stores.get()

    @property
    def runner(self) -> Runner[Any]:
        """A runner as each worker gets one."""
        return self._runners()()

    def _runners(self) -> RunnerFactory:
        return RunnerFactory(self._runner_spec, TracerFactory(self._tracer_spec, self.daemon), self.max_rollouts)

    @property
    def n_workers(self) -> int:
        """The older name of :attr:`n_runners`."""
        return self.n_runners

    @property
    def max_tasks(self) -> int | None:
        """The older name of :attr:`max_rollouts`."""
        return self.max_rollouts

    def __getstate__(self) -> dict[str, Any]:
        """In a worker process, what an agent asks its trainer for: the tracer and the plain settings."""
        return {name: self.__dict__[name] for name in _CARRIED}

    # Running

    def fit(
        self,
        agent: Any,
        train_dataset: Any = None,
        dev_backend: Any = None,
        *,
        val_dataset: Any = None,
        backend: Any = None,
        endpoint: Any = None,
    ) -> FitResult:
        """Run to the end, or to Ctrl+C, and return what came of it.

        The first Ctrl+C takes no more work and waits for what runs, as long as the strategy's grace time; a second one
        ends at once. Either way the log has all that was acknowledged, and the next start goes on with it.

        Args:
            agent: a LitAgent or a function.
            train_dataset, val_dataset: given to the algorithm. A URL or a client as ``train_dataset`` is ``backend``.
            backend, endpoint: the address of a server of the first generation, or a client of one.
            dev_backend: used instead of ``backend`` with ``dev=True``.

        Raises what the algorithm raises, and RuntimeError where the runners cannot work.
        """
        backend = endpoint if backend is None else backend
        if _is_backend(train_dataset):
            train_dataset, backend = None, train_dataset
        if backend is None and dev_backend is None:
            return self._fit(agent, self.algorithm, train_dataset, val_dataset)
        if train_dataset is not None or val_dataset is not None:
            raise TypeError("fit() takes datasets, or the backend of the first generation, whose server has the tasks")
        self.fit_v0(agent, backend, dev_backend=dev_backend)
        return FitResult(run_id="")

    def dev(self, agent: Any, train_dataset: Any = None, *, val_dataset: Any = None) -> FitResult:
        """As :meth:`fit`, with a quick algorithm: Baseline when there is none, TypeError for one that is not quick."""
        algorithm = self.algorithm if self.algorithm is not None else Baseline()
        if not isinstance(algorithm, FastAlgorithm):
            raise TypeError(
                "Trainer.dev() requires an algorithm that inherits from FastAlgorithm. "
                f"Received {type(algorithm).__name__}."
            )
        return self._fit(agent, algorithm, train_dataset, val_dataset)

    def fit_v0(
        self,
        agent: Any,
        train_data: Any = None,
        *,
        val_data: Any = None,
        dev_data: Any = None,
        dev_backend: Any = None,
    ) -> None:
        """Run the agent on the tasks of a server of the first generation.

        Args:
            train_data: the address of the server, or a client of it.
            val_data: not used: the server has all tasks.
            dev_data, dev_backend: with ``dev=True`` used instead of ``train_data``, such as a ``DevTaskLoader``.

        Raises TypeError where ``dev=True`` has no client, and for a dataset: `fit` takes those.
        """
        fit_v0 = import_module("...compat.worker_pool", __package__).fit_v0
        del val_data
        chosen = train_data
        if self._dev:
            chosen = dev_data if dev_data is not None else dev_backend
            if chosen is None:
                raise TypeError("With dev=True give dev_data or dev_backend, such as agl.DevTaskLoader(tasks, resources)")
        if not _is_backend(chosen):
            raise TypeError(f"fit_v0() takes the address of a server, or a client, not {type(chosen).__name__}; fit() datasets")
        fit_v0(
            agent,
            chosen,
            n_workers=self.n_runners,
            max_tasks=self.max_rollouts,
            tracer=self.tracer,
            adapter=self.adapter,
            daemon=self.daemon,
        )

    def _fit(self, agent: Any, algorithm: Algorithm | None, train_dataset: Any, val_dataset: Any) -> FitResult:
        exit_if_importing()
        if algorithm is None and not (train_dataset is None and val_dataset is None):
            raise InvalidInput(
                "A dataset was given and no algorithm that reads it: give Trainer an algorithm=, or call dev(), which runs "
                "the agent once on every sample. Without a dataset, fit() executes what others enqueue"
            )
        agent = as_agent(agent)
        agent.set_trainer(self)
        side = AlgorithmTask(
            trainer=self,
            algorithm=algorithm,
            start=self._start(agent, algorithm, train_dataset, val_dataset),
            train_dataset=train_dataset,
            val_dataset=val_dataset,
            adapter=self._adapter_spec,
            llm_proxy=self.llm_proxy,
            initial_resources=self.initial_resources,
            rollout_config=self.rollout_config,
            run_id=new_run_id(),
            progress=self.progress,
        )
        runner = RunnerTask(agent, self.hooks, self._runners(), self)
        if not self.strategy.needs_store:
            self.strategy.execute(side, runner, LightningStore())
        else:
            with self._stores.opened() as store:
                if algorithm is not None and self.strategy.own_runners and claims_for_runs(store):
                    side.own_runners, runner.run_id = True, side.run_id
                self.strategy.execute(side, runner, store)
        return side.result or FitResult(run_id="", outcome="interrupted")

    def _start(self, agent: Any, algorithm: Algorithm | None, train_dataset: Any, val_dataset: Any) -> RunStart:
        """How the log describes the run."""
        return RunStart(
            name=self.name,
            algorithm=_name_of(algorithm),
            agent=_name_of(agent),
            parameters={
                "n_runners": self.n_runners,
                "max_rollouts": self.max_rollouts,
                "strategy": type(self.strategy).__name__,
                "rollout_config": None if self.rollout_config is None else self.rollout_config.model_dump(mode="json"),
            },
            seed=self.seed,
            train_dataset=train_dataset,
            val_dataset=val_dataset,
            initial_resources=self.initial_resources,
        )


def _given_number(**given: Any) -> int | None:
    """The first of these arguments that is not None. InvalidInput for one that is no whole number from 1 on."""
    found = [whole_number(name, value, 1) for name, value in given.items() if value is not None]
    return found[0] if found else None


def _algorithm(spec: Any) -> Algorithm | None:
    if inspect.isroutine(spec):
        needed = [one for one in inspect.signature(spec).parameters.values() if one.default is one.empty]
        if inspect.iscoroutinefunction(spec) or any(one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in needed):
            raise TypeError(f"algorithm is the plain function {spec.__name__}(): mark it with @agl.algo")
    return build_component(spec, expected_type=Algorithm, spec_name="algorithm", allow_none=True, registry={})


def _name_of(component: Any) -> str:
    """``module:name`` of a function behind it, or of its class; empty for None."""
    if component is None:
        return ""
    named = component if "__qualname__" in vars(component) else cast(Any, type(component))
    return f"{named.__module__}:{named.__qualname__}"


def _warn_of_older_names(**given: Any) -> None:
    newer = {"dev": "Trainer.dev()", "n_workers": "n_runners", "max_tasks": "max_rollouts"}
    for name, value in given.items():
        if value is not None:
            warnings.warn(f"{name} is deprecated: use {newer[name]}", DeprecationWarning, stacklevel=3)


@runtime_checkable
class _TaskClient(Protocol):
    """What a client of the first generation has; the one of this package is in compat/, above this room."""

    def poll_next_task(self) -> Any:
        """The next task."""
        ...


def _is_backend(value: Any) -> bool:
    """Whether the value is the address of a server of the first generation, or a client of one."""
    return isinstance(value, str | _TaskClient)
