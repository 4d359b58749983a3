"""Who may write the file: one process, known by an advisory lock on a file of its own beside it.

`lockf` locks belong to a process: they end with it, and a forked child that outlives a killed owner does not hold them.
The lock file stays when the lock is released: removing it would let two processes lock two files of one name.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from ..errors import LogLocked, StorageError

# The kernel counts these locks by process, so this has to be known by process too: a second `lockf` of the owner would
# succeed, and closing the file that it was tried on would drop the first one's lock.
_held: WeakValueDictionary[str, WriterLock] = WeakValueDictionary()
_guard = threading.Lock()
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
_OFFSET = 1 << 20
"""The byte that is locked: far behind the text, since Windows lets nobody read a locked one."""


class WriterLock:
    """The lock of one log file.

    Raises `LogLocked`, naming the owner, where somebody else has it, and `StorageError` where there can be none.
    """

    def __init__(self, log_path: Path) -> None:
        self.path = log_path.with_name(log_path.name + ".lock")
        self._key = str(self.path.resolve())
        self._pid = os.getpid()
        self._facts: dict[str, Any] = {"pid": self._pid, "address": None, "started": time.time()}
        with _guard:
            other = _held.get(self._key)
            if other is not None and other._pid == self._pid:
                raise _refusal(log_path, other._facts)
            # An unbuffered file object, not a bare descriptor: a log that was dropped unclosed lets go when collected.
            try:
                self._file = open(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
            except OSError as error:
                raise StorageError(f"{self.path} cannot be written: {error.strerror or error}") from error
            try:
                _lock(self._file.fileno())
            except OSError as error:
                owner = _read(self.path)
                self._file.close()
                if error.errno in _TAKEN:
                    raise _refusal(log_path, owner) from None
                raise StorageError(f"{self.path} cannot be locked: {error}") from error
            _held[self._key] = self
        self._write()

    def _write(self) -> None:
        text = json.dumps(self._facts).encode()
        self._file.seek(0)
        self._file.write(text)
        self._file.truncate(len(text))

    def set_address(self, address: str | None) -> None:
        """Say where the owner serves, for whoever is refused."""
        self._facts["address"] = address
        self._write()

    def release(self) -> None:
        """Let go. Idempotent; does nothing in a forked child."""
        if os.getpid() != self._pid or self._file.closed:
            return
        with _guard:
            if _held.get(self._key) is self:
                del _held[self._key]
            self._file.close()


def _read(path: Path) -> dict[str, Any]:
    """What the owner wrote; nothing if it was just writing."""
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, TypeError, ValueError):
        return {}


def _refusal(log_path: Path, owner: dict[str, Any]) -> LogLocked:
    pid, address = owner.get("pid"), owner.get("address")
    who = "another process" if pid is None else f"process {pid}"
    where = f", which serves {address}" if address else ""
    return LogLocked(
        f"{log_path} is being written by {who}{where}; stop it, or use another file", pid=pid, address=address
    )


def _lock(file: int) -> None:
    os.lseek(file, _OFFSET, os.SEEK_SET)
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0, os.SEEK_CUR)
