"""Who may write the file: one process, known by an advisory lock beside it and one on the file itself.

`lockf` locks belong to a process: they end with it, and a forked child that outlives a killed owner does not hold them.
The lock file stays when the lock is released: removing it would let two processes lock two files of one name.

A name is not the file: symbolic links are resolved before, a file with a second name (a hard link) is refused, and on Linux
a byte of the file that SQLite never locks is locked too, which also a renamed or mounted file keeps
([decision 16](../../docs/decisions/0016-the-lock-follows-the-file.md)).
"""

from __future__ import annotations

import errno
import json
import os
import struct
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any
from weakref import WeakSet, WeakValueDictionary

from ...errors import LogLocked, StorageError
from ..private_files import PRIVATE_FILE, make_private, open_flags

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

# The kernel counts these locks by process, so this has to be known by process too: a second `lockf` of the owner would
# succeed, and closing the file that it was tried on would drop the first one's lock.
_held: WeakValueDictionary[str, WriterLock] = WeakValueDictionary()
_held_files: WeakValueDictionary[tuple[int, int], WriterLock] = WeakValueDictionary()
_guard = threading.Lock()
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
_OFFSET = 1 << 20
"""The byte that is locked: far behind the text, since Windows lets nobody read a locked one."""
_FILE_OFFSET = 1 << 62
"""The byte of the log itself that is locked: beyond the largest file, and beyond the bytes that SQLite locks."""
_FORK_SECONDS = 1.0
"""A child that was forked by an owner just before it was killed holds the log until the child runs."""


class WriterLock:
    """The lock of one log file.

    Raises `LogLocked`, naming the owner, where somebody else has it, and `StorageError` where there can be none.
    """

    def __init__(self, log_path: Path) -> None:
        self.path = log_path.with_name(log_path.name + ".lock")
        self._key = str(self.path.resolve())
        self._pid = os.getpid()
        self._on_file: IO[bytes] | None = None
        self._facts: dict[str, Any] = {"pid": self._pid, "address": None, "started": time.time()}
        with _guard:
            other = _held.get(self._key)
            if other is not None and other._pid == self._pid:
                raise _refusal(log_path, other._facts)
            # An unbuffered file object, not a bare descriptor: a log that was dropped unclosed lets go when collected.
            try:
                make_private(self.path)  # what is there must be a file: a link would let us write to another one
                self._file = open(os.open(self.path, open_flags(), PRIVATE_FILE), "r+b", buffering=0)
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

    def hold(self, log_path: Path) -> None:
        """Lock the log itself as well, whatever it is called elsewhere. Raises `LogLocked`.

        It is held until `release`: closing a file drops the locks that SQLite has on it in this process.
        """
        found = os.stat(log_path)
        if found.st_nlink > 1:
            raise LogLocked(
                f"{log_path} has another name (a hard link): a store may write it under that one, and SQLite keeps the "
                f"newest commits beside one name only; remove the other name (find / -xdev -samefile {log_path}) or copy "
                "the file"
            )
        if sys.platform != "linux":  # elsewhere such locks do not exist or stand in SQLite's way
            return
        with _guard:
            other = _held_files.get((found.st_dev, found.st_ino))
            if other is not None and other._pid == self._pid:
                raise _refusal(log_path, other._facts)
            file = open(log_path, "r+b", buffering=0)
            request = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, _FILE_OFFSET, 1, 0)
            deadline = time.monotonic() + _FORK_SECONDS
            while True:
                try:
                    fcntl.fcntl(file, fcntl.F_OFD_SETLK, request)
                    break
                except OSError as error:
                    if error.errno in _TAKEN and time.monotonic() < deadline:
                        time.sleep(0.02)
                        continue
                    file.close()
                    if error.errno in _TAKEN:
                        raise _refusal(log_path, {}) from None
                    return  # a file system without such locks: the one beside the file counts
            self._on_file = file
            _held_files[found.st_dev, found.st_ino] = self
            _inherited.add(self)

    def _write(self) -> None:
        text = json.dumps(self._facts).encode()
        self._file.seek(0)
        self._file.write(text)
        self._file.truncate(len(text))

    def set_address(self, address: str | None) -> None:
        """Say where the owner serves, for the message of who is refused."""
        self._facts["address"] = address
        self._write()

    def release(self) -> None:
        """Let go. Idempotent; does nothing in a forked child."""
        if os.getpid() != self._pid or self._file.closed:
            return
        with _guard:
            if _held.get(self._key) is self:
                del _held[self._key]
            self.let_go()
            self._file.close()

    def let_go(self) -> None:
        """Close the log itself. In a forked child it only gives back what the child inherited."""
        file, self._on_file = self._on_file, None
        if file is not None:
            file.close()
            for key in [key for key, held in _held_files.items() if held is self]:
                del _held_files[key]


_inherited: WeakSet[WriterLock] = WeakSet()


def _forked() -> None:
    """A lock on an open file is shared with forked children: give it back, or it would outlive its owner."""
    for lock in list(_inherited):
        lock.let_go()
    _inherited.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


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
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0, os.SEEK_CUR)


def is_held(log_path: Path) -> bool:
    """Whether a process writes the log now. True as well where that cannot be found out without taking the lock."""
    path = log_path.with_name(log_path.name + ".lock")
    with _guard:
        if _held.get(str(path.resolve())) is not None:
            return True  # and nothing is opened: closing it would drop the lock
        try:
            file = open(path, "rb")
        except FileNotFoundError:
            return False
        except OSError:
            return True
        with file:
            if sys.platform != "linux":
                return _lives(_read(path).get("pid"))
            question = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, _OFFSET, 1, 0)
            answer = fcntl.fcntl(file.fileno(), fcntl.F_GETLK, question)
            return struct.unpack("hhqqi", answer)[0] != fcntl.F_UNLCK


def _lives(pid: Any) -> bool:
    if sys.platform == "win32" or not isinstance(pid, int):
        return True  # os.kill would end the process there
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
