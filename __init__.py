"""Agent Lightning on an event log: run agents, record what they did, and let algorithms improve them.

::

    import agentlightning as agl

    @agl.rollout
    def agent(task, prompt_template):                 # what is improved
        return 1.0 if "Paris" in prompt_template.format(question=task) else 0.0

    trainer = agl.Trainer(algorithm=agl.Baseline(), initial_resources={"prompt_template": "{question}"})
    trainer.fit(agent, ["Where is the Louvre? Not in Paris?"])   # kept in ./.agl/log.db; `agl ps`, `agl show latest`

- agents: `rollout`, `LitAgent`, `emit_reward`, `emit_annotation`, `operation`
- what is tuned: `PromptTemplate`, `LLM`, `NamedResources`
- training: `Trainer`, `algo`, `Algorithm`, `Baseline`, `SuccessiveHalving`, `TracerTraceToTriplet`, `TraceToMessages`
- the store: `open_store`, `LightningStore`, `LightningStoreClient`, `LightningStoreServer`, `subscriber`
- what runs agents: `LitAgentRunner`, `OtelTracer`, `AgentOpsTracer`; in a terminal `agl --help`

The pages are in `docs/`, and `help(agl.Trainer)` explains one name. Every error on purpose is an `AgentLightningError`.
"""

# Importing this module loads no room: a name is imported where it is first used (PEP 562), so that the import stays quick,
# opens no socket and needs no optional library. To export a name, add it twice, in alphabetical order: to `_EXPORTS` under
# the module that defines it, and to the TYPE_CHECKING block as `X as X`, which is what type checkers and editors read.
# tests/repository/test_import.py compares the two.

from __future__ import annotations

