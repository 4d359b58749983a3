"""Names and modules of the older releases that have no successor, and what to use instead.

The import paths that still work are modules of their own: compat/paths/store/memory.py is `agentlightning.store.memory`
(`package-dir` in pyproject.toml). The finder at the end of this package's __init__ asks here when an import found nothing.
"""

from __future__ import annotations

__all__ = ["GONE_MODULES", "GONE_NAMES", "OLD_PACKAGES", "refuse_attribute", "refuse_import"]

OLD_PACKAGES = frozenset(
    """
    adapter algorithm client config emitter env_var execution instrumentation litagent logging reward runner semconv
    server store tracer trainer types utils
    """.split()
)
"""The folders of compat/paths: attributes of `agentlightning` without an import of their own, as they always were."""

_PROXY = "The LLM proxy is not part of this release: give agents an agl.LLM resource with the endpoint of your model."
_APO = "APO is not part of this release: write the search as a function with @agl.algo, as examples/ shows."
_VERL = "VERL is not part of this release: read the spans with agl.TracerTraceToTriplet and call your trainer."
_LOGS = "Stores are event logs here: use agl.open_store(url) or agl.EventLogStore(log)."
_PATCHES = "agentlightning.instrumentation.instrument_all() patches the OpenAI client and LiteLLM."
_METRICS = "There are no metrics backends here: store.statistics() and `agl log` show what a store did."
_OTLP = "Spans reach a store through its OTLP route, store.otlp_traces_endpoint(), or store.add_otel_span(...)."
_SERVERS = "A store is served by agl.LightningStoreServer(store, ...).start()."

GONE_MODULES: dict[str, str] = {
    "algorithm.apo": _APO,
    "algorithm.verl": _VERL,
    "instrumentation.agentops": _PATCHES,
    "instrumentation.agentops_langchain": _PATCHES,
    "instrumentation.litellm": _PATCHES,
    "instrumentation.vllm": _PATCHES,
    "llm_proxy": _PROXY,
    "store.collection": _LOGS,
    "store.collection_based": _LOGS,
    "store.mongo": _LOGS,
    "tracer.http": "Requests of other HTTP clients are not recorded: use agl.operation around them.",
    "tracer.weave": "Weave is not used here: agl.OtelTracer records what goes through OpenTelemetry.",
    "utils.metrics": _METRICS,
    "utils.otlp": _OTLP,
    "verl": _VERL,
}
"""Modules that have no successor, and what to use instead."""

GONE_NAMES: dict[str, str] = {
    "APO": _APO,
    "CollectionBasedLightningStore": _LOGS,
    "ConsoleMetricsBackend": _METRICS,
    "HttpTracer": GONE_MODULES["tracer.http"],
    "InterProcessExecutionStrategy": "It was never implemented: use agl.ClientServerExecutionStrategy.",
    "LLMProxy": _PROXY,
    "LightningStoreOTLPExporter": _OTLP,
    "MetricsBackend": _METRICS,
    "MongoLightningStore": _LOGS,
    "MultiMetricsBackend": _METRICS,
    "PrometheusMetricsBackend": _METRICS,
    "PythonServerLauncher": _SERVERS,
    "ServerDataStore": "The server keeps its tasks in a store: AgentLightningServer(store=...).",
    "VERL": _VERL,
    "WeaveTracer": GONE_MODULES["tracer.weave"],
}
"""Names that have no successor, wherever they were, and what to use instead."""


def refuse_attribute(name: str, module: str) -> None:
    """Raise AttributeError with the alternative where an older release had ``name``, so that hasattr is False; else nothing."""
    if name in GONE_NAMES:
        raise AttributeError(f"{module} has no {name}. {GONE_NAMES[name]}", name=name)


def refuse_import(fullname: str) -> None:
    """Raise ImportError with the alternative where an older release had this module or name; else nothing.

    ``from agentlightning import NAME`` looks for a module of that name where the attribute is missing, and would drop the
    message of the attribute's error.
    """
    path = fullname.partition(".")[2]
    module, _, name = fullname.rpartition(".")
    if path in GONE_MODULES:
        raise ModuleNotFoundError(f"There is no {fullname}. {GONE_MODULES[path]}", name=fullname)
    if name in GONE_NAMES:
        raise ImportError(f"{module} has no {name}. {GONE_NAMES[name]}", name=fullname)
