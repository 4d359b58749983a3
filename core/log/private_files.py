"""Files and folders that only their owner may read: logs, and everything that lies beside them.

A log holds prompts, answers and what users put into resources. The process's umask decides about other files, not these.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..errors import StorageError

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700


def open_flags() -> int:
    """How a file of ours is opened for writing: made if there is none, and never through a link or at a pipe's pace."""
    return os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def make_folder(folder: Path) -> None:
    """Make a folder that only its owner may look into, and those above it as the process makes folders.

    One that is there stays as it is. Raises `StorageError`.
    """
    try:
        os.makedirs(folder, mode=PRIVATE_FOLDER, exist_ok=True)
    except OSError as error:
        raise StorageError(f"the folder {folder} cannot be made: {error.strerror or error}") from error


def make_private(path: str | Path) -> None:
    """Make an empty file that only its owner may read, unless there is one; SQLite gives its companions the same mode.

    Raises `StorageError` where the name is taken by anything but a file.
    """
    try:
        if stat.S_ISREG(os.lstat(path).st_mode):
            return  # not opened: closing it would drop the locks that SQLite has on it in this process
    except FileNotFoundError:
        pass
    except OSError as error:
        raise StorageError(f"{path} cannot be opened: {error.strerror or error}") from error
    else:
        raise StorageError(f"{path} is not a file")
    try:
        os.close(os.open(path, open_flags(), PRIVATE_FILE))
    except OSError as error:
        raise StorageError(f"{path} cannot be made: {error.strerror or error}") from error
