"""The log of a store over HTTP: the routes that read its records, and the read-only log that a program opens on them.

``GET /v1/agl/log`` answers the log's id and, for each topic, [first, next] offset of each partition.
``GET /v1/agl/log/{topic}?partition=0&offset=0&limit=1024`` answers records as a JSON list, in order, values in base64; with
``key`` and ``after`` those of one key, which the fields of `KeyRange` may narrow down. An answer has at least one record where
there is one, and ends early at a few MB.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import ssl
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn
from urllib.parse import quote, urlencode, urlsplit

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ...core.errors import InvalidInput, StoreUnreachable
from ...core.log.interface import (
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
from ...core.log.open_log import shown
from ...core.log.topics import BLOBS, TOPICS
from ..api import encoding
from ..api.routes import LOG_PATH

MOST_RECORDS = 4096
MOST_BYTES = 8_000_000
"""Of the values in one answer; the first record is sent whatever its size."""
STEP_RECORDS = 256
"""Read at once: values of most topics have up to 0.9 MB, those of `blobs` up to 64 MB, which are read one by one."""
CONNECT_SECONDS = 5.0
READ_SECONDS = 60.0


async def describe_log(store: Any) -> Response:
    """The answer to GET /v1/agl/log."""

    def describe() -> dict[str, Any]:
        log = _log_of(store)
        stored = [name for name, topic in TOPICS.items() if not topic.derived]
        topics = {name: [log.ends(name, part) for part in range(log.partitions(name))] for name in stored}
        return {"log_id": log.log_id, "url": shown(log.url), "topics": topics}

    return await _answered(describe)


async def read_records(request: Request, store: Any) -> Response:
    """The answer to GET /v1/agl/log/{topic}."""
    topic, query = request.path_params["topic"], request.query_params

    def read() -> list[Record]:
        log = _log_of(store)
        known = TOPICS.get(topic)
        if known is None or known.derived:
            raise InvalidInput(f"there is no stored topic {topic[:50]!r}; topics are {', '.join(TOPICS)}")
        limit = _whole(query.get("limit", str(MOST_RECORDS)), "limit", MOST_RECORDS)
        if "key" in query:
            after = _whole(query.get("after", "-1"), "after", lowest=-1)
            within = KeyRange(**{name: _whole(query[name], name) for name in KeyRange.__struct_fields__ if name in query})
            key = query["key"]
            return _bounded(
                lambda start, most: log.read_key(topic, key, after=start - 1, max_records=most, within=within),
                topic, after + 1, limit,
            )  # fmt: skip
        partition = _whole(query.get("partition", "0"), "partition", log.partitions(topic) - 1)
        offset = _whole(query.get("offset", "0"), "offset")
        return _bounded(lambda start, most: log.read(topic, partition, start, most), topic, offset, limit)

    return await _answered(read)


def _log_of(store: Any) -> Log:
    log = getattr(getattr(store, "engine", None), "log", None)
    if not isinstance(log, Log):
        raise InvalidInput("the store behind this address has no log of its own; ask the store that it passes calls on to")
    return log


def _whole(text: str, name: str, highest: int = 2**62, lowest: int = 0) -> int:
    number = int(text) if text.removeprefix("-").isdecimal() and len(text) < 20 else lowest - 1
    if not lowest <= number <= highest:
        raise InvalidInput(f"{name} is a whole number from {lowest} to {highest}")
    return number


def _bounded(read: Callable[[int, int], Sequence[Record]], topic: str, offset: int, limit: int) -> list[Record]:
    """Up to `limit` records from an offset on, read in steps: the bound is for what is in memory, not for the answer alone."""
    size, kept = 0, list[Record]()
    step = 1 if topic == BLOBS else STEP_RECORDS
    limit = max(limit, 1)
    while len(kept) < limit:
        asked = min(step, limit - len(kept))
        found = read(offset, asked)
        for record in found:
            size += len(record.value)
            if kept and size > MOST_BYTES:
                return kept
            kept.append(record)
        if len(found) < asked:
            break
        offset = found[-1].offset + 1
    return kept


async def _answered(work: Callable[[], Any]) -> Response:
    try:
        body = await asyncio.to_thread(lambda: msgspec.json.encode(work()))
    except Exception as error:
        status = encoding.status_of(error)
        if status == 500:
            raise
        return Response(encoding.to_json(encoding.error_body(error)), status, media_type="application/json")
    return Response(body, media_type="application/json")


class RemoteLog(Log):
    """The log of a store at an http:// address, read only: what `agl` opens to look at it. Usable from any thread.

    Raises `StoreUnreachable` where nobody answers within five seconds, `Unauthorized` for a wrong token, and what reading
    the log raises at the store.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = shown(url.rstrip("/"))
        parts = urlsplit(url.rstrip("/"))
        if not parts.hostname:
            raise InvalidInput(f"{shown(url)!r} is not the address of a store; it looks like http://127.0.0.1:4747")
        self._https = parts.scheme == "https"
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._lock = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None
        about = self._get(LOG_PATH)
        self.log_id = about["log_id"]
        self._partitions: dict[str, int] = {topic: len(ends) for topic, ends in about["topics"].items()}

    def partitions(self, topic: str) -> int:
        if topic not in self._partitions:
            raise InvalidInput(f"there is no topic {topic!r} at {self.url}")
        return self._partitions[topic]

    def read(
        self, topic: str, partition: int, offset: int, max_records: int = 4096, *, headers: bool = True
    ) -> Sequence[Record]:
        limit = min(max_records, MOST_RECORDS)
        return self._records(topic, {"partition": partition, "offset": offset, "limit": limit})

    def read_key(
        self, topic: str, key: str, *, after: int = -1, max_records: int | None = None, within: KeyRange = EVERYWHERE
    ) -> Sequence[Record]:
        found: list[Record] = []
        where = {name: value for name, value in msgspec.structs.asdict(within).items() if value is not None}
        while max_records is None or len(found) < max_records:
            limit = MOST_RECORDS if max_records is None else min(max_records - len(found), MOST_RECORDS)
            some = self._records(topic, {**where, "key": key, "after": after, "limit": limit})
            if not some:
                break
            found += some
            after = some[-1].offset
        return found

    def ends(self, topic: str, partition: int) -> tuple[int, int]:
        first, end = self._get(LOG_PATH)["topics"][topic][partition]
        return first, end

    def append(self, topic: str, partition: int, records: Sequence[NewRecord], done: Done) -> NoReturn:
        """Raises `InvalidInput`, always: this log is only read."""
        raise InvalidInput(f"the log at {self.url} is open for reading only")

    def follow(
        self, topic: str, partition: int, offset: int, on_records: OnRecords, on_problem: OnProblem
    ) -> Subscription:
        """Raises `InvalidInput`, always: a reader asks again; programs subscribe to the store's facts."""
        raise InvalidInput(f"the log at {self.url} is read, not followed; `agl subscribe` follows a store")

    def join(self, group: str, topics: Sequence[str], member_id: str) -> Membership:
        """Raises `InvalidInput`, always: consumer groups are the log's own."""
        raise InvalidInput(f"the log at {self.url} is open for reading only")

    def close(self) -> None:
        with self._lock:
            self._drop()

    def _records(self, topic: str, query: dict[str, Any]) -> list[Record]:
        rows = self._get(f"{LOG_PATH}/{quote(topic, safe='')}?{urlencode(query)}")
        return [
            Record(
                row["topic"], row["partition"], row["offset"], row["key"], base64.b64decode(row["value"]),
                row["timestamp_us"], tuple((name, text) for name, text in row["headers"]),
            )
            for row in rows
        ]  # fmt: skip

    def _get(self, path: str) -> Any:
        status, body = self._ask(path)
        try:
            found: Any = json.loads(body)
        except ValueError:
            raise InvalidInput(f"{self.url} is no `agl store`: its answer is not JSON") from None
        if status == 404 and "code" not in (encoding.as_dict(found) or {}):
            raise InvalidInput(f"{self.url} serves no log: it is no `agl store`, or one of an older release")
        if status != 200:
            raise encoding.error_from(status, found)
        return found

    def _ask(self, path: str) -> tuple[int, bytes]:
        """Status and body. A request that fails on a connection that was open before is sent once more on a new one."""
        with self._lock:
            while True:
                reused = self._connection is not None
                try:
                    if self._connection is None:
                        self._connection = self._connect()
                    self._connection.request("GET", self._path + path, headers=self._headers)
                    answer = self._connection.getresponse()
                    return answer.status, answer.read()
                except (OSError, http.client.HTTPException) as error:
                    self._drop()
                    if not reused:
                        raise StoreUnreachable(
                            f"no answer from {self.url} ({error or type(error).__name__}); is `agl store` running there?"
                        ) from error

    def _connect(self) -> http.client.HTTPConnection:
        if self._https:
            context = ssl.create_default_context()
            made: http.client.HTTPConnection = http.client.HTTPSConnection(
                self._host, self._port, timeout=CONNECT_SECONDS, context=context
            )
        else:
            made = http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_SECONDS)
        made.connect()
        made.sock.settimeout(READ_SECONDS)
        return made

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
