"""EventLogStore: the whole `LightningStore` over any log."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from ...core.clock import Clock
from ...core.errors import LogClosed
from ...core.log.interface import Log
from ...core.model.rollout import Fact
from ...core.model.store_interface import LightningStoreCapabilities, LightningStoreStatistics
from ..replica.divergence import Ended, HistoryGuard
from ..replica.settings import StoreSettings
from .claims import ClaimMethods, Returns
from .dead_letters import DeadLetterMethods
from .engine import Engine
from .resources import ResourceMethods, WorkerMethods
from .rollouts import RolloutMethods
from .runs import RunMethods
from .spans import SpanMethods


class EventLogStore(
    ClaimMethods, RolloutMethods, SpanMethods, ResourceMethods, WorkerMethods, DeadLetterMethods, RunMethods
):
    """A store whose every state, queue and statistic is a projection of `log`.

    It may be used from any thread and any number of event loops; a mutation returns when it is durable in the log and
    applied here. Close it, or use it as a context manager: closing finishes what is under way.
    """

    def __init__(
        self,
        log: Log,
        *,
        settings: StoreSettings | None = None,
        clock: Clock | None = None,
        index_path: str | None = None,
        foreign_writers: bool = False,
    ) -> None:
        self._log = log
        self._on_end: list[Callable[[Exception], None]] = []
        self._ended: Exception | None = None
        self.engine = Engine(
            log, settings=settings, clock=clock, index_path=index_path, foreign_writers=foreign_writers
        )
        self._returns = Returns(self.engine.settings.claim_confirm_seconds)
        self._guard = HistoryGuard(self.engine, self._end)

    def _end(self, error: Exception) -> None:
        self._ended = error
        self.engine = cast(Engine, Ended(error))
        for notify in self._on_end:
            notify(error)

    def on_end(self, notify: Callable[[Exception], None]) -> None:
        """Call `notify`, from any thread, when the log turns out to be another one than was folded (`HistoryChanged`).

        Every call raises that error from then on; the same log, opened again, is folded anew.
        """
        self._on_end.append(notify)
        if self._ended is not None:
            notify(self._ended)

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        return LightningStoreCapabilities(
            thread_safe=True,
            async_safe=True,
            zero_copy=False,
            otlp_traces=False,
            push_dequeue=True,
            liveness=True,
            run_claims=True,
            subscribe=True,
        )

    async def statistics(self) -> LightningStoreStatistics:
        await self.engine.indexed()
        spans = await asyncio.to_thread(self.engine.spans.count)
        archived = await asyncio.to_thread(self.engine.archive_index.counts)
        cold = sum(attempts for _, attempts in archived.values())
        with self.engine.node.lock:
            state = self.engine.node.state
            hot = sum(len(rollout.attempts) for rollout in state.rollouts.values())
            workers = len({*state.workers, *self.engine.heartbeats.workers})
            return LightningStoreStatistics(
                name=type(self).__name__,
                total_rollouts=state.created,
                total_attempts=hot + cold,
                total_spans=spans,
                total_resources=len(state.resources),
                total_workers=workers,
                uptime=self.engine.clock.monotonic() - self.engine.opened_at,
            )

    def subscribe(self, types: Sequence[str] | None = None, *, since: int | None = None) -> AsyncIterator[Fact]:
        if isinstance(types, str):
            types = (types,)
        return self.engine.facts.subscribe(types, since)

    # What the public interface does not have: positions, proof, start-up report

    def position(self) -> str:
        """The token of what is applied here: "log_id:fingerprint:position"."""
        return self.engine.position_token()

    async def wait_position(self, token: str) -> None:
        """Wait until everything up to `token` is applied here.

        Raises `ForeignPosition` for a token of another log, of another history, or ahead of what the log holds.
        """
        await self.engine.wait_position(token)

    def reached(self, token: str) -> bool:
        """Whether everything up to `token` is applied here, without waiting. Raises as `wait_position`."""
        return self.engine.reached(token)

    async def wait_current(self) -> None:
        """Return once this store knows what its log holds now. Raises `StoreUnreachable` where it is cut off for 2 s.

        At once for a log of this process alone.
        """
        if self.engine.contact is not None:
            await self.engine.contact.wait()

    def fingerprint(self) -> tuple[int, str]:
        """(position, hex fingerprint): equal on everybody who folded the same records."""
        position, fingerprint = self.engine.node.mark
        return position, fingerprint.hex()

    def report(self) -> dict[str, Any]:
        """What was opened: url, events, rollouts by status, and the seconds it took."""
        archived = self.engine.archive_index.counts()
        with self.engine.node.lock:
            state = self.engine.node.state
            statuses = Counter(str(rollout.status) for rollout in state.rollouts.values())
            for status, (rollouts, _) in archived.items():
                statuses[status] += rollouts
            return {
                "url": self.engine.log.url,
                "log_id": self.engine.log.log_id,
                "events": state.position,
                "from_snapshot": self.engine.restored_at,
                "rollouts": dict(sorted(statuses.items())),
                "seconds": self.engine.seconds_to_open,
            }

    def close(self) -> None:
        """Finish what is under way and close the log. Idempotent; calls after it raise `LogClosed`."""
        self._guard.close()
        if self._ended is None:
            self.engine.close()
        else:
            self.engine = cast(Engine, Ended(LogClosed("the store was closed")))
            self._log.close()

    async def end(self) -> None:
        """As `close`, from an event loop: in a thread of its own, since the loop's threads may all wait for the log."""
        closer = ThreadPoolExecutor(1, thread_name_prefix="agl-close")
        try:
            await asyncio.get_running_loop().run_in_executor(closer, self.close)
        finally:
            closer.shutdown(wait=False)

    def __enter__(self) -> EventLogStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
