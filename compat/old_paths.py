"""Where the modules of the older releases are now: one table, read by the finder and by what writes the type stubs.

A row is an old path below ``agentlightning`` and what could be imported from it: the module that has the names today,
a colon and the names. ``old=new`` is a name that is called differently now. The order of rows and names has no meaning.
"""

from __future__ import annotations

__all__ = ["CALLABLE", "GONE_MODULES", "GONE_NAMES", "OLD_PATHS", "names_of"]

_ADAPTERS = (
    "algorithms.adapters.base: Adapter OtelTraceAdapter TraceAdapter",
    "algorithms.adapters.messages: TraceToMessages",
    "algorithms.adapters.llm_proxy: LlmProxyTraceToTriplet",
    "algorithms.adapters.triplets: TraceToTripletBase TracerTraceToTriplet",
)
_AGENTS = ("runners.agent.litagent: LitAgent is_v0_1_rollout_api",)
_DECORATORS = ("runners.agent.decorators: FunctionalLitAgent llm_rollout prompt_rollout rollout",)
_EMITTERS = (
    "runners.emit.emitters: emit_annotation emit_exception emit_message emit_object emit_reward",
    "runners.emit.operation: operation",
    "core.spans.readers: find_final_reward find_reward_spans get_message_value get_object_value get_reward_value",
    "core.spans.readers: get_rewards_from_span is_reward_span",
    "runners.emit.reward: reward",
)
_REWARDS = (
    "runners.emit.emitters: emit_reward",
    "core.spans.readers: find_final_reward find_reward_spans get_reward_value get_rewards_from_span is_reward_span",
    "runners.emit.reward: reward",
)
_EVENTS = ("runners.stop_events: ExecutionEvent MultiprocessingEvent ThreadingEvent",)
_STORE_TERMS = (
    "core.model.store_interface: LightningStore LightningStoreCapabilities LightningStoreStatistics UNSET Unset",
    "core.model.store_interface: is_finished is_queuing is_running",
)
_STORE_HTTP = (
    "rest.client.client: LightningStoreClient",
    "rest.server.server: LightningStoreServer",
)
_ACTIVE = ("runners.tracing.active: clear_active_tracer get_active_tracer set_active_tracer",)
_TRACER_BASE = (*_ACTIVE, "runners.tracing.base: BaseTracer=Tracer Tracer")
_TYPES_CORE = (
    "core.model.hooks: Dataset Hook ParallelWorkerBase",
    "core.model.legacy: GenericResponse RolloutLegacy RolloutRawResultLegacy Task TaskIfAny Triplet",
    "core.model.rollout: Attempt AttemptedRollout EnqueueRolloutRequest FilterField FilterOptions PaginatedResult",
    "core.model.rollout: Rollout RolloutConfig RolloutRawResult SortOptions Worker",
    "core.model.status: AttemptStatus RolloutMode RolloutStatus TaskInput WorkerStatus",
)
_TYPES_RESOURCES = (
    "core.model.resources: LLM NamedResources PromptTemplate ProxyLLM Resource ResourceUnion ResourcesUpdate",
)
_TYPES_TRACER = (
    "core.model.span: AttributeValue Attributes Event Link OtelResource Span SpanAttributeNames SpanContext SpanCoreFields",
    "core.model.span: SpanLike SpanNames SpanRecordingContext StatusCode TraceState TraceStatus convert_timestamp",
)

