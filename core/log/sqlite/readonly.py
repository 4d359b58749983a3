"""Looking at a log file that this process does not write: a running store's, a stopped one's, or a copy."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from ...errors import InvalidInput, LogClosed, LogError, OffsetLost
from ..append_checks import check_topic
from ..interface import (
    EVERYWHERE,
    Done,
    KeyRange,
    Log,
    Membership,
    NewRecord,
    OnProblem,
    OnRecords,
    Record,
    Subscription,
)
from ..local.follower import Follower
from ..local.group_commit import check_offset
from ..topics import TOPICS
from .read_pool import Reader
from .schema import check_kind
from .writer_lock import is_held

logger = logging.getLogger(__name__)

WATCH_SECONDS = 0.05
"""How often a follower asks SQLite whether another process has written."""
_PAGE = 1024


def check_there(path: Path) -> None:
    """Raise `InvalidInput` with what to do instead unless `path` is a file that may be a log and may be read."""
    if not path.is_dir() and not path.is_file():
        raise InvalidInput(f"there is no log at {path}; `agl store` begins one, and every command takes another's address")
    check_kind(path)


class ReadOnlyLog(Log):
    """A log file that this process only looks at: no lock, nothing written to it, also while its owner runs.

    Beside the file of a killed store, or a copy with its write-ahead log, SQLite makes its `-shm` file anew.
    """

    def __init__(self, path: Path, url: str | None = None) -> None:
        check_there(path)
        self.path = Path(os.path.realpath(path))
        if os.stat(self.path).st_nlink > 1 and not os.path.exists(f"{self.path}-wal"):
            logger.warning(
                "%s has another name (a hard link); what a store wrote under that one may be missing here.", self.path
            )
        self.url = url or f"sqlite:///{path}"
        self._reader = Reader(self.path, owned=False)
        self.log_id = self._reader.meta()["log_id"]
        self._stop = threading.Event()

    def partitions(self, topic: str) -> int:
        check_topic(topic)
        return 1

    def append(self, topic: str, partition: int, records: Sequence[NewRecord], done: Done) -> None:
        """Raises `InvalidInput`, always: this log is only read."""
        raise InvalidInput(f"{self.path} is open for reading only")

    def read(
        self, topic: str, partition: int, offset: int, max_records: int = 4096, *, headers: bool = True
    ) -> Sequence[Record]:
        self._check_place(topic, partition)
        check_offset(offset)
        return self._reader.read(topic, offset, max_records, headers)

    def read_key(
        self, topic: str, key: str, *, after: int = -1, max_records: int | None = None, within: KeyRange = EVERYWHERE
    ) -> Sequence[Record]:
        check_topic(topic)
        if not TOPICS[topic].by_key:
            raise InvalidInput(f"topic {topic!r} is not read by key")
        return self._reader.read_key(topic, key, after, max_records)

    def ends(self, topic: str, partition: int) -> tuple[int, int]:
        self._check_place(topic, partition)
        return self._reader.ends(topic)

    def follow(
        self, topic: str, partition: int, offset: int, on_records: OnRecords, on_problem: OnProblem
    ) -> Subscription:
        self._check_place(topic, partition)
        check_offset(offset)
        if self._stop.is_set():
            raise LogClosed("the log was closed")
        follower = Follower(f"{topic}[{partition}]", offset, on_records, on_problem, _nothing_to_forget)
        threading.Thread(
            target=_watch,
            args=(follower, topic, Reader(self.path, owned=False), self.log_id, self._stop),
            name=f"agl-log-watch-{topic}",
            daemon=True,
        ).start()
        return follower

    def join(self, group: str, topics: Sequence[str], member_id: str) -> Membership:
        """Raises `InvalidInput`, always: a group's offsets are kept by the process that writes."""
        raise InvalidInput(f"{self.path} is open for reading only; a group needs the process that writes it")

    def is_written(self) -> bool:
        """Whether a process has the log open for writing now."""
        return is_held(self.path)

    def close(self) -> None:
        self._stop.set()
        self._reader.close()

    def _check_place(self, topic: str, partition: int) -> None:
        check_topic(topic)
        if partition != 0:
            raise InvalidInput(f"there is no partition {partition}; this log has 1")


def _nothing_to_forget(follower: Follower) -> None:
    """Its thread ends by itself."""


def _watch(follower: Follower, topic: str, reader: Reader, log_id: str, stop: threading.Event) -> None:
    """Read what another process appends, until the follower or its log is closed."""
    seen: tuple[int, ...] | None = None
    try:
        while not follower.closed:
            if stop.is_set():
                raise LogClosed("the log was closed")
            version = reader.version()
            if version == seen:
                stop.wait(WATCH_SECONDS)
                continue
            seen = version
            if reader.meta()["log_id"] != log_id:
                raise OffsetLost(f"{reader.path} is another log now", offset=follower.next)
            end = reader.ends(topic)[1]
            if follower.next > end:
                raise OffsetLost(f"{topic} ends at offset {end}", offset=follower.next)
            while not follower.closed and not stop.is_set():
                found = reader.read(topic, follower.next, _PAGE, True)
                if not found:
                    break
                follower.deliver(found)
    except LogError as error:
        follower.fail(error)
    finally:
        reader.close()
