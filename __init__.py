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
- training: `Trainer`, `algo`, `Algorithm`, `Baseline`, `TracerTraceToTriplet`, `TraceToMessages`
- the store: `open_store`, `LightningStore`, `LightningStoreClient`, `LightningStoreServer`, `subscriber`
- what runs agents: `LitAgentRunner`, `OtelTracer`, `AgentOpsTracer`; in a terminal `agl --help`

The pages are in `docs/`, and `help(agl.Trainer)` explains one name. Every error on purpose is an `AgentLightningError`.
"""

# Importing this module loads no room: a name is imported where it is first used (PEP 562), so that the import stays quick,
# opens no socket and needs no optional library. To export a name, add it twice, in alphabetical order: to `_EXPORTS` under
# the module that defines it, and to the TYPE_CHECKING block as `X as X`, which is what type checkers and editors read.
# tests/test_import.py compares the two.

from __future__ import annotations

import os as _os
import sys as _sys
import warnings as _warnings
from importlib import import_module as _import_module
from importlib.machinery import ModuleSpec as _ModuleSpec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .algorithms.adapters.base import Adapter as Adapter
    from .algorithms.adapters.base import OtelTraceAdapter as OtelTraceAdapter
    from .algorithms.adapters.base import TraceAdapter as TraceAdapter
    from .algorithms.adapters.messages import TraceToMessages as TraceToMessages
    from .algorithms.adapters.proxy import LlmProxyTraceToTriplet as LlmProxyTraceToTriplet
    from .algorithms.adapters.triplets import TracerTraceToTriplet as TracerTraceToTriplet
    from .algorithms.adapters.triplets import TraceToTripletBase as TraceToTripletBase
    from .algorithms.base import Algorithm as Algorithm
    from .algorithms.baseline import Baseline as Baseline
    from .algorithms.baseline import FastAlgorithm as FastAlgorithm
    from .algorithms.client_server import ClientServerExecutionStrategy as ClientServerExecutionStrategy
    from .algorithms.components import build_component as build_component
    from .algorithms.environment import LightningEnvVar as LightningEnvVar
    from .algorithms.environment import resolve_bool_env_var as resolve_bool_env_var
    from .algorithms.environment import resolve_int_env_var as resolve_int_env_var
    from .algorithms.environment import resolve_str_env_var as resolve_str_env_var
    from .algorithms.execution import ExecutionEvent as ExecutionEvent
    from .algorithms.execution import ExecutionStrategy as ExecutionStrategy
    from .algorithms.execution import MultiprocessingEvent as MultiprocessingEvent
    from .algorithms.execution import ThreadingEvent as ThreadingEvent
    from .algorithms.fit_result import FitResult as FitResult
    from .algorithms.functional import algo as algo
    from .algorithms.legacy_server import AgentLightningServer as AgentLightningServer
    from .algorithms.replayer import Replayer as Replayer
    from .algorithms.replayer import ReplayReport as ReplayReport
    from .algorithms.shared_memory import SharedMemoryExecutionStrategy as SharedMemoryExecutionStrategy
    from .algorithms.subscribers import subscriber as subscriber
    from .algorithms.trainer import Trainer as Trainer
    from .cli.class_options import lightning_cli as lightning_cli
    from .core.contract import LightningStore as LightningStore
    from .core.contract import LightningStoreCapabilities as LightningStoreCapabilities
    from .core.contract import LightningStoreStatistics as LightningStoreStatistics
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
    from .core.loglines import configure_logger as configure_logger
    from .core.loglines import setup_logging as setup_logging
    from .core.loglines import setup_module_logging as setup_module_logging
    from .core.model import Attempt as Attempt
    from .core.model import AttemptedRollout as AttemptedRollout
    from .core.model import AttemptStatus as AttemptStatus
    from .core.model import Dataset as Dataset
    from .core.model import EnqueueRolloutRequest as EnqueueRolloutRequest
    from .core.model import FilterField as FilterField
    from .core.model import FilterOptions as FilterOptions
    from .core.model import GenericResponse as GenericResponse
    from .core.model import Hook as Hook
    from .core.model import PaginatedResult as PaginatedResult
    from .core.model import ParallelWorkerBase as ParallelWorkerBase
    from .core.model import Rollout as Rollout
    from .core.model import RolloutConfig as RolloutConfig
    from .core.model import RolloutLegacy as RolloutLegacy
    from .core.model import RolloutMode as RolloutMode
    from .core.model import RolloutRawResult as RolloutRawResult
    from .core.model import RolloutRawResultLegacy as RolloutRawResultLegacy
    from .core.model import RolloutStatus as RolloutStatus
    from .core.model import SortOptions as SortOptions
    from .core.model import Task as Task
    from .core.model import TaskIfAny as TaskIfAny
    from .core.model import TaskInput as TaskInput
    from .core.model import Triplet as Triplet
    from .core.model import Worker as Worker
    from .core.model import WorkerStatus as WorkerStatus
    from .core.prompt_format import allow_poml as allow_poml
    from .core.resources import LLM as LLM
    from .core.resources import NamedResources as NamedResources
    from .core.resources import PromptTemplate as PromptTemplate
    from .core.resources import ProxyLLM as ProxyLLM
    from .core.resources import Resource as Resource
    from .core.resources import ResourcesUpdate as ResourcesUpdate
    from .core.resources import ResourceUnion as ResourceUnion
    from .core.spans import Attributes as Attributes
    from .core.spans import AttributeValue as AttributeValue
    from .core.spans import Event as Event
    from .core.spans import Link as Link
    from .core.spans import OtelResource as OtelResource
    from .core.spans import Span as Span
    from .core.spans import SpanAttributeNames as SpanAttributeNames
    from .core.spans import SpanContext as SpanContext
    from .core.spans import SpanCoreFields as SpanCoreFields
    from .core.spans import SpanLike as SpanLike
    from .core.spans import SpanNames as SpanNames
    from .core.spans import SpanRecordingContext as SpanRecordingContext
    from .core.spans import StatusCode as StatusCode
    from .core.spans import TraceState as TraceState
    from .core.spans import TraceStatus as TraceStatus
    from .projections.memory_store import InMemoryLightningStore as InMemoryLightningStore
    from .projections.rest.client import LightningStoreClient as LightningStoreClient
    from .projections.rest.dev_tasks import DevTaskLoader as DevTaskLoader
    from .projections.rest.legacy_client import AgentLightningClient as AgentLightningClient
    from .projections.rest.server import LightningStoreServer as LightningStoreServer
    from .projections.rest.threaded import LightningStoreThreaded as LightningStoreThreaded
    from .projections.store import EventLogStore as EventLogStore
    from .projections.store import open_store as open_store
    from .runners.active import clear_active_tracer as clear_active_tracer
    from .runners.active import get_active_tracer as get_active_tracer
    from .runners.active import set_active_tracer as set_active_tracer
    from .runners.agentops_tracer import AgentOpsTracer as AgentOpsTracer
    from .runners.agents import LitAgent as LitAgent
    from .runners.base import Runner as Runner
    from .runners.decorators import llm_rollout as llm_rollout
    from .runners.decorators import prompt_rollout as prompt_rollout
    from .runners.decorators import rollout as rollout
    from .runners.dummy_tracer import DummyTracer as DummyTracer
    from .runners.emitters import emit_annotation as emit_annotation
    from .runners.emitters import emit_exception as emit_exception
    from .runners.emitters import emit_message as emit_message
    from .runners.emitters import emit_object as emit_object
    from .runners.emitters import emit_reward as emit_reward
    from .runners.legacy_runner import LegacyAgentRunner as LegacyAgentRunner
    from .runners.operations import operation as operation
    from .runners.otel_tracer import OtelTracer as OtelTracer
    from .runners.readers import find_final_reward as find_final_reward
    from .runners.readers import find_reward_spans as find_reward_spans
    from .runners.readers import get_message_value as get_message_value
    from .runners.readers import get_object_value as get_object_value
    from .runners.readers import get_reward_value as get_reward_value
    from .runners.readers import get_rewards_from_span as get_rewards_from_span
    from .runners.readers import is_reward_span as is_reward_span
    from .runners.rewards import reward as reward
    from .runners.runner import LitAgentRunner as LitAgentRunner
    from .runners.tracer import Tracer as Tracer

_EXPORTS: dict[str, tuple[str, ...]] = {
    "algorithms.adapters.base": ("Adapter", "OtelTraceAdapter", "TraceAdapter"),
    "algorithms.adapters.messages": ("TraceToMessages",),
    "algorithms.adapters.proxy": ("LlmProxyTraceToTriplet",),
    "algorithms.adapters.triplets": ("TraceToTripletBase", "TracerTraceToTriplet"),
    "algorithms.base": ("Algorithm",),
    "algorithms.baseline": ("Baseline", "FastAlgorithm"),
    "algorithms.client_server": ("ClientServerExecutionStrategy",),
    "algorithms.components": ("build_component",),
    "algorithms.environment": ("LightningEnvVar", "resolve_bool_env_var", "resolve_int_env_var", "resolve_str_env_var"),
    "algorithms.execution": ("ExecutionEvent", "ExecutionStrategy", "MultiprocessingEvent", "ThreadingEvent"),
    "algorithms.fit_result": ("FitResult",),
    "algorithms.functional": ("algo",),
    "algorithms.legacy_server": ("AgentLightningServer",),
    "algorithms.replayer": ("ReplayReport", "Replayer"),
    "algorithms.shared_memory": ("SharedMemoryExecutionStrategy",),
    "algorithms.subscribers": ("subscriber",),
    "algorithms.trainer": ("Trainer",),
    "cli.class_options": ("lightning_cli",),
    "core.contract": ("LightningStore", "LightningStoreCapabilities", "LightningStoreStatistics"),
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
    "core.loglines": ("configure_logger", "setup_logging", "setup_module_logging"),
    "core.model": (
        "Attempt",
        "AttemptStatus",
        "AttemptedRollout",
        "Dataset",
        "EnqueueRolloutRequest",
        "FilterField",
        "FilterOptions",
        "GenericResponse",
        "Hook",
        "PaginatedResult",
        "ParallelWorkerBase",
        "Rollout",
        "RolloutConfig",
        "RolloutLegacy",
        "RolloutMode",
        "RolloutRawResult",
        "RolloutRawResultLegacy",
        "RolloutStatus",
        "SortOptions",
        "Task",
        "TaskIfAny",
        "TaskInput",
        "Triplet",
        "Worker",
        "WorkerStatus",
    ),
    "core.prompt_format": ("allow_poml",),
    "core.resources": (
        "LLM",
        "NamedResources",
        "PromptTemplate",
        "ProxyLLM",
        "Resource",
        "ResourceUnion",
        "ResourcesUpdate",
    ),
    "core.spans": (
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
    "projections.memory_store": ("InMemoryLightningStore",),
    "projections.rest.client": ("LightningStoreClient",),
    "projections.rest.dev_tasks": ("DevTaskLoader",),
    "projections.rest.legacy_client": ("AgentLightningClient",),
    "projections.rest.server": ("LightningStoreServer",),
    "projections.rest.threaded": ("LightningStoreThreaded",),
    "projections.store": ("EventLogStore", "open_store"),
    "runners.active": ("clear_active_tracer", "get_active_tracer", "set_active_tracer"),
    "runners.agentops_tracer": ("AgentOpsTracer",),
    "runners.agents": ("LitAgent",),
    "runners.base": ("Runner",),
    "runners.decorators": ("llm_rollout", "prompt_rollout", "rollout"),
    "runners.dummy_tracer": ("DummyTracer",),
    "runners.emitters": ("emit_annotation", "emit_exception", "emit_message", "emit_object", "emit_reward"),
    "runners.legacy_runner": ("LegacyAgentRunner",),
    "runners.operations": ("operation",),
    "runners.otel_tracer": ("OtelTracer",),
    "runners.readers": (
        "find_final_reward",
        "find_reward_spans",
        "get_message_value",
        "get_object_value",
        "get_reward_value",
        "get_rewards_from_span",
        "is_reward_span",
    ),
    "runners.rewards": ("reward",),
    "runners.runner": ("LitAgentRunner",),
    "runners.tracer": ("Tracer",),
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
    """A module of an older release; AttributeError for the rest, with what to use instead where a release had the name."""
    if not name.startswith("_"):
        from .cli.old_modules import is_old_path, refuse_gone

        refuse_gone(name, __name__)
        if is_old_path(name):
            return _import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _OldPaths:
    """Finds the modules of older releases (cli/old_paths.py). First in line: a folder of their type stubs is no module."""

    rooms = frozenset(("__main__", "algorithms", "cli", "core", "projections", "runners"))

    @classmethod
    def find_spec(cls, fullname: str, path: object = None, target: object = None) -> _ModuleSpec | None:
        """Asked for every import of the process, so the table is loaded only for a name of this package."""
        if not fullname.startswith("agentlightning.") or fullname.split(".", 2)[1] in cls.rooms:
            return None
        from .cli.old_modules import spec_of

        return spec_of(fullname)


_sys.meta_path[:] = [_OldPaths, *(finder for finder in _sys.meta_path if getattr(finder, "__name__", "") != "_OldPaths")]


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
