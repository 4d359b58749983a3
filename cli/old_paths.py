"""Where the modules of the older releases are now: one table, read by the finder and by what writes the type stubs.

A row is an old path below ``agentlightning`` and what could be imported from it: the module that has the names today,
a colon and the names. ``old=new`` is a name that is called differently now. The order of rows and names has no meaning.
"""

from __future__ import annotations

__all__ = ["CALLABLE", "GONE_MODULES", "GONE_NAMES", "OLD_PATHS", "names_of"]

_ADAPTERS = (
    "algorithms.adapters.base: Adapter OtelTraceAdapter TraceAdapter",
    "algorithms.adapters.messages: TraceToMessages",
    "algorithms.adapters.proxy: LlmProxyTraceToTriplet",
    "algorithms.adapters.triplets: TraceToTripletBase TracerTraceToTriplet",
)
_AGENTS = ("runners.agents: LitAgent is_v0_1_rollout_api",)
_DECORATORS = ("runners.decorators: FunctionalLitAgent llm_rollout prompt_rollout rollout",)
_EMITTERS = (
    "runners.emitters: emit_annotation emit_exception emit_message emit_object emit_reward",
    "runners.operations: operation",
    "runners.readers: find_final_reward find_reward_spans get_message_value get_object_value get_reward_value",
    "runners.readers: get_rewards_from_span is_reward_span",
    "runners.rewards: reward",
)
_REWARDS = (
    "runners.emitters: emit_reward",
    "runners.readers: find_final_reward find_reward_spans get_reward_value get_rewards_from_span is_reward_span",
    "runners.rewards: reward",
)
_EVENTS = ("algorithms.execution: ExecutionEvent MultiprocessingEvent ThreadingEvent",)
_STORE_TERMS = (
    "core.contract: LightningStore",
    "core.store_terms: LightningStoreCapabilities LightningStoreStatistics UNSET Unset is_finished is_queuing is_running",
)
_STORE_HTTP = (
    "projections.rest.client: LightningStoreClient",
    "projections.rest.server: LightningStoreServer",
)
_ACTIVE = ("runners.active: clear_active_tracer get_active_tracer set_active_tracer",)
_TRACER_BASE = (*_ACTIVE, "runners.tracer: BaseTracer=Tracer Tracer")
_TYPES_CORE = (
    "core.hooks: Dataset Hook ParallelWorkerBase",
    "core.legacy: GenericResponse RolloutLegacy RolloutRawResultLegacy Task TaskIfAny Triplet",
    "core.model: Attempt AttemptedRollout EnqueueRolloutRequest FilterField FilterOptions PaginatedResult",
    "core.model: Rollout RolloutConfig RolloutRawResult SortOptions Worker",
    "core.vocabulary: AttemptStatus RolloutMode RolloutStatus TaskInput WorkerStatus",
)
_TYPES_RESOURCES = (
    "core.resources: LLM NamedResources PromptTemplate ProxyLLM Resource ResourceUnion ResourcesUpdate",
)
_TYPES_TRACER = (
    "core.spans: AttributeValue Attributes Event Link OtelResource Span SpanAttributeNames SpanContext SpanCoreFields",
    "core.spans: SpanLike SpanNames SpanRecordingContext StatusCode TraceState TraceStatus convert_timestamp",
)

