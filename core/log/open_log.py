"""Opening a log by its address."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from ..credentials import MASK, mask_text
from ..errors import InvalidInput
from .interface import Log
from .local.memory import MemoryLog

FORMS = "sqlite:///relative/path.db, sqlite:////absolute/path.db, kafka://host:9092/prefix or memory://"


def shown(url: str) -> str:
    """An address as a message may repeat it: without options and credentials, whatever its form."""
    return mask_text(url).partition("?")[0].replace(f"//{MASK}@", "//")


def address_of(given: object) -> str:
    """The address that somebody passed: a text, or the path of a log file. InvalidInput for anything else."""
    if isinstance(given, os.PathLike):
        path = cast("os.PathLike[str]", given)
        return f"sqlite:///{os.fsdecode(path)}"
    if not isinstance(given, str):
        raise InvalidInput(
            f"the address of a store is a text such as {FORMS} or http://host:4747, or the pathlib.Path of a log file, "
            f"not {type(given).__name__}"
        )
    return str(given)


def path_of(url: str) -> Path:
    """The file of a `sqlite:///` address, `~` being the user's home; InvalidInput for any other."""
    if not url.startswith("sqlite:///") or url == "sqlite:///":
        raise InvalidInput(f"{shown(url)!r} is not the address of a log file; it looks like {FORMS}")
    name = url[len("sqlite:///") :]
    if name == ":memory:":
        raise InvalidInput("'sqlite:///:memory:' is not the address of a log file; a log in memory is memory://")
    if "\0" in name:
        raise InvalidInput(f"{url!r} is not the address of a log file: no name of a file has a NUL")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise InvalidInput(f"{url!r} is not the address of a log file: {error}") from error


def open_log(url: str | os.PathLike[str], readonly: bool = False, environment: Mapping[str, str] | None = None) -> Log:
    """Open the log at `url`, making it and its folders where there is none (not with `readonly`).

    Raises `InvalidInput` for an address of another form, `LogLocked` where another process writes the file,
    `LogCorrupt` where it is damaged, `StorageError` where the disk or its rights say no. A read-only log may be opened
    while another process writes it. `environment`: where security options of a `kafka://` address are looked up that the
    address does not have (AGL_KAFKA_SASL_PASSWORD and so on); the commands pass that of their process.
    """
    url = address_of(url)
    if url == "memory://":
        return MemoryLog()
    if url.startswith("kafka://"):
        from .kafka import KafkaAddress, KafkaLog, ReadOnlyKafkaLog

        address = KafkaAddress.parse(url, environment)
        return ReadOnlyKafkaLog(address) if readonly else KafkaLog(address)
    from .sqlite import SqliteLog

    path = path_of(url)
    if readonly:
        return SqliteLog.open_readonly(path)
    return SqliteLog(path)
