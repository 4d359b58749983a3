"""The context of a command: its idempotency key, what its caller knew, and the answer that it waits for.

The store's methods keep the signatures of the public API. Who can repeat a call (the HTTP door) puts a `Call` here
before it calls the store; without one every call is a first try under a new id.

What a caller has seen of a log is a position token, text that travels in a header: `LOG:FINGERPRINT:POSITION` counts the
control records that were folded. Where the log is on a broker, the ends of span partitions follow as `~PARTITION=END,...`:
a broker may say for a moment that a partition ends before records that it has acknowledged.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from ...core.errors import Expired, InvalidInput, LogError, Refused
from ...core.fold.deduplication import Reason
from ...core.ids import uuid7_hex
from ...core.log.interface import Ack, Log, NewRecord
from ...core.log.topics import partition_of


class Call(NamedTuple):
    """`basis` is (position, fingerprint) that the caller knew at its first try, the same in every retry; None: ours.

    `remote`: the answer can be lost on its way, so a claim has to be confirmed by a sign of life.
    """

    command_id: str
    basis: tuple[int, bytes] | None = None
    remote: bool = False
    repeatable: bool = False
    """The caller chose the id, so it may come again and ask for the same answer."""


_current: ContextVar[Call | None] = ContextVar("agentlightning_call", default=None)


def current_call(command_id: str | None = None) -> Call:
    """The call being served, or a new one under `command_id` or a fresh id."""
    call = _current.get()
    if call is not None and command_id is None:
        return call
    remote = call.remote if call is not None else False
    basis = call.basis if call is not None else None
    return Call(command_id or uuid7_hex(), basis, remote, repeatable=command_id is not None)


def serve(call: Call) -> None:
    """Make `call` the current one of this task; tasks have their own context, so nothing needs to be undone."""
    _current.set(call)


RACES: frozenset[Reason] = frozenset({"stale_generation", "stale_attempt", "not_claimable", "archived", "version_conflict"})
"""Refusals that mean: another command was first, look again and go on under the next id."""
MAX_RACES = 64


class CommandIds:
    """The ids of one command: `base`, `base.1`, `base.2`, ... A retry walks the same ids to the same answer.

    The next id is taken only after the log holds a verdict on this one: an id that was skipped without a record would be
    free for a retry, which would then be accepted as a second command.
    """

    def __init__(self, base: str, most: int | None = MAX_RACES) -> None:
        self._base = base
        self._most = most
        self._number = 0

    @property
    def current(self) -> str:
        """The id under which the command is tried now."""
        return self._base if not self._number else f"{self._base}.{self._number}"

    def advance(self) -> None:
        """Go on after a recorded verdict. Raises `Refused` after too many."""
        self._number += 1
        if self._number == self._most:
            raise Refused(f"command {self._base} lost {self._most} races", reason="contended")

    def refused(self, reason: str) -> None:
        """Go on after a verdict that refused a race; raises the error of any other refusal."""
        if reason not in RACES:
            raise refusal(reason, self.current)
        self.advance()


def refusal(reason: str, command_id: str) -> Exception:
    """The error for a verdict that is not an answer."""
    if reason == "expired":
        return Expired(f"command {command_id} is older than what the log can judge; read the entity to see its outcome")
    return Refused(f"the log refused command {command_id}: {reason}", reason=reason)


Slot = tuple["asyncio.Future[Any]", Any, bool]


class _Mailbox:
    """Futures of one event loop that are to be settled: it is woken once for all that come before it has looked."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._slots: deque[Slot] = deque()
        self._woken = False

    def deliver(self, slots: list[Slot]) -> None:
        """From any thread. In a loop that was closed meanwhile nobody waits."""
        self._slots.extend(slots)
        if self._woken:
            return
        self._woken = True
        try:
            self.loop.call_soon_threadsafe(self._empty)
        except RuntimeError:
            if not self.loop.is_closed():
                raise

    def _empty(self) -> None:
        self._woken = False  # first: what comes from now on wakes the loop again
        slots: list[Slot] = []
        while self._slots:
            slots.append(self._slots.popleft())
        _settle(slots)


def _settle(slots: list[Slot]) -> None:
    for future, value, failed in slots:
        if not future.done():
            if failed:
                future.set_exception(value)
            else:
                future.set_result(value)