import os as _os
import sys as _sys
import warnings as _warnings
from importlib import import_module as _import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .algorithms.adapters.base import Adapter as Adapter
    from .algorithms.adapters.base import OtelTraceAdapter as OtelTraceAdapter
    from .algorithms.adapters.base import TraceAdapter as TraceAdapter
    from .algorithms.adapters.llm_proxy import LlmProxyTraceToTriplet as LlmProxyTraceToTriplet
    from .algorithms.adapters.messages import TraceToMessages as TraceToMessages
    from .algorithms.adapters.triplets import TracerTraceToTriplet as TracerTraceToTriplet
    from .algorithms.adapters.triplets import TraceToTripletBase as TraceToTripletBase
    from .algorithms.algorithm import Algorithm as Algorithm
    from .algorithms.algorithm import algo as algo
    from .algorithms.baseline import Baseline as Baseline
    from .algorithms.baseline import FastAlgorithm as FastAlgorithm
    from .algorithms.execution.base import ExecutionStrategy as ExecutionStrategy
    from .algorithms.execution.client_server import ClientServerExecutionStrategy as ClientServerExecutionStrategy
    from .algorithms.execution.env_vars import LightningEnvVar as LightningEnvVar
    from .algorithms.execution.env_vars import resolve_bool_env_var as resolve_bool_env_var
    from .algorithms.execution.env_vars import resolve_int_env_var as resolve_int_env_var
    from .algorithms.execution.env_vars import resolve_str_env_var as resolve_str_env_var
    from .algorithms.execution.shared_memory import SharedMemoryExecutionStrategy as SharedMemoryExecutionStrategy
    from .algorithms.optimizers.successive_halving import SuccessiveHalving as SuccessiveHalving
    from .algorithms.runs.replayer import Replayer as Replayer
    from .algorithms.runs.replayer import ReplayReport as ReplayReport
    from .algorithms.subscribers.decorator import subscriber as subscriber
    from .algorithms.trainer.components import build_component as build_component
    from .algorithms.trainer.result import FitResult as FitResult
    from .algorithms.trainer.trainer import Trainer as Trainer
    from .compat.client import AgentLightningClient as AgentLightningClient
    from .compat.client import DevTaskLoader as DevTaskLoader
    from .compat.lightning_cli import lightning_cli as lightning_cli
    from .compat.runner import LegacyAgentRunner as LegacyAgentRunner
    from .compat.server import AgentLightningServer as AgentLightningServer
    from .compat.task_protocol import GenericResponse as GenericResponse
    from .compat.task_protocol import RolloutLegacy as RolloutLegacy
    from .compat.task_protocol import RolloutRawResultLegacy as RolloutRawResultLegacy
    from .compat.task_protocol import Task as Task
    from .compat.task_protocol import TaskIfAny as TaskIfAny
    from .core.errors import AgentLightningError as AgentLightningError
    from .core.errors import Departed as Departed
    from .core.errors import InvalidInput as InvalidInput
    from .core.errors import LogCorrupt as LogCorrupt
    from .core.errors import LogError as LogError
    from .core.errors import LogLocked as LogLocked
    from .core.errors import NotFound as NotFound
    from .core.errors import OptionalDependencyError as OptionalDependencyError
    from .core.errors import PayloadTooLarge as PayloadTooLarge
    from .core.errors import RecordEnds as RecordEnds
    from .core.errors import Refused as Refused
    from .core.errors import StoreUnreachable as StoreUnreachable
    from .core.errors import Unauthorized as Unauthorized
    from .core.logging_setup import configure_logger as configure_logger
    from .core.logging_setup import setup_logging as setup_logging
    from .core.logging_setup import setup_module_logging as setup_module_logging
    from .core.model.prompt_format import allow_poml as allow_poml
    from .core.model.resources import LLM as LLM
    from .core.model.resources import NamedResources as NamedResources
    from .core.model.resources import PromptTemplate as PromptTemplate
    from .core.model.resources import ProxyLLM as ProxyLLM
    from .core.model.resources import Resource as Resource
    from .core.model.resources import ResourcesUpdate as ResourcesUpdate
    from .core.model.resources import ResourceUnion as ResourceUnion
    from .core.model.rollout import Attempt as Attempt
    from .core.model.rollout import AttemptedRollout as AttemptedRollout
    from .core.model.rollout import AttemptStatus as AttemptStatus
    from .core.model.rollout import Dataset as Dataset
    from .core.model.rollout import EnqueueRolloutRequest as EnqueueRolloutRequest
    from .core.model.rollout import FilterField as FilterField
    from .core.model.rollout import FilterOptions as FilterOptions
    from .core.model.rollout import Hook as Hook
    from .core.model.rollout import PaginatedResult as PaginatedResult
    from .core.model.rollout import ParallelWorkerBase as ParallelWorkerBase
    from .core.model.rollout import Rollout as Rollout
    from .core.model.rollout import RolloutConfig as RolloutConfig
    from .core.model.rollout import RolloutMode as RolloutMode
    from .core.model.rollout import RolloutRawResult as RolloutRawResult
    from .core.model.rollout import RolloutStatus as RolloutStatus
    from .core.model.rollout import SortOptions as SortOptions
    from .core.model.rollout import TaskInput as TaskInput
    from .core.model.rollout import Triplet as Triplet
    from .core.model.rollout import Worker as Worker
    from .core.model.rollout import WorkerStatus as WorkerStatus
    from .core.model.span import Attributes as Attributes
    from .core.model.span import AttributeValue as AttributeValue
    from .core.model.span import Event as Event
    from .core.model.span import Link as Link
    from .core.model.span import OtelResource as OtelResource
    from .core.model.span import Span as Span
    from .core.model.span import SpanAttributeNames as SpanAttributeNames
    from .core.model.span import SpanContext as SpanContext
    from .core.model.span import SpanCoreFields as SpanCoreFields
    from .core.model.span import SpanLike as SpanLike
    from .core.model.span import SpanNames as SpanNames
    from .core.model.span import SpanRecordingContext as SpanRecordingContext
    from .core.model.span import StatusCode as StatusCode
    from .core.model.span import TraceState as TraceState
    from .core.model.span import TraceStatus as TraceStatus
    from .core.model.store_interface import LightningStore as LightningStore
    from .core.model.store_interface import LightningStoreCapabilities as LightningStoreCapabilities
    from .core.model.store_interface import LightningStoreStatistics as LightningStoreStatistics
    from .core.spans.readers import get_message_value as get_message_value
    from .core.spans.readers import get_object_value as get_object_value
    from .core.spans.rewards import find_final_reward as find_final_reward
    from .core.spans.rewards import find_reward_spans as find_reward_spans
    from .core.spans.rewards import get_reward_value as get_reward_value
    from .core.spans.rewards import get_rewards_from_span as get_rewards_from_span
    from .core.spans.rewards import is_reward_span as is_reward_span
    from .projections.store.memory_store import InMemoryLightningStore as InMemoryLightningStore
    from .projections.store.store import EventLogStore as EventLogStore
    from .rest.client.client import LightningStoreClient as LightningStoreClient
    from .rest.open_store import open_store as open_store
    from .rest.server.delegating_store import LightningStoreThreaded as LightningStoreThreaded
    from .rest.server.server import LightningStoreServer as LightningStoreServer
    from .runners.agent.decorators import llm_rollout as llm_rollout
    from .runners.agent.decorators import prompt_rollout as prompt_rollout
    from .runners.agent.decorators import rollout as rollout
    from .runners.agent.litagent import LitAgent as LitAgent
    from .runners.emit import emit_annotation as emit_annotation
    from .runners.emit import emit_exception as emit_exception
    from .runners.emit import emit_message as emit_message
    from .runners.emit import emit_object as emit_object
    from .runners.emit import emit_reward as emit_reward
    from .runners.emit import operation as operation
    from .runners.emit import reward as reward
    from .runners.stop_events import ExecutionEvent as ExecutionEvent
    from .runners.stop_events import MultiprocessingEvent as MultiprocessingEvent
    from .runners.stop_events import ThreadingEvent as ThreadingEvent
    from .runners.tracing.agentops import AgentOpsTracer as AgentOpsTracer
    from .runners.tracing.base import DummyTracer as DummyTracer
    from .runners.tracing.base import Tracer as Tracer
    from .runners.tracing.base import clear_active_tracer as clear_active_tracer
    from .runners.tracing.base import get_active_tracer as get_active_tracer
    from .runners.tracing.base import set_active_tracer as set_active_tracer
    from .runners.tracing.otel import OtelTracer as OtelTracer
    from .runners.worker.base import Runner as Runner
    from .runners.worker.runner import LitAgentRunner as LitAgentRunner

