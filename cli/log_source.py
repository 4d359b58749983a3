"""Where a command reads and writes: options that name a log or a store, opening it, and finding things in it by name."""

from __future__ import annotations

import datetime
import logging
import os
import re
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import click

from ..core.errors import InvalidInput, NotFound
from ..core.log.interface import Log
from ..core.log.open_log import open_log, shown
from ..projections.history.rollout_history import find_resources, find_rollout, has_rollout
from ..projections.history.run_index import LATEST, Run, RunBook, find_run
from ..projections.history.topic_reader import Bound
from ..projections.spans.blobs import NO_LIMIT_MB, Blobs
from .terminal import printable

DEFAULT_FOLDER = ".agl"
DEFAULT_FILE = f"{DEFAULT_FOLDER}/log.db"
DEFAULT_LOG = f"sqlite:///./{DEFAULT_FILE}"
LOOKING_SECONDS = 5.0
"""How long a command that only looks waits for a store that does not answer."""

Kind = Literal["run", "rollout", "resources"]
_PREFIXES: dict[str, Kind] = {"run-": "run", "rs-": "resources", "ro-": "rollout", "at-": "rollout"}


def token_option(command: Any) -> Any:
    """`--token` for a store at http://."""
    return click.option(
        "--token", envvar="AGL_TOKEN", metavar="TOKEN", help="The token of a store at http://; also read from AGL_TOKEN."
    )(command)


def log_option(default: str | None = DEFAULT_LOG) -> Any:
    """`--log`, with `--store` as another name of it, and `--token`: they reach the command as `url` and `token`."""
    where = "all logs in ./.agl/ if left out" if default is None else f"{DEFAULT_LOG} if left out"

    def add(command: Any) -> Any:
        command = token_option(command)
        return click.option(
            "--log", "--store", "url", default=default, metavar="URL",
            help=f"The log (a file or kafka://) or the store (http://) to look at; {where}.",
        )(command)  # fmt: skip

    return add


def address_of(log: str) -> str:
    """The address that was meant: an address itself, or the path of a file. Raises `InvalidInput` for host:port."""
    if "://" not in log:
        refuse_bare_port(log)
    return log if "://" in log else f"sqlite:///{log}"


def refuse_bare_port(address: str) -> None:
    """Raise `InvalidInput` for `localhost:4747`, which lacks http:// and would be taken for the name of a file."""
    if re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):\d{1,5}(/.*)?", address) and not os.path.exists(address):
        raise InvalidInput(
            f"{address!r} is not the address of a log or a store; for the store at that port write http://{address}"
        )


def open_reading(url: str, token: str | None = None) -> Log:
    """Open a log only to look at it: an address, or simply the path of a file. Works while a store writes it.

    That of a store at http:// is read through the store, which `token` is for.
    """
    url = address_of(url)
    if url.startswith("memory:"):
        raise InvalidInput("a log in memory:// belongs to the process that made it; give the address of a file or a store")
    if url.startswith(("http://", "https://")):
        from ..rest.client.remote_log import RemoteLog

        return RemoteLog(url, token)
    quieten_clients()
    return open_log(url, readonly=True, environment=os.environ)


def logs_here(url: str | None) -> list[str]:
    """The log that was named; without a name every log in `./.agl/`, the default one first, or where that would be."""
    if url is not None:
        return [url]
    found = sorted(path.as_posix() for path in Path(DEFAULT_FOLDER).glob("*.db"))
    others = [path for path in found if path != DEFAULT_FILE]
    return [f"sqlite:///./{path}" for path in ([DEFAULT_FILE] if DEFAULT_FILE in found or not others else []) + others]


def quieten_clients() -> None:
    """Our own error reports a broker that does not answer, in one line; what its client logs about it is left out."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


class BoundType(click.ParamType):  # pyright: ignore[reportMissingTypeArgument] (generic in the newest click only)
    """A number is a position; everything else is a date and time in ISO form, local where it names no zone."""

    name = "position or time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Bound:
        """Click's hook."""
        if isinstance(value, Bound):
            return value
        text = str(value)
        if text.isdecimal() and len(text) < 20:
            return Bound(position=int(text))
        # Python 3.10 knows no Z for UTC.
        iso = text[:-1] + "+00:00" if text.endswith(("Z", "z")) else text
        try:
            return Bound(time=datetime.datetime.fromisoformat(iso).timestamp())
        except (ValueError, OverflowError, OSError):
            self.fail(f"{text!r} is neither a position nor a time such as 2026-01-31T12:00", param, ctx)


@dataclass
class Located:
    """The thing that a name stands for: the open log that has it, its address, its kind and its whole id; `run` for a run."""

    log: Log
    url: str
    kind: Kind
    id: str
    book: RunBook
    run: Run | None = None


@contextmanager
def located(
    name: str, url: str | None, token: str | None, kinds: Sequence[Kind] = ("run", "rollout", "resources")
) -> Generator[Located, None, None]:
    """The one thing of these kinds that `name` stands for, in the log at `url` or in all logs of this folder.

    A run is found by its id, its name, `latest`, or the beginning of its id; of several with the same name the newest is
    taken, and a line on standard error names it. Raises `NotFound`, and `InvalidInput` where several logs have the id.
    """
    found: list[Located] = []
    missing: NotFound | None = None
    with ExitStack() as stack:
        namesakes = 0
        for one in logs_here(url):
            log = stack.enter_context(open_reading(one, token))
            book = RunBook(log, Blobs(log, NO_LIMIT_MB).fetch)
            if "rollout" in kinds and has_rollout(log, name):  # a whole id needs no search for a run of that name
                found.append(Located(log, one, "rollout", name, book))
                continue
            namesakes += sum(run.name == name for run in book.advance().values())
            try:
                found.append(_matching(Located(log, one, "run", name, book), name, kinds))
            except NotFound as error:
                missing = missing or error
        if not found:
            raise missing or NotFound(f"there is nothing of the name {name}")
        newest = max(found, key=lambda one: one.run.opened_time if one.run is not None else 0.0)
        by_name = all(one.run is not None and name in (one.run.name, LATEST) for one in found)
        if len(found) > 1 and not by_name:
            raise InvalidInput(f"{name} is in {', '.join(shown(one.url) for one in found)}; name one with --log")
        if namesakes > 1 and newest.kind == "run" and newest.id != name:
            click.echo(f"{namesakes} runs are named {printable(name)}; this is the newest, {newest.id}.", err=True)
        yield newest


def _matching(place: Located, name: str, kinds: Sequence[Kind]) -> Located:
    """What a name stands for in one log. A run's name comes before the beginnings of ids. Raises `NotFound`."""
    runs = place.book.runs
    begins = next((kind for prefix, kind in _PREFIXES.items() if name.startswith(prefix)), None)
    named = name in runs or any(run.name == name for run in runs.values()) or name == LATEST
    if "run" in kinds and (named or begins == "run" or len(kinds) == 1):
        run = find_run(runs, name)
        return replace(place, id=run.run_id, run=run)
    if "rollout" in kinds and begins != "resources":
        try:
            return replace(place, kind="rollout", id=find_rollout(place.log, name))
        except NotFound:
            if begins == "rollout":
                raise
    if "resources" in kinds and begins != "rollout":
        found = find_resources(place.log, name)
        if found is not None:
            return replace(place, kind="resources", id=found)
    raise NotFound(f"there is no run, no rollout and no resources of the id or name {name}; `agl ps` lists the runs")
