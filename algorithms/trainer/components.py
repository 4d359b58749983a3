"""The components of a trainer: built from an object, class, name or dict; a runner and a tracer for each worker; the store."""

from __future__ import annotations

import importlib
import inspect
import logging
import math
import os
import pickle
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, cast

from ...core.errors import InvalidInput, LogLocked
from ...core.log.open_log import address_of
from ...core.loop_thread import run_to_end
from ...core.model.store_interface import LightningStore
from ...runners.pool.pickling import pickled
from ...runners.tracing.base import Tracer
from ...runners.worker.base import Runner
from ..execution.env_vars import secrets, token

__all__ = ["DEFAULT_FILE", "RunnerFactory", "Spec", "StoreHandle", "TracerFactory", "build_component"]

_log = logging.getLogger("agentlightning.trainer")
DEFAULT_FILE = Path(".agl") / "log.db"
_MOST_FILES = 1000

T = TypeVar("T")
Spec = Union[T, Callable[..., T], str, Mapping[str, Any], None]  # noqa: UP007 (an alias with a variable, for 3.10)
"""What `build_component` takes: the component, its class or a function that makes it, a name, or a dict."""


def build_component(
    spec: Any,
    *,
    expected_type: type[T],
    spec_name: str,
    default_factory: Callable[[], T] | None = None,
    allow_none: bool = False,
    optional_defaults: Mapping[str, Any] | None = None,
    dict_requires_type: bool = True,
    dict_default_cls: type[T] | None = None,
    type_error_fmt: str | None = None,
    invalid_spec_error_fmt: str | None = None,
    registry: Mapping[str, Any] | None = None,
) -> T | None:
    """The component that ``spec`` describes.

    Args:
        spec: the component itself; None; a class or another callable, called; a key of ``registry`` or a dotted path
            such as ``"package.module.Class"``; or a dict with ``type`` (either of those) or ``name`` (a key), whose
            other entries are arguments.
        expected_type: what has to come out of it.
        spec_name: what messages call it.
        default_factory: makes what None stands for; otherwise None is ``allow_none``, or a ValueError.
        optional_defaults: parameter -> value, or a function without arguments that makes it: for constructors that
            take the parameter and were not given it.
        dict_requires_type: whether a dict has to name a type; otherwise ``dict_default_cls`` is meant.
        type_error_fmt, invalid_spec_error_fmt: messages, with ``{type_name}`` and ``{actual_type}`` in their place.

    TypeError where something of another type comes out, ValueError for a spec of no use.
    """
    if spec is None:
        if default_factory is not None:
            return default_factory()
        if allow_none:
            return None
        raise InvalidInput(f"{spec_name} cannot be None.")
    value: Any
    if isinstance(spec, expected_type):
        value = spec
    elif isinstance(spec, str):
        value = _construct(_resolve(spec, spec_name, registry), {}, optional_defaults)
    elif isinstance(spec, dict):
        given = dict(cast("dict[str, Any]", spec))
        maker = _type_of(given, spec_name, registry, dict_requires_type, dict_default_cls)
        value = _construct(maker, given, optional_defaults)
    elif callable(spec):
        value = _construct(spec, {}, optional_defaults)
    else:
        message = (
            invalid_spec_error_fmt
            or "Invalid {name} type: {actual_type}. Expected {expected_type}, str, dict, or None."
        )
        raise InvalidInput(
            message.format(name=spec_name, actual_type=_kind(spec), expected_type=expected_type.__name__)
        )
    if not isinstance(value, expected_type):
        message = type_error_fmt or "{name} factory returned {type_name}, which is not a {expected_type} subclass."
        raise TypeError(message.format(name=spec_name, type_name=_kind(value), expected_type=expected_type.__name__))
    return value


def _kind(value: object) -> type[object]:
    return type(value)


def _type_of(
    given: dict[str, Any], name: str, registry: Mapping[str, Any] | None, required: bool, default: type[Any] | None
) -> Any:
    """What a dict describes; its entry is taken out, and what is left are arguments."""
    for key in ("type", "name"):
        named = given.get(key)
        if key == "name" and (not isinstance(named, str) or named not in (registry or {})):
            continue  # then it is an argument
        if named is not None:
            del given[key]
            return named if callable(named) else _resolve(named, name, registry)
    if required or default is None:
        raise InvalidInput(f"{name} dict must have a 'type' key with the class full name")
    return default


def _resolve(path: Any, name: str, registry: Mapping[str, Any] | None) -> Any:
    if isinstance(path, str) and registry is not None and path in registry:
        found = registry[path]
        return _resolve(found, name, None) if isinstance(found, str) else found
    module, _, attribute = path.rpartition(".") if isinstance(path, str) else ("", "", "")
    known = f"; there are {', '.join(registry)}" if registry else ""
    if not module:
        raise InvalidInput(f"{path!r} is no {name}: give a path such as 'package.module.Class'{known}")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InvalidInput(f"{path!r} is no {name}: {error}{known}") from error


def _construct(maker: Any, given: dict[str, Any], defaults: Mapping[str, Any] | None) -> Any:
    arguments = dict(given)
    for parameter, value in (defaults or {}).items():
        if parameter not in arguments and _accepts(maker, parameter):
            arguments[parameter] = value() if callable(value) and not isinstance(value, type) else value
    return maker(**arguments)


