"""`open_store`: the store behind an address, of a log on this machine, on Kafka, or of a server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from ..core.clock import Clock
from ..core.errors import LogLocked
from ..core.log.open_log import address_of, open_log, path_of
from ..core.log.sqlite.log import check_there
from ..core.model.store_interface import LightningStore
from ..projections.archive.index import index_path
from ..projections.replica.settings import StoreSettings
from ..projections.store.store import EventLogStore


def open_store(
    url: str | os.PathLike[str],
    *,
    settings: StoreSettings | None = None,
    clock: Clock | None = None,
    token: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> LightningStore:
    """Open the store at `url`: `sqlite:///path` or the `pathlib.Path` of a log file, `memory://`, `kafka://host:port/prefix`,
    or `http://host:port` for one that lives elsewhere. `environment`: where the security options of a Kafka are looked up
    that its address does not have (AGL_KAFKA_SASL_PASSWORD and so on); pass `os.environ` to use those of this process.

    Raises `InvalidInput` for other forms, `LogLocked` where another process writes the file, `LogCorrupt` where it is
    damaged.
    """
    url = address_of(url)
    if url.startswith(("http://", "https://")):
        from .client.client import LightningStoreClient

        return LightningStoreClient(url, token=token)
    log = open_log(url, environment=environment)
    try:
        shared = url.startswith("kafka://")
        return EventLogStore(log, settings=settings, clock=clock, index_path=index_path(log), foreign_writers=shared)
    except BaseException:
        log.close()
        raise


@asynccontextmanager
async def open_existing(
    url: str, token: str | None = None, environment: Mapping[str, str] | None = None
) -> AsyncGenerator[Any, None]:
    """The store of a log that exists; where a process serves the file, the store of that process. Closed at the end.

    Raises `InvalidInput` where there is no log yet, and what `open_store` raises.
    """
    if url.startswith("sqlite:"):
        check_there(path_of(url))  # a store would begin a log where there is none
    try:
        store: Any = await asyncio.to_thread(open_store, url, token=token, environment=environment)
    except LogLocked as locked:
        if locked.address is None:
            raise
        store = open_store(locked.address, token=token)
    try:
        yield store
    finally:
        closed = store.close()
        if closed is not None:
            await closed