_EXPORTS: dict[str, tuple[str, ...]] = {
    "algorithms.adapters.base": ("Adapter", "OtelTraceAdapter", "TraceAdapter"),
    "algorithms.adapters.llm_proxy": ("LlmProxyTraceToTriplet",),
    "algorithms.adapters.messages": ("TraceToMessages",),
    "algorithms.adapters.triplets": ("TraceToTripletBase", "TracerTraceToTriplet"),
    "algorithms.algorithm": ("Algorithm", "algo"),
    "algorithms.baseline": ("Baseline", "FastAlgorithm"),
    "algorithms.execution.base": ("ExecutionStrategy",),
    "algorithms.execution.client_server": ("ClientServerExecutionStrategy",),
    "algorithms.execution.env_vars": ("LightningEnvVar", "resolve_bool_env_var", "resolve_int_env_var", "resolve_str_env_var"),
    "algorithms.execution.shared_memory": ("SharedMemoryExecutionStrategy",),
    "algorithms.optimizers.successive_halving": ("SuccessiveHalving",),
    "algorithms.runs.replayer": ("ReplayReport", "Replayer"),
    "algorithms.subscribers.decorator": ("subscriber",),
    "algorithms.trainer.components": ("build_component",),
    "algorithms.trainer.result": ("FitResult",),
    "algorithms.trainer.trainer": ("Trainer",),
    "compat.client": ("AgentLightningClient", "DevTaskLoader"),
    "compat.lightning_cli": ("lightning_cli",),
    "compat.runner": ("LegacyAgentRunner",),
    "compat.server": ("AgentLightningServer",),
    "compat.task_protocol": ("GenericResponse", "RolloutLegacy", "RolloutRawResultLegacy", "Task", "TaskIfAny"),
    "core.errors": (
        "AgentLightningError",
        "Departed",
        "InvalidInput",
        "LogCorrupt",
        "LogError",
        "LogLocked",
        "NotFound",
        "OptionalDependencyError",
        "PayloadTooLarge",
        "RecordEnds",
        "Refused",
        "StoreUnreachable",
        "Unauthorized",
    ),
    "core.logging_setup": ("configure_logger", "setup_logging", "setup_module_logging"),
    "core.model.prompt_format": ("allow_poml",),
    "core.model.resources": (
        "LLM",
        "NamedResources",
        "PromptTemplate",
        "ProxyLLM",
        "Resource",
        "ResourceUnion",
        "ResourcesUpdate",
    ),
    "core.model.rollout": (
        "Attempt",
        "AttemptStatus",
        "AttemptedRollout",
        "Dataset",
        "EnqueueRolloutRequest",
        "FilterField",
        "FilterOptions",
        "Hook",
        "PaginatedResult",
        "ParallelWorkerBase",
        "Rollout",
        "RolloutConfig",
        "RolloutMode",
        "RolloutRawResult",
        "RolloutStatus",
        "SortOptions",
        "TaskInput",
        "Triplet",
        "Worker",
        "WorkerStatus",
    ),
    "core.model.span": (
        "AttributeValue",
        "Attributes",
        "Event",
        "Link",
        "OtelResource",
        "Span",
        "SpanAttributeNames",
        "SpanContext",
        "SpanCoreFields",
        "SpanLike",
        "SpanNames",
        "SpanRecordingContext",
        "StatusCode",
        "TraceState",
        "TraceStatus",
    ),
    "core.model.store_interface": ("LightningStore", "LightningStoreCapabilities", "LightningStoreStatistics"),
    "core.spans.readers": ("get_message_value", "get_object_value"),
    "core.spans.rewards": (
        "find_final_reward",
        "find_reward_spans",
        "get_reward_value",
        "get_rewards_from_span",
        "is_reward_span",
    ),
    "projections.store.memory_store": ("InMemoryLightningStore",),
    "projections.store.store": ("EventLogStore",),
    "rest.client.client": ("LightningStoreClient",),
    "rest.open_store": ("open_store",),
    "rest.server.delegating_store": ("LightningStoreThreaded",),
    "rest.server.server": ("LightningStoreServer",),
    "runners.agent.decorators": ("llm_rollout", "prompt_rollout", "rollout"),
    "runners.agent.litagent": ("LitAgent",),
    "runners.emit": (
        "emit_annotation",
        "emit_exception",
        "emit_message",
        "emit_object",
        "emit_reward",
        "operation",
        "reward",
    ),
    "runners.stop_events": ("ExecutionEvent", "MultiprocessingEvent", "ThreadingEvent"),
    "runners.tracing.agentops": ("AgentOpsTracer",),
    "runners.tracing.base": ("DummyTracer", "Tracer", "clear_active_tracer", "get_active_tracer", "set_active_tracer"),
    "runners.tracing.otel": ("OtelTracer",),
    "runners.worker.base": ("Runner",),
    "runners.worker.runner": ("LitAgentRunner",),
}
"""Module, relative to this package, and the names that it gives to ``agentlightning``."""

