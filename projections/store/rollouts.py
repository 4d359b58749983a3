"""The store's methods about rollouts and attempts: create, claim, change, read, wait."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from ...core.errors import InvalidInput, NotFound, Refused
from ...core.events import codec, payload, schema
from ...core.fold import commands
from ...core.fold.state import Rollout, State
from ...core.model import rollout as model
from ...core.model.query import page
from ...core.model.scalars import plain_scalar
from ...core.model.status import ATTEMPT_STATUSES, FINISHED, MODES, ROLLOUT_STATUSES
from ...core.model.store_interface import UNSET, FilterLogic, LightningStore, SortOrder, Unset
from ..replica import validation
from ..replica.command_context import current_call
from ..spans.span_log import SpansEnd
from .engine import Engine
from .rollout_query import RolloutPages, RolloutQuery
from .views import NO_RESOURCES, Peeked, attempt_out, attempted_out, config_in, latest_out, micros, rollout_out, shown

M = TypeVar("M")

ENQUEUE_BYTES = 800_000
"""One record carries at most about this many bytes of new rollouts; a larger batch is split, with derived ids."""


class RolloutMethods(LightningStore):
    """Part of `EventLogStore` (store.py)."""

    engine: Engine

    # Creating

    async def _new(
        self,
        input: Any,
        mode: str | None,
        resources_id: str | None,
        config: model.RolloutConfig | Mapping[str, Any] | None,
        metadata: Mapping[str, Any] | None,
    ) -> Callable[[str], schema.NewRollout]:
        """Validate and encode; returns what makes the rollout once its id is known."""
        blobs = self.engine.blobs
        checked_mode = validation.one_of(mode, MODES, "mode")
        carried = config_in(None if config is None else validation.config(config))
        metadata = validation.mapping_or_none(metadata, "metadata")
        resources_id = validation.id_or_none(resources_id, "resources_id")
        body = await blobs.settle(blobs.encode(input, "the input"))
        meta = await blobs.settle(blobs.encode(metadata, "the metadata")) if metadata else None
        new = schema.NewRollout("", payload.inline(body), checked_mode, resources_id, carried, payload.inline(meta))
        try:
            new = codec.check(new)
        except codec.Undecodable as error:
            raise InvalidInput(f"a value of the rollout cannot be part of an event: {error}") from None
        fields = (new.input, new.mode, new.resources_id, new.config, new.metadata)
        return lambda rollout_id: schema.NewRollout(rollout_id, *fields)

    def _claimer(self, command_id: str, worker_id: str | None, incarnation: str | None, remote: bool) -> schema.Claim:
        return schema.Claim(
            attempt_id=commands.attempt_id_of(command_id),
            worker_id=validation.text_or_none(worker_id, "worker_id"),
            incarnation=incarnation,
            confirm=remote,
            lag_ms=self.engine.expiry.lag_ms(),
        )

    async def start_rollout(
        self,
        input: model.TaskInput,
        mode: model.RolloutMode | None = None,
        resources_id: str | None = None,
        config: model.RolloutConfig | None = None,
        metadata: dict[str, Any] | None = None,
        worker_id: str | None = None,
    ) -> model.AttemptedRollout:
        new = await self._new(input, mode, resources_id, config, metadata)

        def decided(state: State, command_id: str) -> schema.AnyEvent:
            return commands.start(new(commands.rollout_id_of(command_id)), self._claimer(command_id, worker_id, None, False))

        return await self._changed(decided, commands.rollout_id_of, self._attempted)

    async def enqueue_rollout(
        self,
        input: model.TaskInput,
        mode: model.RolloutMode | None = None,
        resources_id: str | None = None,
        config: model.RolloutConfig | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> model.Rollout:
        new = await self._new(input, mode, resources_id, config, metadata)
        return await self._changed(
            lambda state, command_id: commands.enqueue([new(commands.rollout_id_of(command_id))]),
            commands.rollout_id_of,
            self._plain,
        )

    async def enqueue_many_rollouts(
        self, rollouts: Sequence[model.EnqueueRolloutRequest]
    ) -> Sequence[model.Rollout]:
        made = [
            await self._new(one.input, one.mode, one.resources_id, one.config, one.metadata)
            for one in validation.requests(rollouts)
        ]
        parts: list[list[Callable[[str], schema.NewRollout]]] = []
        size = ENQUEUE_BYTES
        for new in made:
            weight = len(bytes(new("").input)) + len(bytes(new("").metadata)) + 64
            if size + weight > ENQUEUE_BYTES:
                parts.append([])
                size = 0
            parts[-1].append(new)
            size += weight
        call = current_call()
        answers: list[model.Rollout] = []
        bound: str | None = None
        for number, part in enumerate(parts):
            made_now = await self._enqueue_part(part, f"{call.command_id}/{number}" if number else "", bound)
            if bound is None:
                unnamed = [one.resources_id for one, new in zip(made_now, part) if new("").resources_id is None]
                bound = unnamed[0] or NO_RESOURCES if unnamed else None
            answers.extend(made_now)
        return answers

    async def _enqueue_part(
        self, part: list[Callable[[str], schema.NewRollout]], prefix: str, bound: str | None
    ) -> list[model.Rollout]:
        """One record's worth, with ids of its own. `bound`: what the parts before it were bound to by the fold."""

        def ids(command_id: str) -> list[str]:
            return [commands.rollout_id_of(prefix or command_id, index) for index in range(len(part))]

        def decided(state: State, command_id: str) -> schema.AnyEvent:
            new = [make(rollout_id) for make, rollout_id in zip(part, ids(command_id))]
            if bound is not None:
                new = [_bound(one, bound) for one in new]
            return commands.enqueue(new)

        def answer(command_id: str) -> dict[str, Peeked]:
            return {rollout_id: self.engine.peek(rollout_id) for rollout_id in ids(command_id)}

        made = await self.engine.resolve_all(await self.engine.command(decided, answer, prefix))
        return await shown(lambda: [self._plain(rollout, "") for rollout in made], made)

    # Changing

    async def start_attempt(self, rollout_id: str, worker_id: str | None = None) -> model.AttemptedRollout:
        rollout_id = validation.text(rollout_id, "rollout_id")
        return await self._changed(
            lambda state, command_id: commands.start_attempt(
                state, rollout_id, self._claimer(command_id, worker_id, None, False)
            ),
            lambda _: rollout_id,
            self._attempted,
        )

    async def update_rollout(
        self,
        rollout_id: str,
        input: model.TaskInput | Unset = UNSET,
        mode: model.RolloutMode | None | Unset = UNSET,
        resources_id: str | None | Unset = UNSET,
        status: model.RolloutStatus | Unset = UNSET,
        config: model.RolloutConfig | Unset = UNSET,
        metadata: dict[str, Any] | None | Unset = UNSET,
    ) -> model.Rollout:
        blobs = self.engine.blobs
        rollout_id = validation.text(rollout_id, "rollout_id")
        given: dict[str, Any] = {}
        if not isinstance(mode, Unset):
            given["mode"] = validation.one_of(mode, MODES, "mode")
        if not isinstance(resources_id, Unset):
            given["resources_id"] = validation.id_or_none(resources_id, "resources_id")
        if not isinstance(status, Unset):
            given["status"] = validation.one_of(status, ROLLOUT_STATUSES, "status")
        if not isinstance(config, Unset):
            given["config"] = config_in(validation.config(config))
        if not isinstance(metadata, Unset):
            checked = validation.mapping_or_none(metadata, "metadata")
            given["metadata"] = await blobs.settle(blobs.encode(checked, "the metadata"))
        if not isinstance(input, Unset):
            given["input"] = await blobs.settle(blobs.encode(input, "the input"))
        fields = tuple(given)
        spans, ends = self.engine.spans, given.get("status") in FINISHED
        end = await spans.end(rollout_id) if ends else SpansEnd(await spans.watermark(rollout_id), {})

        def decided(state: State, command_id: str) -> schema.AnyEvent:
            attempts = commands.find(state, rollout_id).attempts
            reward = end.rewards.get(attempts[-1].attempt_id) if attempts else None
            return commands.update_rollout(state, rollout_id, fields, **given, watermark=end.watermark, reward=reward)

        return await self._changed(decided, lambda _: rollout_id, self._plain)

    async def update_attempt(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"],
        status: model.AttemptStatus | Unset = UNSET,
        worker_id: str | Unset = UNSET,
        last_heartbeat_time: float | Unset = UNSET,
        metadata: dict[str, Any] | Unset = UNSET,
    ) -> model.Attempt:
        blobs, engine = self.engine.blobs, self.engine
        rollout_id = validation.text(rollout_id, "rollout_id")
        attempt_id = validation.text(attempt_id, "attempt_id")
        new_status = None if isinstance(status, Unset) else validation.one_of(status, ATTEMPT_STATUSES, "status")
        # "" stands for nobody: None in the event leaves the worker as it is
        worker = None if isinstance(worker_id, Unset) else validation.text_or_none(worker_id, "worker_id") or ""
        reported_us = None
        if not isinstance(last_heartbeat_time, Unset):
            reported_us = micros(validation.number(last_heartbeat_time, "last_heartbeat_time"))
        meta = None
        if not isinstance(metadata, Unset):
            checked = validation.mapping_or_none(metadata, "metadata")
            meta = await blobs.settle(blobs.encode(checked, "the metadata"))
        resolved: list[str] = []
        ends = new_status not in (None, "preparing", "running")
        end = await engine.spans.end(rollout_id) if ends else None

        def decided(state: State, command_id: str) -> schema.AnyEvent:
            rollout = commands.find(state, rollout_id)
            attempt = commands.find_attempt(rollout, resolved[0] if resolved else attempt_id)
            if not resolved:
                resolved.append(attempt.attempt_id)
            return commands.update_attempt(
                rollout,
                attempt,
                status=new_status,
                worker_id=worker,
                metadata=meta,
                beat_us=reported_us if reported_us is not None else (engine.beat_us(rollout, attempt) if ends else None),
                watermark=end.watermark if end is not None else None,
                reward=end.rewards.get(attempt.attempt_id) if end is not None else None,
                lag_ms=engine.expiry.lag_ms(),
            )

        def answer(command_id: str) -> tuple[str, Peeked]:
            self._showed_life(rollout_id, resolved[0] if resolved else attempt_id, reported_us)
            return command_id, engine.peek(rollout_id)

        try:
            command_id, peeked = await engine.command(decided, answer)
        except Refused as refused:
            if refused.reason != "late":  # the first end won; the late one is in the log and changes nothing
                raise
            with engine.node.lock:
                command_id, peeked = answer("")
        rollout = await self._there(rollout_id, peeked)
        attempt = commands.find_attempt(rollout, resolved[0] if resolved else attempt_id)
        if attempt_id == "latest" and not resolved:  # a repeated call: it is about the one that its first try found
            event = await asyncio.to_thread(engine.recorded, command_id)
            attempt = rollout.attempts[event.sequence_id - 1] if isinstance(event, schema.AttemptUpdated) else attempt
        return await shown(lambda: attempt_out(rollout_id, attempt, engine.fetch), [rollout])

    def _showed_life(self, rollout_id: str, attempt_id: str, reported_us: int | None) -> None:
        """An update of a hot attempt is a sign of life of it; under the node's lock."""
        engine = self.engine
        rollout = engine.node.state.rollouts.get(rollout_id)
        for attempt in rollout.attempts if rollout is not None else ():
            if attempt.attempt_id == attempt_id:
                key = (rollout_id, attempt.sequence_id)
                engine.heartbeats.beat(key, engine.expiry.now(), engine.time_us())
                if reported_us is not None:
                    engine.heartbeats.reported(key, reported_us)

    # Answering

    async def _changed(
        self,
        decided: Callable[[State, str], schema.AnyEvent],
        named: Callable[[str], str],
        show: Callable[[Rollout, str], M],
        part: str = "",
    ) -> M:
        """Put a command through the log and show the rollout that it is about; both get the id that it had in the end."""

        def answer(command_id: str) -> tuple[str, Peeked]:
            return command_id, self.engine.peek(named(command_id))

        command_id, peeked = await self.engine.command(decided, answer, part)
        rollout = await self._there(named(command_id), peeked)
        return await shown(lambda: show(rollout, command_id), [rollout])

    async def _there(self, rollout_id: str, peeked: Peeked) -> Rollout:
        rollout = await self.engine.resolve(rollout_id, peeked)
        if rollout is None:
            raise NotFound.rollout(rollout_id)
        return rollout

    def _plain(self, rollout: Rollout, _: str) -> model.Rollout:
        return rollout_out(rollout, self.engine.fetch)

    def _attempted(self, rollout: Rollout, command_id: str) -> model.AttemptedRollout:
        """With the attempt that the command made."""
        attempt = commands.find_attempt(rollout, commands.attempt_id_of(command_id))
        return attempted_out(rollout, attempt, self.engine.fetch)

    # Reading

    async def get_rollout_by_id(self, rollout_id: str) -> model.AttemptedRollout | model.Rollout | None:
        rollout_id = validation.text(rollout_id, "rollout_id")
        rollout = await self.engine.read(rollout_id)
        return None if rollout is None else await shown(lambda: latest_out(rollout, self.engine.fetch), [rollout])

    async def get_latest_attempt(self, rollout_id: str) -> model.Attempt | None:
        rollout_id = validation.text(rollout_id, "rollout_id")
        rollout = await self.engine.read(rollout_id)
        if rollout is None or not rollout.attempts:
            return None
        return await shown(lambda: attempt_out(rollout_id, rollout.attempts[-1], self.engine.fetch), [rollout])

    async def query_attempts(
        self,
        rollout_id: str,
        *,
        sort_by: str | None = "sequence_id",
        sort_order: SortOrder = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> model.PaginatedResult[model.Attempt]:
        rollout_id = validation.text(rollout_id, "rollout_id")
        lost: list[str] = []
        rollout = await self.engine.read(rollout_id)
        attempts: list[model.Attempt] = []
        if rollout is not None:
            attempts = await shown(
                lambda: [attempt_out(rollout_id, attempt, self.engine.fetch, lost) for attempt in rollout.attempts],
                [rollout],
            )
        return page(
            attempts, sort_by=sort_by, sort_order=sort_order, limit=limit, offset=offset, model=model.Attempt,
            incomplete=bool(lost),
        )  # fmt: skip

    async def query_rollouts(
        self,
        rollout_ids: Sequence[str] | None = None,
        *,
        status_in: Sequence[model.RolloutStatus] | None = None,
        rollout_id_in: Sequence[str] | None = None,
        rollout_id_contains: str | None = None,
        filter_logic: FilterLogic = "and",
        sort_by: str | None = None,
        sort_order: SortOrder = "asc",
        limit: int = -1,
        offset: int = 0,
        status: Sequence[model.RolloutStatus] | None = None,
    ) -> model.PaginatedResult[model.Rollout | model.AttemptedRollout]:
        if status is not None:
            warnings.warn("query_rollouts(status=...) is now called status_in", DeprecationWarning, stacklevel=2)
        asked = status_in if status_in is not None else status
        statuses = validation.some_of(asked, ROLLOUT_STATUSES, "status_in")
        ids = validation.texts_or_none(rollout_id_in if rollout_id_in is not None else rollout_ids, "rollout_ids")
        contains = validation.text_or_none(rollout_id_contains, "rollout_id_contains")
        limit, offset = plain_scalar(limit), plain_scalar(offset)
        query = RolloutQuery(statuses, ids, contains, filter_logic, sort_by, sort_order, limit, offset)

        def view(rollout: Rollout, lost: list[str]) -> model.Rollout:
            return latest_out(rollout, self.engine.fetch, lost)

        return await RolloutPages(self.engine, query, view).answer()

    # Waiting

    async def wait_for_rollouts(self, rollout_ids: Sequence[str], timeout: float | None = None) -> list[model.Rollout]:
        loop = asyncio.get_running_loop()
        rollout_ids = validation.texts(rollout_ids, "rollout_ids")
        deadline = None if timeout is None else loop.time() + validation.number(timeout, "timeout")
        node, waiters = self.engine.node, self.engine.waiters
        while True:
            with node.lock:
                missing = [one for one in rollout_ids if self.engine.is_finished(one) is False]
                left = None if deadline is None else deadline - loop.time()
                if not missing or (left is not None and left <= 0):
                    over = [one for one in rollout_ids if self.engine.is_finished(one)]
                    break
                future = waiters.add(loop, missing)
            handle = None if left is None else loop.call_later(left, _give_up, future)
            try:
                await future
            finally:
                if handle is not None:
                    handle.cancel()
                with node.lock:
                    waiters.remove(future, missing)
        found = [one for one in await self.engine.read_many(over) if one.status in FINISHED]
        return await shown(lambda: [rollout_out(rollout, self.engine.fetch, []) for rollout in found], found)


def _give_up(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _bound(new: schema.NewRollout, resources_id: str) -> schema.NewRollout:
    if new.resources_id is not None:
        return new
    return schema.NewRollout(new.rollout_id, new.input, new.mode, resources_id, new.config, new.metadata)


