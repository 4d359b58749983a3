"""The command line: `agl` and its sub-commands, each of which is loaded only when it is called."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence

__all__ = ["main"]

THREADS_SECONDS = 3.0
"""How long threads may take to end after the command has."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `agl` with `argv` (the process's own arguments when None) and return its exit code.

    0: done. 1: it failed, reported in one line. 2: wrong usage. 130: ended by Ctrl+C. Never raises what a user can cause.
    """
    from .app import run

    code = run(argv)
    if argv is None:
        _leave_threads(code)
    return code


def _leave_threads(code: int) -> None:
    """End the process soon although threads go on that an agent started and that Python would wait for."""
    if any(not one.daemon and one is not threading.main_thread() for one in threading.enumerate()):
        threading.Thread(target=_end, args=(code,), name="agl-end", daemon=True).start()


def _end(code: int) -> None:
    """The message is printed only where Python still waits: else this daemon thread ends with the process."""
    time.sleep(THREADS_SECONDS)
    print("agl: ended in spite of threads that do not end; an agent started them", file=sys.stderr, flush=True)
    os._exit(code)
