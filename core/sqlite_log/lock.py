"""Who may write the file: one process, known by an advisory lock on a file of its own beside it.

`lockf` locks belong to a process: they end with it, and a forked child that outlives a killed owner does not hold them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from ..errors import LogLocked

_held: set[str] = set()
"""Paths this process has locked: a second lockf of the same process would succeed."""


class WriterLock:
    """The lock of one log file. Raises `LogLocked`, naming the owner, where somebody else has it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._key = str(path.resolve())
        self._pid = os.getpid()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if self._key in _held:
                raise BlockingIOError
            _lock(self._file)
        except OSError:
            owner = self._owner()
            os.close(self._file)
            pid, address = owner.get("pid"), owner.get("address")
            where = f" and serves {address}" if address else ""
            raise LogLocked(
                f"{path.with_suffix('')} is written by process {pid}{where}; stop it, or use another file",
                pid=pid,
                address=address,
            ) from None
        _held.add(self._key)
        self._facts: dict[str, Any] = {"pid": os.getpid(), "address": None, "started": time.time()}
        self._write()

    def _owner(self) -> dict[str, Any]:
        try:
            return dict(json.loads(os.pread(self._file, 4096, 0) if hasattr(os, "pread") else self.path.read_bytes()))
        except (OSError, ValueError):
            return {}

    def _write(self) -> None:
        text = json.dumps(self._facts).encode()
        os.lseek(self._file, 0, os.SEEK_SET)
        os.ftruncate(self._file, 0)
        os.write(self._file, text)

    def set_address(self, address: str | None) -> None:
        """Say where the owner serves, for whoever is refused."""
        self._facts["address"] = address
        self._write()

    def release(self) -> None:
        """Let go. Idempotent; does nothing in a forked child."""
        if self._file >= 0 and os.getpid() == self._pid:
            _held.discard(self._key)
            os.close(self._file)
            self._file = -1


def _lock(file: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(file, 1 << 20, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