OLD_PATHS: dict[str, tuple[str, ...]] = {
    "adapter": _ADAPTERS,
    "adapter.base": _ADAPTERS[:1],
    "adapter.messages": ("algorithms.adapters.messages: OpenAIMessages TraceToMessages",),
    "adapter.triplet": (
        "algorithms.adapters.llm_proxy: LlmProxyTraceToTriplet",
        "algorithms.adapters.trajectory: RewardMatchPolicy TraceTree Transition",
        "algorithms.adapters.triplets: TraceToTripletBase TracerTraceToTriplet TripletExporter",
    ),
    "algorithm": (
        "algorithms.algorithm: Algorithm",
        "algorithms.baseline: Baseline FastAlgorithm",
        "algorithms.decorator: algo",
    ),
    "algorithm.base": ("algorithms.algorithm: Algorithm",),
    "algorithm.decorator": ("algorithms.decorator: FunctionalAlgorithm algo",),
    "algorithm.fast": ("algorithms.baseline: Baseline FastAlgorithm",),
    "algorithm.utils": ("algorithms.helpers: batch_iter_over_dataset with_llm_proxy with_store",),
    "client": (
        "compat.dev_tasks: DevTaskLoader",
        "compat.client: AgentLightningClient",
    ),
    "config": ("compat.lightning_cli: lightning_cli",),
    "emitter": _EMITTERS,
    "emitter.annotation": ("runners.emit.emitters: emit_annotation", "runners.emit.operation: operation"),
    "emitter.exception": ("runners.emit.emitters: emit_exception",),
    "emitter.message": ("runners.emit.emitters: emit_message", "core.spans.readers: get_message_value"),
    "emitter.object": ("runners.emit.emitters: emit_object", "core.spans.readers: get_object_value"),
    "emitter.reward": _REWARDS,
    "env_var": (
        "algorithms.execution.env_vars: LightningEnvVar resolve_bool_env_var resolve_int_env_var resolve_str_env_var",
    ),
    "execution": (
        *_EVENTS,
        "algorithms.execution.client_server: ClientServerExecutionStrategy",
        "algorithms.execution.base: ExecutionStrategy",
        "algorithms.execution.shared_memory: SharedMemoryExecutionStrategy",
    ),
    "execution.base": ("algorithms.execution.base: AlgorithmBundle ExecutionStrategy RunnerBundle",),
    "execution.client_server": ("algorithms.execution.client_server: ClientServerExecutionStrategy",),
    "execution.events": _EVENTS,
    "execution.shared_memory": ("algorithms.execution.shared_memory: SharedMemoryExecutionStrategy",),
    "instrumentation": ("runners.tracing.openai_patch: instrument_all uninstrument_all",),
    "litagent": (*_AGENTS, *_DECORATORS),
    "litagent.decorator": _DECORATORS,
    "litagent.litagent": _AGENTS,
    "logging": (
        "core.logging_setup: configure_logger setup=setup_logging setup_logging",
        "core.logging_setup: setup_module=setup_module_logging setup_module_logging",
    ),
    "reward": _REWARDS,
    "runner": (
        "runners.worker.base: Runner",
        "compat.runner: AgentRunner=LegacyAgentRunner LegacyAgentRunner",
        "runners.worker.runner: LitAgentRunner",
    ),
    "runner.agent": ("runners.worker.runner: LitAgentRunner",),
    "runner.base": ("runners.worker.base: Runner",),
    "runner.legacy": ("compat.runner: LegacyAgentRunner",),
    "semconv": (
        "core.model.semconv: AGL_ANNOTATION AGL_EXCEPTION AGL_MESSAGE AGL_OBJECT AGL_OPERATION AGL_REWARD AGL_VIRTUAL",
        "core.model.semconv: LightningResourceAttributes LightningSpanAttributes LinkAttributes LinkPydanticModel",
        "core.model.semconv: RewardAttributes RewardPydanticModel",
    ),
    "server": ("compat.server: AgentLightningServer",),
    "store": (
        *_STORE_HTTP,
        "core.model.store_interface: LightningStore",
        "core.model.store_interface: LightningStoreCapabilities LightningStoreStatistics",
        "projections.store.memory_store: InMemoryLightningStore",
        "rest.server.threaded_store: LightningStoreThreaded",
    ),
    "store.base": _STORE_TERMS,
    "store.client_server": _STORE_HTTP,
    "store.memory": ("projections.store.memory_store: InMemoryLightningStore",),
    "store.threading": ("rest.server.threaded_store: LightningStoreThreaded",),
    "tracer": (
        *_TRACER_BASE,
        "runners.tracing.agentops: AgentOpsTracer",
        "runners.tracing.dummy: DummyTracer",
        "runners.tracing.otel: OtelTracer",
        "algorithms.adapters.triplets: TripletExporter",
    ),
    "tracer.agentops": ("runners.tracing.agentops: AgentOpsTracer",),
    "tracer.base": _TRACER_BASE,
    "tracer.dummy": ("runners.tracing.dummy: DummyTracer",),
    "tracer.otel": ("runners.tracing.provider: LightningSpanProcessor", "runners.tracing.otel: OtelTracer"),
    "tracer.triplet": ("algorithms.adapters.triplets: TripletExporter",),
    "trainer": ("algorithms.trainer.components: build_component", "algorithms.trainer.trainer: Trainer"),
    "trainer.init_utils": ("algorithms.trainer.components: build_component",),
    "trainer.trainer": ("algorithms.trainer.trainer: Trainer",),
    "types": (*_TYPES_CORE, *_TYPES_RESOURCES, *_TYPES_TRACER),
    "types.core": _TYPES_CORE,
    "types.resources": _TYPES_RESOURCES,
    "types.tracer": _TYPES_TRACER,
    "utils": (),
    "utils.id": ("core.ids: generate_id",),
    "utils.otel": (
        "core.spans.attributes: check_attributes_sanity filter_and_unflatten_attributes filter_attributes",
        "core.spans.attributes: flatten_attributes format_exception_attributes full_qualified_name",
        "core.spans.attributes: sanitize_attribute_value sanitize_attributes sanitize_list_attribute_sanity",
        "core.spans.attributes: unflatten_attributes",
        "core.spans.links: extract_links_from_attributes extract_tags_from_attributes make_link_attributes",
        "core.spans.links: make_tag_attributes query_linked_spans",
        "runners.tracing.otel_access: get_tracer get_tracer_provider",
    ),
    "utils.server_launcher": ("rest.server.server: LaunchMode PythonServerLauncherArgs",),
    "utils.system_snapshot": ("runners.worker.system_snapshot: system_snapshot",),
}

CALLABLE = {"reward": "reward"}
"""Modules that a name of the package is hidden by as soon as they are imported: they can be called as that name."""

_PROXY = "The LLM proxy is not part of this release: give agents an agl.LLM resource with the endpoint of your model."
_APO = "APO is not part of this release: write the search as a function with @agl.algo, as examples/ shows."
_VERL = "VERL is not part of this release: read the spans with agl.TracerTraceToTriplet and call your trainer."
_LOGS = "Stores are event logs here: use agl.open_store(url) or agl.EventLogStore(log)."
_PATCHES = "agentlightning.instrumentation.instrument_all() patches the OpenAI client and LiteLLM."
_METRICS = "There are no metrics backends here: store.statistics() and `agl log` say what a store did."
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


def names_of(path: str) -> dict[str, tuple[str, str]]:
    """What an old path has: its names, sorted, each with the module below ``agentlightning`` and the name there."""
    found: dict[str, tuple[str, str]] = {}
    for row in OLD_PATHS[path]:
        module, _, names = row.partition(": ")
        for name in names.split():
            old, _, new = name.partition("=")
            found[old] = (module, new or old)
    return dict(sorted(found.items()))
