"""Functions as agents: parameters are filled by their names with what the rollout was bound to."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast, overload

from ...core.errors import InvalidInput
from ...core.model.resources import LLM, NamedResources, PromptTemplate, ProxyLLM
from ...core.model.rollout import AttemptedRollout, Rollout, RolloutRawResult
from .litagent import LitAgent

__all__ = ["FunctionalLitAgent", "as_agent", "llm_rollout", "prompt_rollout", "rollout"]

T = TypeVar("T")
Func = Callable[..., Any]

_log = logging.getLogger(__name__)


class FunctionalLitAgent(LitAgent[T]):
    """An agent made of one function, and still callable as that function.

    The task is passed first. Further parameters are filled by name: ``rollout`` with the claimed rollout,
    ``resources`` with all resources, and any other with the resource of that name. Where there is no such one,
    ``llm`` and ``prompt_template`` get the first resource of their kind, and others keep their default. What a
    ``functools.partial`` has filled in stays.
    With ``strip_proxy`` a proxied model is handed over as a plain one whose endpoint is routed to the attempt.
    ``strict_prompts`` as in :class:`LitAgent`.
    """

    def __init__(self, rollout_func: Func, *, strip_proxy: bool = True, strict_prompts: bool = False) -> None:
        super().__init__()
        self.strict_prompts = strict_prompts
        self._func = rollout_func
        self._strip_proxy = strip_proxy
        self._is_async = _is_coroutine(rollout_func)
        given = getattr(rollout_func, "keywords", {}) if type(rollout_func) is functools.partial else {}
        self._parameters = {
            name: parameter.default is inspect.Parameter.empty
            for name, parameter in list(inspect.signature(rollout_func).parameters.items())[1:]
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and name not in given
        }
        functools.update_wrapper(cast(Any, self), rollout_func, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function itself, with its own arguments."""
        return self._func(*args, **kwargs)

    def is_async(self) -> bool:
        """Whether the function is a coroutine function."""
        return self._is_async

    @property
    def needs_resources(self) -> bool:
        """Whether the function has a parameter that only resources can fill."""
        asked = {name for name, required in self._parameters.items() if required or name in _KINDS}
        return bool(asked - {"rollout"})

    def rollout(self, task: T, resources: NamedResources, rollout: Rollout) -> RolloutRawResult:
        """Call the function; RuntimeError when it is asynchronous."""
        if self._is_async:
            raise RuntimeError("The function is asynchronous: use rollout_async()")
        return self._func(task, **self._injected(resources, rollout))

    async def rollout_async(self, task: T, resources: NamedResources, rollout: Rollout) -> RolloutRawResult:
        """Await the function; RuntimeError when it is synchronous."""
        if not self._is_async:
            raise RuntimeError("The function is synchronous: use rollout()")
        return await self._func(task, **self._injected(resources, rollout))

    def _injected(self, resources: NamedResources, rollout: Rollout) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, required in self._parameters.items():
            if name == "rollout":
                values[name] = rollout
            elif name == "resources":
                values[name] = resources
            elif name in _KINDS:
                values[name] = self._routed(_named_or_first(resources, name, *_KINDS[name]), rollout)
            elif name in resources:
                values[name] = self._routed(resources[name], rollout)
            elif required:
                known = ", ".join(sorted(resources)) or "none"
                raise InvalidInput(f"The agent's parameter {name!r} is no resource; the resources are: {known}.")
        return values

    def _routed(self, resource: Any, rollout: Rollout) -> Any:
        if not self._strip_proxy or not isinstance(resource, ProxyLLM):
            return resource
        if not isinstance(rollout, AttemptedRollout):
            raise InvalidInput("Rollout is not an AttemptedRollout.")
        return resource.with_attempted_rollout(rollout)


_KINDS: dict[str, tuple[type[Any], str]] = {
    "llm": (LLM, "LLM"),
    "prompt_template": (PromptTemplate, "prompt template"),
}
"""Parameters that take the first resource of a kind where none has their name."""


def _named_or_first(resources: Mapping[str, Any], name: str, kind: type[Any], what: str) -> Any:
    if isinstance(resources.get(name), kind):
        return resources[name]
    names = [name for name, resource in resources.items() if isinstance(resource, kind)]
    if not names:
        raise InvalidInput(f"No {what} resource found in the provided resources.")
    if len(names) > 1:
        _log.warning("Several %s resources found; using %r and not %s.", what, names[0], names[1:])
    return resources[names[0]]


def _is_coroutine(func: Func) -> bool:
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(getattr(func, "__call__", None))  # noqa: B004


