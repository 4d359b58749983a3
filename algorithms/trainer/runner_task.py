"""Making a runner and a tracer for each worker, from whatever the trainer was given."""

from __future__ import annotations

import logging
import pickle
import threading
from dataclasses import dataclass
from typing import Any, cast

from ...core.errors import InvalidInput
from ...runners.pool.pickling import carried
from ...runners.tracing.base import Tracer
from ...runners.worker.base import Runner
from .components import build_component

__all__ = ["Another", "RunnerMaker", "TracerMaker"]

_log = logging.getLogger("agentlightning.trainer")


class Another:
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
                    self._copy = carried(self._value)
                except InvalidInput as error:
                    self._refusal = error
                return self._value
            if self._copy is None:
                reason = "" if self._refusal is None else self._refusal.message
                _log.warning("The %s is shared by several workers of this process: %s", self._what, reason)
                return self._value
            return pickle.loads(self._copy)


@dataclass
class TracerMaker:
    """Tracers from ``spec``: a Tracer, of which every worker gets one like it, or a spec of `build_component`."""

    spec: Any
    daemon: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.spec, Tracer):
            self.spec = Another(self.spec, "tracer")

    def __call__(self) -> Tracer:
        """One more; an AgentOpsTracer where nothing was given."""
        if isinstance(self.spec, Another):
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
class RunnerMaker:
    """Runners from ``spec``, as :class:`TracerMaker`; those that take a tracer get one of their own."""

    spec: Any
    tracers: TracerMaker
    max_rollouts: int | None

    def __post_init__(self) -> None:
        spec: Any = self.spec
        if isinstance(spec, Runner):
            self.spec = Another(cast(Any, spec), "runner")

    def __call__(self) -> Runner[Any]:
        """One more; a LitAgentRunner where nothing was given."""
        if isinstance(self.spec, Another):
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