class Delivery:
    """Collects settled futures and resolves them with one wake-up of each loop. Not thread-safe: use it under a lock."""

    def __init__(self) -> None:
        self._by_loop: dict[asyncio.AbstractEventLoop, list[Slot]] = {}
        self._mailboxes: dict[asyncio.AbstractEventLoop, _Mailbox] = {}

    def put(self, future: asyncio.Future[Any], value: Any, failed: bool = False) -> None:
        """Settle `future` at the next `flush`."""
        loop = future.get_loop()
        slots = self._by_loop.get(loop)
        if slots is None:
            slots = self._by_loop[loop] = []
        slots.append((future, value, failed))

    def flush(self) -> None:
        """Wake the loops."""
        if not self._by_loop:
            return
        ready, self._by_loop = self._by_loop, {}
        for loop, slots in ready.items():
            mailbox = self._mailboxes.get(loop)
            if mailbox is None:
                self._mailboxes = {known: one for known, one in self._mailboxes.items() if not known.is_closed()}
                mailbox = self._mailboxes[loop] = _Mailbox(loop)
            mailbox.deliver(slots)


T = TypeVar("T")


async def answer_of(ask: Callable[[Callable[[T | LogError], None]], None]) -> T:
    """What a log gives to the callback with which `ask` calls it. Raises the error that it gives."""
    loop, asking = asyncio.get_running_loop(), threading.get_ident()
    future: asyncio.Future[T] = loop.create_future()

    def done(answer: T | LogError) -> None:
        slot = (future, answer, isinstance(answer, LogError))
        if threading.get_ident() == asking:  # a log of this process answers some questions at once
            _settle([slot])
            return
        delivery = Delivery()
        delivery.put(*slot)
        delivery.flush()

    ask(done)
    return await future


async def append_and_wait(log: Log, topic: str, records: Sequence[NewRecord]) -> Ack:
    """Append records of one key; returns when they are durable. Raises `LogError` where they are not, or not known to be."""
    partition = partition_of(records[0].key, log.partitions(topic))
    return await answer_of(lambda done: log.append(topic, partition, records, done))


SPAN_ENDS = 64
"""Ends that a token carries at most, those that became known last: a header has its limits."""
_HEAD = re.compile(r"([^:]*):((?:[0-9a-f]{16})?):([0-9]{1,18})")
_ENDS = re.compile(r"[0-9]{1,5}=[0-9]{1,18}(?:,[0-9]{1,5}=[0-9]{1,18})*")


@dataclass(frozen=True)
class Position:
    """A token that was read. `fingerprint` is None where only the position matters; `spans`: partition -> end."""

    log_id: str
    fingerprint: bytes | None
    position: int
    spans: Mapping[int, int] = field(default_factory=dict[int, int])


@lru_cache(1024)
def read_token(token: str) -> Position:
    """What a token says. Raises `InvalidInput`."""
    head, spans = split(token)
    found = _HEAD.fullmatch(head)
    if found is None:
        raise InvalidInput(f"{token[:100]!r} is not a position token")
    return Position(found[1], bytes.fromhex(found[2]) or None, int(found[3]), spans)


def number_of(token: str) -> int:
    """How many control records a token counts; -1 for what is no token."""
    number = token.partition("~")[0].rpartition(":")[2]
    return int(number) if number.isdigit() else -1


def split(token: str) -> tuple[str, dict[int, int]]:
    """(token without the ends of span partitions, those ends). Raises `InvalidInput` for ends that are none."""
    head, mark, text = token.partition("~")
    if not mark:
        return head, {}
    if _ENDS.fullmatch(text) is None:
        raise InvalidInput(f"{token[:100]!r} is not a position token")
    pairs = (one.partition("=") for one in text.split(","))
    return head, {int(part): int(end) for part, _, end in pairs}


def joined(head: str, spans: Mapping[int, int]) -> str:
    """A token of its parts; the last of `spans` are those that became known last."""
    if not spans:
        return head
    newest = list(spans.items())[-SPAN_ENDS:]
    return f"{head}~{','.join(f'{part}={end}' for part, end in newest)}"


def raised(known: Mapping[int, int], spans: Mapping[int, int]) -> Mapping[int, int]:
    """The higher end of each partition; what `spans` raised comes last, and no more is kept than a token carries."""
    if all(end <= known.get(part, 0) for part, end in spans.items()):
        return known
    made = dict(known)
    for part, end in spans.items():
        if end > made.get(part, 0):
            made.pop(part, None)
            made[part] = end
    return dict(list(made.items())[-SPAN_ENDS:])