def _names(func: Func) -> list[str]:
    try:
        return list(inspect.signature(func).parameters)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"The signature of {func!r} cannot be read: {error}") from None


def _takes_task(func: Func) -> bool:
    """Whether it has a first parameter that is filled by place."""
    _names(func)
    first = next(iter(inspect.signature(func).parameters.values()), None)
    return first is not None and first.kind not in (first.KEYWORD_ONLY, first.VAR_KEYWORD)


def _name(func: Func) -> str:
    return str(getattr(func, "__name__", "agent"))


def _checked(func: Func, wanted: str) -> Func:
    names = _names(func)
    if len(names) < 2:
        raise InvalidInput(f"Function {names} must have at least 2 parameters: task and {wanted}.")
    if names[0] != "task":
        raise InvalidInput(f"The first parameter must be named 'task', not {names[0]!r}.")
    if wanted not in names:
        raise InvalidInput(f"Function {names} must have a parameter named {wanted!r}.")
    return func


@overload
def llm_rollout(func: Func, *, strip_proxy: bool = True, strict_prompts: bool = False) -> FunctionalLitAgent[Any]: ...
@overload
def llm_rollout(
    func: None = None, *, strip_proxy: bool = True, strict_prompts: bool = False
) -> Callable[[Func], FunctionalLitAgent[Any]]: ...
def llm_rollout(
    func: Func | None = None, *, strip_proxy: bool = True, strict_prompts: bool = False
) -> FunctionalLitAgent[Any] | Callable[[Func], FunctionalLitAgent[Any]]:
    """Make an agent of ``func(task, llm, ...)``; with or without parentheses. ValueError for other signatures."""

    def decorate(function: Func) -> FunctionalLitAgent[Any]:
        return FunctionalLitAgent(_checked(function, "llm"), strip_proxy=strip_proxy, strict_prompts=strict_prompts)

    return decorate if func is None else decorate(func)


@overload
def prompt_rollout(func: Func, *, strict_prompts: bool = False) -> FunctionalLitAgent[Any]: ...
@overload
def prompt_rollout(
    func: None = None, *, strict_prompts: bool = False
) -> Callable[[Func], FunctionalLitAgent[Any]]: ...
def prompt_rollout(
    func: Func | None = None, *, strict_prompts: bool = False
) -> FunctionalLitAgent[Any] | Callable[[Func], FunctionalLitAgent[Any]]:
    """Make an agent of ``func(task, prompt_template, ...)``; with or without parentheses."""

    def decorate(function: Func) -> FunctionalLitAgent[Any]:
        return FunctionalLitAgent(_checked(function, "prompt_template"), strict_prompts=strict_prompts)

    return decorate if func is None else decorate(func)


@overload
def rollout(func: Func, *, strip_proxy: bool = True, strict_prompts: bool = False) -> FunctionalLitAgent[Any]: ...
@overload
def rollout(
    func: None = None, *, strip_proxy: bool = True, strict_prompts: bool = False
) -> Callable[[Func], FunctionalLitAgent[Any]]: ...
def rollout(
    func: Func | None = None, *, strip_proxy: bool = True, strict_prompts: bool = False
) -> FunctionalLitAgent[Any] | Callable[[Func], FunctionalLitAgent[Any]]:
    """Make an agent of a function, with or without parentheses: what :func:`as_agent` takes, and nothing else.

    NotImplementedError for a function that takes no task.
    """

    def decorate(function: Func) -> FunctionalLitAgent[Any]:
        if not _takes_task(function):
            raise NotImplementedError(
                f"Function signature {inspect.signature(function)} does not match any known agent patterns: the first "
                "parameter is the task, and resources follow by their names. Expected signatures: (task), "
                "(task, llm[, rollout]) or (task, prompt_template[, rollout]). Functions can be sync or async."
            )
        return FunctionalLitAgent(function, strip_proxy=strip_proxy, strict_prompts=strict_prompts)

    return decorate if func is None else decorate(func)


def as_agent(agent: Any) -> LitAgent[Any]:
    """``agent`` itself, or a plain function made into one; TypeError for anything else.

    Any function with a first parameter for the task will do: what it does not name it is not given.
    """
    if isinstance(agent, LitAgent):
        return cast("LitAgent[Any]", agent)
    if isinstance(agent, type) or not callable(agent):
        raise TypeError(f"An agent is a LitAgent or a function, not {agent!r}")
    if not _takes_task(agent):
        raise InvalidInput(
            f"An agent takes the task as its first parameter; {agent!r} takes none: write def {_name(agent)}(task, ...)."
        )
    return FunctionalLitAgent(agent)
