"""One attempt from claim to final status: resources, trace, agent, spans, output."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...core.errors import AgentLightningError, AttemptTimedOut, IncompleteTrace
from ...core.model.hooks import Hook
from ...core.model.resources import NamedResources, prompts_watched, with_keys
from ...core.model.rollout import AttemptedRollout, AttemptStatus
from ...core.model.semconv import AGL_EXCEPTION, AGL_OUTPUT
from ...core.model.span import Span, SpanCoreFields, TraceStatus
from ...core.model.store_interface import LightningStore
from ...core.retry import patiently
from ...core.spans.attributes import format_exception_attributes
from ...core.spans.rewards import find_final_reward
from ..agent.litagent import LitAgent, call_for
from ..emit import emit_exception
from ..tracing.base import CURRENT_RUNNER, Tracer
from ..tracing.span_buffer import CURRENT_BUFFER
from .agent_call import CANCEL_SECONDS, AgentExecutor, Watchdog, call_agent, error_text, log_failure
from .agent_result import add_spans, bound_span, check_trace, describe_findings, log_findings, reward_span, store_result
from .output_capture import OutputCapture, capture

if TYPE_CHECKING:
    from .base import Runner

__all__ = ["AttemptOptions", "AttemptRun"]

_log = logging.getLogger(__name__)
LONGEST_ERROR = 2000
"""Characters of an error in the attempt's metadata; the span of the exception has all of it."""
LOOK_SECONDS = 5.0
"""How often the store is asked whether a rollout that runs was cancelled."""


@dataclass
class AttemptOptions:
    """What all attempts of a runner share: see :class:`LitAgentRunner`; ``logged`` holds findings that were logged."""

    watchdog: Watchdog
    capture_output: bool = True
    strict_traces: bool = False
    logged: set[str] = field(default_factory=lambda: set[str]())


