"""Random identifiers: rollouts, attempts, resources, traces, spans and commands."""

from __future__ import annotations

import hashlib
import os
import threading
import time
import uuid
from collections.abc import Callable

from .errors import InvalidInput

__all__ = [
    "CommandIds",
    "attempt_id",
    "generate_id",
    "resources_id",
    "rollout_id",
    "span_id",
    "trace_id",
    "uuid7",
    "uuid7_hex",
]

_TAIL_BITS = 74
_TAIL_LIMIT = 1 << _TAIL_BITS
_DRAW_BYTES = 9
_DRAWS = 4096


def generate_id(length: int) -> str:
    """The first ``length`` (1 to 40) lowercase hex digits of SHA-1 over a random UUID4."""
    if not 1 <= length <= 40:
        raise InvalidInput(f"The length of an id is 1 to 40 hex digits, not {length}")
    return hashlib.sha1(uuid.uuid4().bytes, usedforsecurity=False).hexdigest()[:length]


def rollout_id() -> str:
    """``ro-`` and 12 hex digits."""
    return "ro-" + generate_id(12)


def attempt_id() -> str:
    """``at-`` and 8 hex digits: unique within its rollout only."""
    return "at-" + generate_id(8)


def resources_id() -> str:
    """``rs-`` and 12 hex digits."""
    return "rs-" + generate_id(12)


def trace_id() -> str:
    """32 hex digits, the form of an OpenTelemetry trace id."""
    return os.urandom(16).hex()


def span_id() -> str:
    """16 hex digits, the form of an OpenTelemetry span id."""
    return os.urandom(8).hex()


class CommandIds:
    """A source of UUIDv7s (RFC 9562), each larger than the one before it, from any thread.

    The first 48 bits are the wall clock in milliseconds. Within one millisecond, or when the
    clock goes back, the 74 random bits behind it are raised by a random step instead, so the
    order holds and two processes that share a past (a fork) still draw different ids.

    Args:
        now: wall clock in Unix seconds.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._millis = 0
        self._tail = 0
        self._lock = threading.Lock()
        self._pool = b""
        self._drawn = 0

    def next(self) -> bytes:
        """16 bytes; compares, sorts and is unique as bytes."""
        millis = int(self._now() * 1000)
        with self._lock:
            at = self._drawn
            if at == len(self._pool):  # one call of the system for thousands of ids: it gives up the interpreter each time
                at, self._pool = 0, os.urandom(_DRAW_BYTES * _DRAWS)
            self._drawn = at + _DRAW_BYTES
            draw = int.from_bytes(self._pool[at : at + _DRAW_BYTES], "big")
            if millis > self._millis:
                self._millis = millis
                self._tail = draw
            else:
                self._tail += 1 + (draw & 0xFFFFFFFF)
                if self._tail >= _TAIL_LIMIT:
                    self._millis += 1
                    self._tail = draw
            millis, tail = self._millis, self._tail
        high, low = tail >> 62, tail & ((1 << 62) - 1)
        value = (millis << 80) | (0x7 << 76) | (high << 64) | (0b10 << 62) | low
        return value.to_bytes(16, "big")

    def forget_lock(self) -> None:
        """In a forked child: a lock that no missing thread holds, and random bytes that the parent does not have."""
        self._lock = threading.Lock()
        self._pool = b""
        self._drawn = 0


# One source per process: command ids grow within a process no matter which thread draws them.
_SOURCE = CommandIds()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_SOURCE.forget_lock)


def uuid7() -> bytes:
    """A command id: 16 bytes, larger than every one drawn before it in this process."""
    return _SOURCE.next()


def uuid7_hex() -> str:
    """:func:`uuid7` as 32 hex digits, which sort like the bytes."""
    return _SOURCE.next().hex()
