"""The process of one worker: what it is given, what it tells its parent, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import secrets
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from .execution import ThreadingEvent
from .parts import Part

__all__ = [
    "CANCEL",
    "DONE",
    "FAILED",
    "HOPELESS",
    "READY",
    "STOP",
    "UNGUARDED",
    "UNREADABLE",
    "WORN_OUT",
    "Assignment",
    "work",
]

_log = logging.getLogger(__name__)
STOP, CANCEL = "stop", "cancel"
"""From the parent: take no more work; end what runs."""
READY, DONE, FAILED, UNREADABLE = "ready", "done", "failed", "unreadable"
"""From the child, each with a text: it begins; it has ended by itself; it cannot work, and why; it found no agent."""
HOPELESS = 3
"""Exit code of a child whose error will not get better by starting it again."""
WORN_OUT = 4
"""Exit code of a child that an agent of its own keeps busy for ever, in a thread or on its event loop."""
UNGUARDED = 5
"""Exit code of a child that came to ``fit`` again while it read the main module."""
ORPHAN_SECONDS = 0.5
"""How long an orphan may take to end well."""


@dataclass(frozen=True)
class Assignment:
    """What a worker process does. ``carried``: the runner bundle as bytes; ``bundle``: itself, in a forked process.

    ``prefix``: what its name in the store begins with; None: it is called by its number.
    """

    number: int
    store: Any
    carried: bytes | None
    bundle: Any
    log_level: int | None
    prefix: str | None
    parent_pid: int


def work(assignment: Assignment, link: Connection, parents_end: Connection | None) -> None:
    """The target of the process; it never returns."""
    if parents_end is not None:  # forked: with its own copy open it would never see the parent's end close
        parents_end.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; a terminal tells the whole group
    if assignment.log_level is not None and not logging.getLogger("agentlightning").handlers:
        from ..core.loglines import setup_logging

        setup_logging(assignment.log_level)
    code = _run(assignment, link)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError) as error:
            _log.debug("An output could not be flushed: %s", error)
    logging.shutdown()
    # Threads that an agent left behind would keep the process.
    os._exit(code)


def _run(assignment: Assignment, link: Connection) -> int:
    event = ThreadingEvent()
    try:
        bundle = assignment.bundle if assignment.carried is None else pickle.loads(assignment.carried)
    except Exception as error:
        # Reading it imports the user's modules, which may raise anything.
        _tell(link, UNREADABLE, f"{type(error).__name__}: {error}")
        return HOPELESS
    part = Part(f"runner-{assignment.number}", lambda: _on_store(bundle, assignment, event), lambda part: None)
    threading.Thread(
        target=_listen, args=(link, event, part.cancel, assignment.parent_pid), name="agl-link", daemon=True
    ).start()
    if hasattr(bundle, "on_stuck"):
        bundle.on_stuck = _leave_stuck
        bundle.worker_name = f"{assignment.prefix}-{os.getpid()}-{secrets.token_hex(3)}" if assignment.prefix else None
    _tell(link, READY, "")
    part.run()
    if part.error is not None:
        _log.error("Runner %d failed.", assignment.number, exc_info=part.error)
        _tell(link, FAILED, f"{type(part.error).__name__}: {part.error}")
        return HOPELESS
    if getattr(bundle, "given_up", 0) and not event.is_set():
        return WORN_OUT
    _tell(link, DONE, "")
    return 0


def _leave_stuck(prefix: str) -> None:
    """End this process at once, in the middle of an agent that lets nothing else run; the crew starts another."""
    _log.error("%s The agent is past its time limit and blocks the event loop; its process is replaced.", prefix)
    os._exit(WORN_OUT)


def _on_store(bundle: Any, assignment: Assignment, event: ThreadingEvent) -> Awaitable[None]:
    async def run() -> None:
        store = assignment.store
        try:
            await bundle(store, assignment.number, event)
        finally:
            close: Callable[[], Any] | None = getattr(store, "close", None)
            if close is not None and asyncio.iscoroutinefunction(close):
                await close()

    return run()


def _tell(link: Connection, what: str, text: str) -> None:
    try:
        link.send((what, text))
    except OSError as error:
        _log.debug("The parent is gone: %s", error)


def _listen(link: Connection, event: ThreadingEvent, cancel: Callable[[], None], parent_pid: int) -> None:
    """Do what the parent says; end soon where it is gone, however it ended."""
    try:
        while True:
            if link.poll(0.25):
                word = link.recv()
                event.set()
                if word == CANCEL:
                    cancel()
            elif os.getppid() != parent_pid:
                break
    except (EOFError, OSError):
        event.set()
    event.set()
    cancel()
    time.sleep(ORPHAN_SECONDS)
    os._exit(1)