@dataclass
class AttemptRun:
    """Executes one claimed attempt; whatever happens, the attempt ends with a status.

    ``run`` returns the exception that made it fail, or None. A cancellation is recorded as
    failed and goes on. The exception with its traceback is a span, the output of the agent is another, and what is
    missing in its trace is in the metadata of the attempt.
    """

    runner: Runner[Any]
    agent: LitAgent[Any]
    store: LightningStore
    tracer: Tracer
    hooks: Sequence[Hook]
    rollout: AttemptedRollout
    prefix: str
    options: AttemptOptions
    executor: AgentExecutor
    spans: list[Span] = field(default_factory=lambda: list[Span]())
    output: OutputCapture = field(default_factory=OutputCapture)
    _reported: BaseException | None = None
    _began: bool = False
    _metadata: dict[str, Any] | None = None

    async def run(self) -> Exception | None:
        """Execute; see the class."""
        token = CURRENT_RUNNER.set((self.agent, self.runner))
        try:
            return await self._run()
        finally:
            CURRENT_RUNNER.reset(token)

    async def _run(self) -> Exception | None:
        try:
            await self._execute()
        except asyncio.CancelledError:
            _log.warning("%s Cancelled; the attempt is recorded as failed.", self.prefix)
            try:
                await asyncio.wait_for(self._end("failed", {"cancelled": True}, None), CANCEL_SECONDS)
            except asyncio.TimeoutError:
                _log.warning("%s The store did not answer; it expires the attempt when heartbeats are missing.", self.prefix)
            raise
        except Exception as error:
            log_failure(error, self.prefix, f"Traceback: `agl show {self.rollout.rollout_id}`, or log level DEBUG.")
            status: AttemptStatus = "timeout" if isinstance(error, AttemptTimedOut) else "failed"
            await self._end(status, {"error": error_text(error)[:LONGEST_ERROR]}, error)
            return error
        await self._end("succeeded", self._metadata, None)
        return None

    async def _end(self, status: AttemptStatus, metadata: dict[str, Any] | None, error: Exception | None) -> None:
        await self._store_rest(error)
        await self._finish(status, metadata)
        if self._began:
            await self._call_hooks("on_rollout_end", spans=self.spans)

    async def _execute(self) -> None:
        resources = await self._resources()
        self._began = True
        await self._call_hooks("on_rollout_start")
        started = time.monotonic()
        attempt_id = self.rollout.attempt.attempt_id
        rollout_id = self.rollout.rollout_id
        with prompts_watched(self.agent.strict_prompts) as lost:
            try:
                async with self.tracer.trace_context(name=rollout_id, rollout_id=rollout_id, attempt_id=attempt_id):
                    result = await self._traced(resources)
                    result = self._with_trace(result)
            finally:
                self.spans = self.tracer.get_last_trace()
        traced = self.spans
        self.spans = await store_result(result, self.rollout, self.store, self.tracer, self.prefix)
        await self._lint([*traced, *self.spans], resources, sorted(lost))
        _log.info(
            "%s Completed in %.2fs. Collected %d span(s). Final reward: %s",
            self.prefix,
            time.monotonic() - started,
            len(self.spans),
            find_final_reward(self.spans),
        )

    async def _resources(self) -> NamedResources:
        wanted = self.rollout.resources_id
        if wanted is None:
            update = await patiently(self.store.get_latest_resources, self.prefix)
        else:
            update = await patiently(lambda: self.store.get_resources_by_id(wanted), self.prefix)
        if update is None and wanted is None and not self.agent.needs_resources:
            return {}
        if update is None:
            raise RuntimeError(f"Failed to fetch resources: {wanted or 'none were ever added'}.")
        return with_keys(update.resources)

    async def _traced(self, resources: NamedResources) -> Any:
        await self._call_hooks("on_trace_start", tracer=self.tracer)
        try:
            return await self._captured(resources)
        except Exception as error:
            self._record(error)
            raise
        finally:
            await self._call_hooks("on_trace_end", tracer=self.tracer)

    def _with_trace(self, result: Any) -> Any:
        """Have a reward that the agent returned stored in one call with the rest of its trace; what is left to store."""
        buffer = CURRENT_BUFFER.get()
        reward = None if buffer is None else reward_span(result, self.rollout, self.prefix)
        if buffer is None or reward is None:
            return result
        buffer.add_last(reward)
        return None

    async def _captured(self, resources: NamedResources) -> Any:
        with capture(self.output) if self.options.capture_output else nullcontext():
            rollout = self.rollout
            return await call_agent(
                call_for(self.agent, rollout.mode, rollout.input, rollout.rollout_id, resources, rollout),
                self.agent.is_async(),
                rollout.config.timeout_seconds,
                self.executor,
                self.options.watchdog,
                self.prefix,
                self._cancelled_elsewhere,
            )

    async def _cancelled_elsewhere(self) -> None:
        """Returns once the rollout is cancelled in the store."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                rollout = await self.store.get_rollout_by_id(self.rollout.rollout_id)
            except AgentLightningError as error:
                _log.debug("%s The status of the rollout is unknown: %s", self.prefix, error)
            else:
                if rollout is not None and rollout.status == "cancelled":
                    return

    def _record(self, error: Exception) -> None:
        try:
            emit_exception(error)
            self._reported = error
        except (RuntimeError, NotImplementedError) as missing:
            # A tracer without spans of its own: the exception is stored with the rest, below.
            _log.debug("%s %s", self.prefix, missing)

    async def _lint(self, spans: Sequence[Span], resources: NamedResources, lost: Sequence[str]) -> None:
        strict = self.options.strict_traces
        codes = check_trace(spans, resources, lost, strict)
        if not codes:
            return
        if strict:
            raise IncompleteTrace(f"The trace is incomplete: {describe_findings(codes, lost)}")
        log_findings(codes, lost, self.options.logged, self.prefix)
        self._metadata = {"trace_lint": codes, **({"lost_placeholders": lost} if lost else {})}

    async def _store_rest(self, error: Exception | None) -> None:
        """Store what happened outside of the trace: an exception that is not in it, and the output."""
        rest: list[SpanCoreFields] = []
        if error is not None and error is not self._reported:
            fields = format_exception_attributes(error)
            status = TraceStatus(status_code="ERROR", description=error_text(error))
            rest.append(_moment(AGL_EXCEPTION, fields, status))
        printed = self.output.attributes()
        if printed is not None:
            rest.append(_moment(AGL_OUTPUT, printed, TraceStatus(status_code="OK")))
        try:
            await add_spans([bound_span(core, self.rollout) for core in rest], self.store)
        except Exception as refusal:
            # The status of the attempt does not depend on it.
            _log.error("%s The output or the exception of the attempt could not be stored.", self.prefix, exc_info=refusal)
            if error is not None:
                _log.error("%s The exception was:", self.prefix, exc_info=error)

    async def _finish(self, status: AttemptStatus, metadata: dict[str, Any] | None) -> None:
        rollout_id, attempt_id = self.rollout.rollout_id, self.rollout.attempt.attempt_id
        fields: dict[str, Any] = {"status": status}
        try:
            if metadata is not None:
                fields["metadata"] = {**await self._metadata_now(), **metadata}
            await patiently(lambda: self.store.update_attempt(rollout_id, attempt_id, **fields), self.prefix)
        except AgentLightningError as error:
            # For instance: the rollout was removed, or the attempt ended, meanwhile.
            _log.warning("%s The store does not take %r for this attempt: %s", self.prefix, status, error)
        except Exception:
            _log.exception("%s Exception during update_attempt. Giving up the update.", self.prefix)

    async def _metadata_now(self) -> dict[str, Any]:
        """The attempt's metadata with what the agent may have added, since an update replaces it as a whole."""
        latest = await patiently(lambda: self.store.get_latest_attempt(self.rollout.rollout_id), self.prefix)
        own = latest if latest is not None and latest.attempt_id == self.rollout.attempt.attempt_id else self.rollout.attempt
        return own.metadata or {}

    async def _call_hooks(self, name: str, **arguments: Any) -> None:
        for hook in self.hooks:
            try:
                await getattr(hook, name)(agent=self.agent, runner=self.runner, rollout=self.rollout, **arguments)
            except (Exception, SystemExit):
                _log.exception("%s Exception during %s hook.", self.prefix, name)


def _moment(name: str, attributes: Any, status: TraceStatus) -> SpanCoreFields:
    now = time.time()
    return SpanCoreFields(name=name, attributes=attributes, status=status, start_time=now, end_time=now)
