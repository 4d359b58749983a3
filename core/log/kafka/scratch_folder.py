"""A temporary folder for the copies of keyed topics, which goes away even if its process was killed: with the next start."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO

NAME = "agl-kafka-"
_LOCK = "owner.lock"


class Scratch:
    """One folder of this process. Its lock is the operating system's, so it is free as soon as the process is gone."""

    def __init__(self) -> None:
        sweep(Path(tempfile.gettempdir()))
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=f"{NAME}{os.getpid()}-"))
            self._lock: IO[str] | None = (self.path / _LOCK).open("w")
            _try_lock(self._lock)
            if (self.path / _LOCK).exists():  # else another start swept it before it was locked
                break

    def remove(self) -> None:
        """Take the folder away. Idempotent."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()
            shutil.rmtree(self.path, ignore_errors=True)


def sweep(folder: Path) -> int:
    """Remove what processes that are gone left in `folder`; returns how many. What cannot be told or removed stays."""
    swept = 0
    for left in folder.glob(f"{NAME}*"):
        if left.name.split("-")[2] == str(os.getpid()):
            continue  # a process gets its own locks twice, so it cannot ask about itself
        with contextlib.suppress(OSError), (left / _LOCK).open("r+") as lock:
            if _try_lock(lock):
                shutil.rmtree(left, ignore_errors=True)
                swept += 1
    return swept


def _try_lock(lock: IO[str]) -> bool:
    """Whether the lock is ours now; False also where there are no such locks (Windows), so that nothing is swept there."""
    try:
        import fcntl

        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True
