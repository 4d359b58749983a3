"""Delivery of a fact to a subscriber: retried with back-off when it raises, and a dead letter when it is never taken."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from ...core.errors import AgentLightningError, InvalidInput
from ...core.log.dead_letter import SUBSCRIBER, DeadLetter, subscriber_letter_id
from ...core.model.rollout import Fact
from ...core.retry import Backoff
from ...projections.store.dead_letters import HANDLED, settle
from ...runners.stop_events import StopSignal, until_set
from .decorator import Subscriber, load_subscriber

logger = logging.getLogger(__name__)

LONGEST_PAUSE_SECONDS = 30.0

AddDeadLetter = Callable[[DeadLetter], Awaitable[None]]
"""Puts a letter into the topic `dead`; raises where it did not get there."""


class Stopped(Exception):
    """The process is to end before the fact was taken; it is delivered again next time."""


@dataclass(frozen=True)
class Delivered:
    """What became of one fact: `error` is empty where the function took it, else why it lies in `dead` now."""

    fact: Fact
    tries: int
    seconds: float
    error: str = ""


class Delivery:
    """Delivers facts to one subscriber, one at a time. `on_delivered` is called after each.

    `retries`: further tries after the first, with pauses of `backoff_seconds`, twice that, and so on up to 30 s. An error
    of ours that says of itself that it passes (a store that is away, an outcome that is not known) costs no try.
    """

    def __init__(
        self,
        subscriber: Subscriber[Any],
        *,
        name: str,
        group: str,
        stop: StopSignal,
        add_dead_letter: AddDeadLetter,
        store: Any = None,
        retries: int = 5,
        backoff_seconds: float = 0.5,
        on_delivered: Callable[[Delivered], None] | None = None,
    ) -> None:
        self.subscriber = subscriber
        self.group = group
        self.stop = stop
        self.add_dead_letter = add_dead_letter
        self.busy = False
        self._name = name
        self._store = store
        self._retries = retries
        self._backoff = Backoff(backoff_seconds, LONGEST_PAUSE_SECONDS)
        self._on_delivered = on_delivered

    async def deliver(self, fact: Fact) -> Delivered:
        """Return when the fact was taken or lies in `dead`. Raises `Stopped` between two tries."""
        began = time.perf_counter()
        tries = passing = 0
        while True:
            error = await self._try(fact)
            if error is None:
                return self._done(Delivered(fact, tries + 1, time.perf_counter() - began))
            if isinstance(error, AgentLightningError) and error.retryable:
                passing += 1
            else:
                tries += 1
            reason = f"{type(error).__name__}: {error}"
            if tries > self._retries:
                await self._give_up(fact, tries, reason)
                return self._done(Delivered(fact, tries, time.perf_counter() - began, reason))
            logger.warning("%s was not taken (%s); it is tried again.", fact.id, reason)
            await self._pause(tries + passing)

    async def _try(self, fact: Fact) -> Exception | None:
        self.busy = True
        try:
            await self.subscriber.take(fact, self._store)
        except Exception as error:  # the user's function: whatever it raises is recorded with the fact
            return error
        finally:
            self.busy = False
        return None

    async def _give_up(self, fact: Fact, tries: int, reason: str) -> None:
        letter = DeadLetter(
            id=subscriber_letter_id(self.group, fact.id),
            kind=SUBSCRIBER,
            source=self.group,
            reason=reason,
            time=time.time(),
            tries=tries,
            rollout_id=fact.rollout_id,
            attempt_id=fact.attempt_id,
            position=fact.position,
            data={"function": self._name, "fact": fact.model_dump(mode="json")},
        )
        await self.put(letter)

    async def put(self, letter: DeadLetter) -> None:
        """Write a letter, however long its store is away: a fact is never passed over without one. Raises `Stopped`."""
        for number in range(1, 1 << 30):
            try:
                return await self.add_dead_letter(letter)
            except AgentLightningError as error:
                if not error.retryable:
                    raise
                logger.warning("The letter about %s could not be written (%s); it is tried again.", letter.id, error)
                await self._pause(number)

    async def _pause(self, number: int) -> None:
        if await until_set(self.stop, self._backoff.delay(number)):
            raise Stopped

    def _done(self, delivered: Delivered) -> Delivered:
        fact = delivered.fact
        what = f"{fact.type} {fact.rollout_id or ''}".rstrip()
        if delivered.error:
            logger.error("%s (%s): given up after %d tries: %s", what, fact.id, delivered.tries, delivered.error)
        else:
            again = f", try {delivered.tries}" if delivered.tries > 1 else ""
            logger.info("%s (%s): handled in %.0f ms%s", what, fact.id, delivered.seconds * 1000, again)
        if self._on_delivered is not None:
            self._on_delivered(delivered)
        return delivered


async def redeliver(store: Any, letter: DeadLetter, function: str | None) -> None:
    """Give the fact of a letter to its function once more, and settle the letter. Raises `InvalidInput` where that fails."""
    spec = function or letter.data.get("function")
    if not isinstance(spec, str):
        raise InvalidInput(f"{letter.id} does not say which function it failed in; name one with --function")
    found = load_subscriber(spec)
    try:
        fact = Fact.model_validate(letter.data.get("fact"))
    except ValueError as error:
        raise InvalidInput(f"{letter.id} holds no fact: {error}") from error
    try:
        await found.take(fact, store)
    except Exception as error:  # the user's function: the letter stays as it is
        raise InvalidInput(f"{spec} did not take it: {type(error).__name__}: {error}") from error
    await settle(store, letter, HANDLED)