def _accepts(maker: Any, parameter: str) -> bool:
    """Whether it has this parameter; a constructor with ``**kwargs`` is asked for the one that it passes them on to."""
    if isinstance(maker, type):
        makers = [base.__dict__["__init__"] for base in maker.__mro__ if "__init__" in base.__dict__]
    else:
        makers = [maker]
    for one in makers:
        try:
            parameters = inspect.signature(one).parameters
        except (TypeError, ValueError):
            return False
        if parameter in parameters:
            return True
        if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
            return False
    return False


class CopyFactory:
    """Makes objects like ``value``, which must not have begun its work; the first call gives ``value`` itself."""

    def __init__(self, value: Any, what: str) -> None:
        self._value = value
        self._what = what
        self._given = False
        self._copy: bytes | None = None
        self._refusal: InvalidInput | None = None
        self._guard = threading.Lock()

    def __getstate__(self) -> tuple[Any, str]:
        return self._value, self._what

    def __setstate__(self, state: tuple[Any, str]) -> None:
        self.__init__(*state)

    def __call__(self) -> Any:
        """One more."""
        with self._guard:
            if not self._given:
                self._given = True
                try:
                    self._copy = pickled(self._value)
                except InvalidInput as error:
                    self._refusal = error
                return self._value
            if self._copy is None:
                reason = "" if self._refusal is None else self._refusal.message
                _log.warning("The %s is shared by several workers of this process: %s", self._what, reason)
                return self._value
            return pickle.loads(self._copy)


@dataclass
class TracerFactory:
    """Tracers from ``spec``: a Tracer, of which every worker gets one like it, or a spec of `build_component`."""

    spec: Any
    daemon: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.spec, Tracer):
            self.spec = CopyFactory(self.spec, "tracer")

    def __call__(self) -> Tracer:
        """One more; an AgentOpsTracer where nothing was given."""
        if isinstance(self.spec, CopyFactory):
            return self.spec()
        tracer = build_component(
            self.spec, expected_type=Tracer, spec_name="tracer", default_factory=lambda: _default_tracer(self.daemon)
        )
        assert tracer is not None
        return tracer


def _default_tracer(daemon: bool) -> Tracer:
    from ...runners.tracing.agentops import AgentOpsTracer

    return AgentOpsTracer(agentops_managed=True, instrument_managed=True, daemon=daemon)


@dataclass
class RunnerFactory:
    """Runners from ``spec``, as :class:`TracerFactory`; those that take a tracer get one of their own."""

    spec: Any
    tracers: TracerFactory
    max_rollouts: int | None

    def __post_init__(self) -> None:
        spec: Any = self.spec
        if isinstance(spec, Runner):
            self.spec = CopyFactory(cast(Any, spec), "runner")

    def __call__(self) -> Runner[Any]:
        """One more; a LitAgentRunner where nothing was given."""
        if isinstance(self.spec, CopyFactory):
            return self.spec()
        runner: Any = build_component(
            self.spec,
            expected_type=Runner,
            spec_name="runner",
            default_factory=self._default,
            optional_defaults={"tracer": self.tracers, "max_rollouts": self.max_rollouts},
        )
        return runner

    def _default(self) -> Runner[Any]:
        from ...runners.worker.runner import LitAgentRunner

        return LitAgentRunner(self.tracers(), max_rollouts=self.max_rollouts)


class StoreHandle:
    """Holds a store, or what one is made of: an address (``sqlite:///``, ``http://``, ``kafka://``, ``memory://``) or
    a spec of `build_component`. None is ``./.agl/log.db``; where another process writes that file, one of its own.
    """

    def __init__(self, spec: Any) -> None:
        self._spec = spec
        self._store: LightningStore | None = spec if isinstance(spec, LightningStore) else None

    def get(self) -> LightningStore:
        """The store; opened if it is not."""
        if self._store is None:
            self._store = self._open()
        return self._store

    @contextmanager
    def opened(self) -> Generator[LightningStore, None, None]:
        """The store for this block. What opened it closes it: the block, unless it was open already."""
        before = self._store
        store = self.get()
        try:
            yield store
        finally:
            if before is None:
                self._store = None
                _close(store)

    def _open(self) -> LightningStore:
        if self._spec is None:
            return _open_default()
        if isinstance(self._spec, str) and "://" in self._spec:
            return _open_url(self._spec)
        given: object = self._spec
        if isinstance(given, os.PathLike):
            return _open_url(address_of(cast(object, given)))
        built = build_component(self._spec, expected_type=LightningStore, spec_name="store")
        assert built is not None
        return built


def _open_url(url: str) -> LightningStore:
    from ...rest.client.client import LightningStoreClient
    from ...rest.open_store import open_store

    if url.startswith(("http://", "https://")):
        # A store that is away for a while costs that while.
        return LightningStoreClient(url, token=token(), patience_seconds=math.inf)
    return open_store(url, environment=secrets())


def _open_default() -> LightningStore:
    try:
        return _open_url(f"sqlite:///./{DEFAULT_FILE}")
    except LogLocked as locked:
        refusal = locked
    for number in range(2, _MOST_FILES):
        path = DEFAULT_FILE.with_name(f"log-{number}.db")
        if path.exists():
            continue
        try:
            store = _open_url(f"sqlite:///./{path}")
        except LogLocked:
            continue
        who = "another process" if refusal.pid is None else f"process {refusal.pid}"
        _log.warning("%s is written by %s; this run is kept in %s.", DEFAULT_FILE, who, path)
        return store
    raise refusal


def _close(store: LightningStore) -> None:
    close: Any = getattr(store, "close", None)
    result = close() if close is not None else None
    if inspect.isawaitable(result):

        async def wait() -> None:
            await result

        run_to_end("store-close", wait)
