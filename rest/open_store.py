"""`open_store`: the store behind an address, of a log on this machine, on Kafka, or of a server."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..core.clock import Clock
from ..core.log.open_log import address_of, open_log
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