OLD_PATHS: dict[str, tuple[str, ...]] = {
    "adapter": _ADAPTERS,
    "adapter.base": _ADAPTERS[:1],
    "adapter.messages": ("algorithms.adapters.messages: OpenAIMessages TraceToMessages",),
    "adapter.triplet": (
        "algorithms.adapters.proxy: LlmProxyTraceToTriplet",
        "algorithms.adapters.trajectory: RewardMatchPolicy TraceTree Transition",
        "algorithms.adapters.triplets: TraceToTripletBase TracerTraceToTriplet TripletExporter",
    ),
    "algorithm": (
        "algorithms.base: Algorithm",
        "algorithms.baseline: Baseline FastAlgorithm",
        "algorithms.functional: algo",
    ),
    "algorithm.base": ("algorithms.base: Algorithm",),
    "algorithm.decorator": ("algorithms.functional: FunctionalAlgorithm algo",),
    "algorithm.fast": ("algorithms.baseline: Baseline FastAlgorithm",),
    "algorithm.utils": ("algorithms.helpers: batch_iter_over_dataset with_llm_proxy with_store",),
    "client": (
        "projections.rest.dev_tasks: DevTaskLoader",
        "projections.rest.legacy_client: AgentLightningClient",
    ),
    "config": ("cli.class_options: lightning_cli",),
    "emitter": _EMITTERS,
    "emitter.annotation": ("runners.emitters: emit_annotation", "runners.operations: operation"),
    "emitter.exception": ("runners.emitters: emit_exception",),
    "emitter.message": ("runners.emitters: emit_message", "runners.readers: get_message_value"),
    "emitter.object": ("runners.emitters: emit_object", "runners.readers: get_object_value"),
    "emitter.reward": _REWARDS,
    "env_var": (
        "algorithms.environment: LightningEnvVar resolve_bool_env_var resolve_int_env_var resolve_str_env_var",
    ),
    "execution": (
        *_EVENTS,
        "algorithms.client_server: ClientServerExecutionStrategy",
        "algorithms.execution: ExecutionStrategy",
        "algorithms.shared_memory: SharedMemoryExecutionStrategy",
    ),
    "execution.base": ("algorithms.execution: AlgorithmBundle ExecutionStrategy RunnerBundle",),
    "execution.client_server": ("algorithms.client_server: ClientServerExecutionStrategy",),
    "execution.events": _EVENTS,
    "execution.shared_memory": ("algorithms.shared_memory: SharedMemoryExecutionStrategy",),
    "instrumentation": ("runners.instrumentation: instrument_all uninstrument_all",),
    "litagent": (*_AGENTS, *_DECORATORS),
    "litagent.decorator": _DECORATORS,
    "litagent.litagent": _AGENTS,
    "logging": (
        "core.loglines: configure_logger setup=setup_logging setup_logging",
        "core.loglines: setup_module=setup_module_logging setup_module_logging",
    ),
    "reward": _REWARDS,
    "runner": (
        "runners.base: Runner",
        "runners.legacy_runner: AgentRunner=LegacyAgentRunner LegacyAgentRunner",
        "runners.runner: LitAgentRunner",
    ),
    "runner.agent": ("runners.runner: LitAgentRunner",),
    "runner.base": ("runners.base: Runner",),
    "runner.legacy": ("runners.legacy_runner: LegacyAgentRunner",),
    "semconv": (
        "core.semconv: AGL_ANNOTATION AGL_EXCEPTION AGL_MESSAGE AGL_OBJECT AGL_OPERATION AGL_REWARD AGL_VIRTUAL",
        "core.semconv: LightningResourceAttributes LightningSpanAttributes LinkAttributes LinkPydanticModel",
        "core.semconv: RewardAttributes RewardPydanticModel",
    ),
    "server": ("algorithms.legacy_server: AgentLightningServer",),
    "store": (
        *_STORE_HTTP,
        "core.contract: LightningStore",
        "core.store_terms: LightningStoreCapabilities LightningStoreStatistics",
        "projections.memory_store: InMemoryLightningStore",
        "projections.rest.threaded: LightningStoreThreaded",
    ),
    "store.base": _STORE_TERMS,
    "store.client_server": _STORE_HTTP,
    "store.memory": ("projections.memory_store: InMemoryLightningStore",),
    "store.threading": ("projections.rest.threaded: LightningStoreThreaded",),
    "tracer": (
        *_TRACER_BASE,
        "runners.agentops_tracer: AgentOpsTracer",
        "runners.dummy_tracer: DummyTracer",
        "runners.otel_tracer: OtelTracer",
        "algorithms.adapters.triplets: TripletExporter",
    ),
    "tracer.agentops": ("runners.agentops_tracer: AgentOpsTracer",),
    "tracer.base": _TRACER_BASE,
    "tracer.dummy": ("runners.dummy_tracer: DummyTracer",),
    "tracer.otel": ("runners.otel_provider: LightningSpanProcessor", "runners.otel_tracer: OtelTracer"),
    "tracer.triplet": ("algorithms.adapters.triplets: TripletExporter",),
    "trainer": ("algorithms.components: build_component", "algorithms.trainer: Trainer"),
    "trainer.init_utils": ("algorithms.components: build_component",),
    "trainer.trainer": ("algorithms.trainer: Trainer",),
    "types": (*_TYPES_CORE, *_TYPES_RESOURCES, *_TYPES_TRACER),
    "types.core": _TYPES_CORE,
    "types.resources": _TYPES_RESOURCES,
    "types.tracer": _TYPES_TRACER,
    "utils": (),
    "utils.id": ("core.ids: generate_id",),
    "utils.otel": (
        "runners.attributes: check_attributes_sanity filter_and_unflatten_attributes filter_attributes",
        "runners.attributes: flatten_attributes format_exception_attributes full_qualified_name",
        "runners.attributes: sanitize_attribute_value sanitize_attributes sanitize_list_attribute_sanity",
        "runners.attributes: unflatten_attributes",
        "runners.links: extract_links_from_attributes extract_tags_from_attributes make_link_attributes",
        "runners.links: make_tag_attributes query_linked_spans",
        "runners.otel_access: get_tracer get_tracer_provider",
    ),
    "utils.server_launcher": ("projections.rest.server: LaunchMode PythonServerLauncherArgs",),
    "utils.system_snapshot": ("runners.machine: system_snapshot",),
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
