"""One attempt from claim to verdict: resources, trace, agent, spans, status."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..core.contract import LightningStore
from ..core.errors import AgentLightningError
from ..core.hooks import Hook
from ..core.model import AttemptedRollout, AttemptStatus
from ..core.resources import NamedResources
from ..core.spans import Span
from .agents import LitAgent
from .attributes import format_exception_attributes
from .emitters import emit_exception
from .patience import patiently
from .readers import find_final_reward
from .results import store_result
from .threads import run_in_thread
from .tracer import Tracer

if TYPE_CHECKING:
    from .base import Runner

__all__ = ["AttemptRun"]

_log = logging.getLogger(__name__)
CANCEL_SECONDS = 5.0
"""How long a cancelled attempt may take to tell the store."""


@dataclass
class AttemptRun:
    """Executes one claimed attempt; whatever happens, the attempt ends with a status.

    ``run`` returns the exception that made it fail, or None. A cancellation is recorded as
    failed and goes on.
    """

    runner: Runner[Any]
    agent: LitAgent[Any]
    store: LightningStore
    tracer: Tracer
    hooks: Sequence[Hook]
    rollout: AttemptedRollout
    prefix: str
    spans: list[Span] = field(default_factory=lambda: list[Span]())

    async def run(self) -> Exception | None:
        """Execute; see the class."""
        try:
            await self._execute()
        except asyncio.CancelledError:
            _log.warning("%s Cancelled; the attempt is recorded as failed.", self.prefix)
            try:
                await asyncio.wait_for(self._finish("failed", {"cancelled": True}), CANCEL_SECONDS)
            except asyncio.TimeoutError:
                _log.warning("%s The store did not answer; it will find out by the silence.", self.prefix)
            raise
        except Exception as error:
            _log.error("%s Exception during rollout.", self.prefix, exc_info=error)
            await self._finish("failed", {"error": f"{type(error).__name__}: {error}"})
            await self._call_hooks("on_rollout_end", spans=self.spans)
            return error
        await self._finish("succeeded", None)
        await self._call_hooks("on_rollout_end", spans=self.spans)
        return None

    async def _execute(self) -> None:
        resources = await self._resources()
        await self._call_hooks("on_rollout_start")
        started = time.monotonic()
        attempt_id = self.rollout.attempt.attempt_id
        rollout_id = self.rollout.rollout_id
        try:
            async with self.tracer.trace_context(name=rollout_id, rollout_id=rollout_id, attempt_id=attempt_id):
                result = await self._traced(resources)
        finally:
            self.spans = self.tracer.get_last_trace()
        self.spans = await store_result(result, self.rollout, self.store, self.tracer, self.prefix)
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
        if update is None:
            raise RuntimeError(f"Failed to fetch resources: {wanted or 'none were ever added'}.")
        return update.resources

    async def _traced(self, resources: NamedResources) -> Any:
        await self._call_hooks("on_trace_start", tracer=self.tracer)
        try:
            return await self._call_agent(resources)
        except Exception as error:
            self._record(error)
            raise
        finally:
            await self._call_hooks("on_trace_end", tracer=self.tracer)

    def _record(self, error: Exception) -> None:
        try:
            emit_exception(error)
        except (RuntimeError, NotImplementedError):
            # A tracer without spans of its own: the attempt's metadata and this log keep the error.
            _log.debug("%s %s", self.prefix, format_exception_attributes(error)["exception.stacktrace"])

    async def _call_agent(self, resources: NamedResources) -> Any:
        """The agent's result. Its own task or thread, so that its cancellation is not taken for ours."""
        agent, rollout = self.agent, self.rollout
        training = rollout.mode == "train"
        name = f"agent-of-{rollout.rollout_id}"
        work: asyncio.Future[Any]
        if agent.is_async():
            method = agent.training_rollout_async if training else agent.validation_rollout_async
            work = asyncio.ensure_future(_shielded(lambda: method(rollout.input, resources, rollout)))
        else:
            call = agent.training_rollout if training else agent.validation_rollout
            work = run_in_thread(lambda: call(rollout.input, resources, rollout), name)
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError:
            work.cancel()
            await asyncio.wait({work}, timeout=CANCEL_SECONDS)
            if work.done() and not work.cancelled():
                work.exception()
            raise
        if work.cancelled():
            raise RuntimeError("The agent was cancelled from inside")
        return work.result()

    async def _finish(self, status: AttemptStatus, metadata: dict[str, Any] | None) -> None:
        rollout_id, attempt_id = self.rollout.rollout_id, self.rollout.attempt.attempt_id
        fields: dict[str, Any] = {"status": status}
        if metadata is not None:
            fields["metadata"] = {**(self.rollout.attempt.metadata or {}), **metadata}
        try:
            await patiently(lambda: self.store.update_attempt(rollout_id, attempt_id, **fields), self.prefix)
        except AgentLightningError as error:
            # For instance: somebody removed the rollout, or ended the attempt, meanwhile.
            _log.warning("%s The store does not take %r for this attempt: %s", self.prefix, status, error)
        except Exception:
            _log.exception("%s Exception during update_attempt. Giving up the update.", self.prefix)

    async def _call_hooks(self, name: str, **arguments: Any) -> None:
        for hook in self.hooks:
            try:
                await getattr(hook, name)(agent=self.agent, runner=self.runner, rollout=self.rollout, **arguments)
            except Exception:
                _log.exception("%s Exception during %s hook.", self.prefix, name)


async def _shielded(call: Callable[[], Awaitable[Any]]) -> Any:
    try:
        return await call()
    except SystemExit as error:
        # It would end the event loop, and with it the runner.
        raise RuntimeError(f"{type(error).__name__}: {error}") from error
