"""A child process that ends when its parent does, whatever ended the parent."""

from __future__ import annotations

import os
import sys
import threading


def hold() -> None:
    """Ends this process at once when its standard input closes; returns immediately.

    The parent keeps the other end of the pipe and never writes. The operating system closes it with the parent, also
    after `kill -9`, on every platform. Nothing is cleaned up: only for processes that own nothing worth saving.
    """
    # A duplicate, read without Python's buffer: a thread that waits inside sys.stdin holds its lock at exit.
    stream = os.dup(sys.stdin.fileno())

    def wait() -> None:
        while os.read(stream, 4096):
            pass
        os._exit(0)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()