_MODULE_OF = dict(sorted((name, module) for module, names in _EXPORTS.items() for name in names))

__version__ = "0.1.0"
__all__ = list(_MODULE_OF)  # pyright: ignore[reportUnsupportedDunderAll] (the block above tells it the names)

if not TYPE_CHECKING:  # a type checker that sees __getattr__ takes every misspelt name for an export

    def __getattr__(name: str) -> object:
        """Imports an exported name at its first use and keeps it; AttributeError for any other name."""
        module = _MODULE_OF.get(name)
        if module is None:
            return _older(name)
        value = getattr(_import_module(f".{module}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({name for name in globals() if name.startswith("__")} | {*_MODULE_OF})


def _older(name: str) -> object:
    """A package of an older release; AttributeError for the rest, with what to use instead where a release had the name."""
    if not name.startswith("_"):
        from .compat.gone_names import OLD_PACKAGES, refuse_attribute

        refuse_attribute(name, __name__)
        if name in OLD_PACKAGES:
            return _import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _GoneNames:
    """The last finder of all, asked for a module that no other has found: names the alternative to what is gone."""

    @classmethod
    def find_spec(cls, fullname: str, path: object = None, target: object = None) -> None:
        """Never finds a module; raises ImportError for one of an older release that has no successor."""
        if fullname.startswith("agentlightning."):
            from .compat.gone_names import refuse_import

            refuse_import(fullname)


_sys.meta_path[:] = [*(finder for finder in _sys.meta_path if getattr(finder, "__name__", "") != "_GoneNames"), _GoneNames]


def _warn_of_namesake(folders: list[str]) -> None:
    """Says so, in one sentence, where the other distribution with this import name is installed beside this one.

    Looks at the names in the installation folders only: importlib.metadata would read more and cost more than
    the rest of this import.
    """
    for folder in folders:
        if _os.path.basename(folder) not in ("site-packages", "dist-packages"):
            continue
        try:
            names = _os.listdir(folder)
        except OSError:
            continue
        if any(n.startswith("agentlightning-") and n.endswith((".dist-info", ".egg-info")) for n in names):
            _warnings.warn(
                "The package 'agentlightning' is installed beside 'agentlightning-eventlog' and both provide the "
                "module 'agentlightning'; uninstall both and reinstall the one that you mean.",
                stacklevel=3,
            )
            return


_warn_of_namesake(_sys.path)
