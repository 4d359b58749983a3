"""AgentOpsTracer: the tracer of the tutorials, with or without the AgentOps SDK."""

from __future__ import annotations

import importlib
import logging
from typing import Any

from ...core.model.store_interface import LightningStore
from .otel import OtelTracer

__all__ = ["AgentOpsTracer"]

_log = logging.getLogger(__name__)
# An address without a server: the SDK needs one, and its default is on the network.
_NOWHERE = "http://127.0.0.1:9"


class AgentOpsTracer(OtelTracer):
    """Records what agents do; spans go to the store only.

    With the extra ``agentops`` installed the SDK is set up with its network cut off, and what it
    traces is recorded beside what the OpenAI instrumentation records. Without it the tracer is
    an :class:`OtelTracer` and logs that once.

    Args:
        agentops_managed: set up the SDK, where it is installed.
        instrument_managed: patch the OpenAI client.
        daemon: part of the older interface; there is no process to be one.
    """

    session_span = True

    def __init__(self, *, agentops_managed: bool = True, instrument_managed: bool = True, daemon: bool = True) -> None:
        super().__init__(instrument_managed=instrument_managed)
        self._agentops_managed = agentops_managed
        self._logged = False
        self.daemon = daemon

    def init_worker(self, worker_id: int, store: LightningStore | None = None, *args: Any, **kwargs: Any) -> None:
        """As :meth:`OtelTracer.init_worker`, then the SDK."""
        super().init_worker(worker_id, store)
        if self._agentops_managed:
            self._start_agentops(worker_id)

    def _start_agentops(self, worker_id: int) -> None:
        try:
            agentops = importlib.import_module("agentops")
        except ImportError as error:
            if error.name != "agentops":
                _log.warning("[Worker %s] The AgentOps SDK is installed and cannot be imported: %s", worker_id, error)
            elif not self._logged:
                _log.info(
                    "[Worker %s] The AgentOps SDK is not installed; spans are recorded by OpenTelemetry.", worker_id
                )
                self._logged = True
            return
        try:
            _cut_off(agentops)
            agentops.init(
                api_key="dummy",
                endpoint=_NOWHERE,
                exporter_endpoint=_NOWHERE,
                auto_start_session=False,
                instrument_llm_calls=False,
                fail_safe=True,
                log_level="CRITICAL",
            )
        except Exception as error:
            # Its own start must not keep a runner from working: our spans do not need it.
            _log.warning("[Worker %s] The AgentOps SDK could not be started: %s", worker_id, error)
            return
        from .provider import watch_global_provider

        watch_global_provider()
        _log.info("[Worker %s] AgentOps client initialized.", worker_id)


def _cut_off(agentops: Any) -> None:
    """Replace what the SDK would send and write with: its exporter, its look-up of the account, its log file.

    It would also put a ``print`` of its own into ``builtins``, to send what is printed.
    """
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class Nowhere(SpanExporter):
        """Takes spans and forgets them."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            del args, kwargs

        def export(self, spans: Any) -> SpanExportResult:
            """Succeed."""
            return SpanExportResult.SUCCESS

    core = importlib.import_module("agentops.sdk.core")
    for name in ("OTLPSpanExporter", "AuthenticatedOTLPExporter"):
        if hasattr(core, name):
            setattr(core, name, Nowhere)
    for module, name in (("agentops.client.client", "configure_logging"), ("agentops.sdk.core", "setup_print_logger")):
        if hasattr(importlib.import_module(module), name):
            setattr(importlib.import_module(module), name, _nothing)
    logging.getLogger("agentops").setLevel(logging.CRITICAL)
    client = importlib.import_module("agentops.client.api.versions.v3").V3Client

    async def no_token(self: Any, api_key: str) -> dict[str, Any]:
        return {"token": "none", "project_id": "none", "api_key": api_key}

    client.fetch_auth_token = no_token


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Stands in for functions of the SDK that have an effect outside of the process, or on all of it."""
