"""The call that is being served: its idempotency key and what its caller knew, carried past the public signatures.

The store's methods keep the signatures of the public API. Who can repeat a call (the HTTP door) puts a `Call` here
before it calls the store; without one every call is a first try under a new id.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from ..core.errors import Expired, Refused
from ..core.ids import uuid7_hex


@dataclass(frozen=True)
class Call:
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


def refusal(reason: str, command_id: str) -> Exception:
    """The error for a verdict that is not an answer."""
    if reason == "expired":
        return Expired(f"command {command_id} is older than what the log can judge; read the entity to see its outcome")
    return Refused(f"the log refused command {command_id}: {reason}", reason=reason)
