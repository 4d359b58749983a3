"""LitAgent: the class of every agent, whether written as a class or as a function."""

from __future__ import annotations

import inspect
import warnings
import weakref
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ...core.errors import InvalidInput
from ...core.model.resources import NamedResources
from ...core.model.rollout import Rollout, RolloutRawResult
from ..tracing.base import CURRENT_RUNNER

if TYPE_CHECKING:
    from ..tracing.base import Tracer
    from ..worker.base import Runner

__all__ = ["LitAgent", "call_for", "is_v0_1_rollout_api"]

T = TypeVar("T")


class LitAgent(Generic[T]):
    """An agent: override ``rollout`` or ``rollout_async``, or the ``training_``/``validation_`` forms.

    ``rollout(task, resources, rollout)`` gets the input of the rollout, the named resources it
    was bound to and the claimed rollout; it returns a reward, a list of spans or None. A
    synchronous agent runs in a thread of its own, with the context of its attempt.
    """

    strict_prompts: bool = False
    """Fail the attempt when ``PromptTemplate.format`` is given a value that the template has no place for.
    Otherwise it is only noted: see ``trace_lint`` of the attempt's metadata."""

    # Defaults for agents whose __init__ does not call this one.
    trained_agents: str | None = None
    _trainer_ref: weakref.ref[Any] | None = None
    _runner_ref: weakref.ref[Runner[Any]] | None = None

    def __init__(self, *, trained_agents: str | None = None) -> None:
        if trained_agents is not None:
            warnings.warn(
                "trained_agents is deprecated: use agent_match of the adapter", DeprecationWarning, stacklevel=2
            )
        self.trained_agents = trained_agents

    def is_async(self) -> bool:
        """Whether the class overrides one of the asynchronous methods."""
        names = ("training_rollout_async", "validation_rollout_async", "rollout_async")
        return any(getattr(type(self), name) is not getattr(LitAgent, name) for name in names)

    def set_trainer(self, trainer: Any) -> None:
        """Remember the trainer, weakly."""
        self._trainer_ref = weakref.ref(trainer)

    def get_trainer(self) -> Any:
        """The trainer; ValueError when none was set or it is gone."""
        return _alive(self.__dict__.get("_trainer_ref"), "Trainer")

    @property
    def trainer(self) -> Any:
        """:meth:`get_trainer`."""
        return self.get_trainer()

    def set_runner(self, runner: Runner[Any]) -> None:
        """Remember the runner, weakly."""
        self._runner_ref = weakref.ref(runner)

    def get_runner(self) -> Runner[Any]:
        """The runner, in an attempt the one that executes it; ValueError when none was set or it is gone.

        Runners in threads of one process share the agent, and the one that was set is that of the last of them.
        """
        current = CURRENT_RUNNER.get()
        if current is not None and current[0] is self:
            return current[1]
        return _alive(self.__dict__.get("_runner_ref"), "Runner")

    @property
    def runner(self) -> Runner[Any]:
        """:meth:`get_runner`."""
        return self.get_runner()

    def get_tracer(self) -> Tracer:
        """The tracer of the runner; that of the trainer where the runner has none."""
        try:
            tracer = getattr(self.get_runner(), "tracer", None)
        except ValueError:
            tracer = None
        return tracer if tracer is not None else self.get_trainer().tracer

    @property
    def tracer(self) -> Tracer:
        """:meth:`get_tracer`."""
        return self.get_tracer()

    @property
    def needs_resources(self) -> bool:
        """Whether an attempt fails where the store has no resources at all."""
        return True

    def on_rollout_start(self, task: T, runner: Any, tracer: Any) -> None:
        """Deprecated: use a Hook. Called by the legacy runner only."""

    def on_rollout_end(self, task: T, rollout: Any, runner: Any, tracer: Any) -> None:
        """Deprecated: use a Hook. Called by the legacy runner only."""

    def rollout(self, task: T, resources: NamedResources, rollout: Rollout) -> RolloutRawResult:
        """Run the agent once; ``rollout`` is the rollout with its attempt, as it was claimed."""
        raise NotImplementedError(f"{type(self).__name__} must override rollout() or rollout_async()")

    async def rollout_async(self, task: T, resources: NamedResources, rollout: Rollout) -> RolloutRawResult:
        """:meth:`rollout` as a coroutine."""
        raise NotImplementedError(f"{type(self).__name__} must override rollout() or rollout_async()")

    # The parameters after the task are any: an agent of the first generation names them (task, rollout_id, resources),
    # which type checkers would refuse as an override of one signature.

    def training_rollout(self, task: T, *args: Any, **kwargs: Any) -> Any:
        """Used for rollouts of mode ``train``; :meth:`rollout`, with the same arguments, unless overridden."""
        return self.rollout(task, *args, **kwargs)

    def validation_rollout(self, task: T, *args: Any, **kwargs: Any) -> Any:
        """Used for rollouts of every other mode; :meth:`rollout` unless overridden."""
        return self.rollout(task, *args, **kwargs)

    async def training_rollout_async(self, task: T, *args: Any, **kwargs: Any) -> Any:
        """As :meth:`training_rollout`; :meth:`rollout_async` unless overridden."""
        return await self.rollout_async(task, *args, **kwargs)

    async def validation_rollout_async(self, task: T, *args: Any, **kwargs: Any) -> Any:
        """As :meth:`validation_rollout`; :meth:`rollout_async` unless overridden."""
        return await self.rollout_async(task, *args, **kwargs)


