"""The store of a trainer: opened when it is first needed, by default on a log file that the next start finds again."""

from __future__ import annotations

import inspect
import logging
import math
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from ...core.errors import LogLocked
from ...core.log.open_log import address_of
from ...core.loop_thread import run_to_end
from ...core.model.store_interface import LightningStore
from ..execution.env_vars import secrets, token
from .components import build_component

__all__ = ["DEFAULT_FILE", "StoreKeeper"]

_log = logging.getLogger(__name__)
DEFAULT_FILE = Path(".agl") / "log.db"
_NAMES = 1000


class StoreKeeper:
    """Holds a store, or what one is made of: an address (``sqlite:///``, ``http://``, ``kafka://``, ``memory://``) or
    a spec of `build_component`. None is ``./.agl/log.db``; where another process writes that file, one of its own.
    """

    def __init__(self, spec: Any) -> None:
        self._spec = spec
        self._store: LightningStore | None = spec if isinstance(spec, LightningStore) else None

    def get(self) -> LightningStore:
        """The store; opened if it is not."""
        if self._store is None:
            self._store = self._open()
        return self._store

    @contextmanager
    def opened(self) -> Generator[LightningStore, None, None]:
        """The store for this block. Whoever opened it closes it: the block, unless it was open already."""
        before = self._store
        store = self.get()
        try:
            yield store
        finally:
            if before is None:
                self._store = None
                _close(store)

    def _open(self) -> LightningStore:
        if self._spec is None:
            return _open_default()
        if isinstance(self._spec, str) and "://" in self._spec:
            return _open_url(self._spec)
        given: object = self._spec
        if isinstance(given, os.PathLike):
            return _open_url(address_of(cast(object, given)))
        built = build_component(self._spec, expected_type=LightningStore, spec_name="store")
        assert built is not None
        return built


def _open_url(url: str) -> LightningStore:
    from ...rest.client.client import LightningStoreClient
    from ...rest.open_store import open_store

    if url.startswith(("http://", "https://")):
        # A store that is away for a while costs that while.
        return LightningStoreClient(url, token=token(), patience_seconds=math.inf)
    return open_store(url, environment=secrets())


def _open_default() -> LightningStore:
    try:
        return _open_url(f"sqlite:///./{DEFAULT_FILE}")
    except LogLocked as locked:
        refusal = locked
    for number in range(2, _NAMES):
        path = DEFAULT_FILE.with_name(f"log-{number}.db")
        if path.exists():
            continue
        try:
            store = _open_url(f"sqlite:///./{path}")
        except LogLocked:
            continue
        who = "another process" if refusal.pid is None else f"process {refusal.pid}"
        _log.warning("%s is written by %s; this run is kept in %s.", DEFAULT_FILE, who, path)
        return store
    raise refusal


def _close(store: LightningStore) -> None:
    close: Any = getattr(store, "close", None)
    result = close() if close is not None else None
    if inspect.isawaitable(result):

        async def wait() -> None:
            await result

        run_to_end("store-close", wait)