def _alive(reference: weakref.ref[Any] | None, what: str) -> Any:
    if reference is None:
        raise InvalidInput(f"{what} has not been set for this agent.")
    value = reference()
    if value is None:
        raise InvalidInput(f"{what} reference is no longer valid (object has been garbage collected).")
    return value


def is_v0_1_rollout_api(func: Callable[..., Any]) -> bool:
    """Whether ``func`` takes ``rollout_id``, as methods of the first version did."""
    return "rollout_id" in _parameters(getattr(func, "__func__", func))


@lru_cache(maxsize=64)
def _parameters(func: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Of a function, those of a method with its ``self``; kept, because every rollout asks again."""
    return inspect.signature(func).parameters


def call_for(
    agent: LitAgent[Any], mode: str | None, task: Any, rollout_id: str, resources: NamedResources, rollout: Any
) -> Callable[[], Any]:
    """The call that executes a rollout of this mode, with the first generation's parameters or with today's.

    An agent that only has a training method is validated by it, as in the first generation. ``resources`` and
    ``rollout`` are passed by name, so that their order is the agent's affair, and by place where it calls them otherwise.
    """
    only_training = _own(agent, "training_rollout") and not (_own(agent, "validation_rollout") or _own(agent, "rollout"))
    name = "training_rollout" if mode == "train" or only_training else "validation_rollout"
    kind = "_async" if agent.is_async() else ""
    method = getattr(agent, name + kind)
    # One that is not overridden passes its arguments on.
    inherited = getattr(method, "__func__", None) is getattr(LitAgent, name + kind)
    target = getattr(agent, f"rollout{kind}") if inherited else method
    if is_v0_1_rollout_api(target):
        return lambda: method(task, rollout_id=rollout_id, resources=resources)
    if _takes(target, "resources", "rollout"):
        return lambda: method(task, resources=resources, rollout=rollout)
    return lambda: method(task, resources, rollout)


def _own(agent: LitAgent[Any], name: str) -> bool:
    kinds = (name, f"{name}_async")
    return any(getattr(type(agent), kind) is not getattr(LitAgent, kind) for kind in kinds)


def _takes(func: Callable[..., Any], *names: str) -> bool:
    """Whether all of these may be passed by name."""
    parameters = _parameters(getattr(func, "__func__", func)).values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return True
    by_name = {each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
    return by_name.issuperset(names)
