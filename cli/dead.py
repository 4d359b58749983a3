"""`agl dead`: what was given up, with the reason, and trying it again."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import click
import msgspec

from ..algorithms.subscribers.delivery import redeliver
from ..core.errors import InvalidInput
from ..core.log.dead_letter import ROLLOUT, SUBSCRIBER, DeadLetter
from ..projections.store.dead_letters import (
    HANDLED,
    REQUEUED,
    DeadEntry,
    dead_letters,
    entries_from,
    find_letter,
    requeue,
    requeue_run,
)
from ..rest.open_store import open_existing
from .log_source import LOOKING_SECONDS, address_of, log_option, open_reading
from .terminal import counted, echo_json, examples, json_option, plain, printable, short, table, when


@click.group()
def dead() -> None:
    """Dead letters: rollouts that were given up, facts that a subscriber did not take, records that cannot be decoded."""


@dead.command(
    short_help="List what is there and still open.", epilog=examples("agl dead ls", "agl dead ls --all --kind rollout --json")
)
@click.option("--all", "settled", is_flag=True, help="Those too that a retry has settled.")
@click.option("--kind", type=click.Choice(["rollout", "record", "subscriber"]), help="One kind only.")
@log_option()
@json_option
def ls(settled: bool, kind: str | None, url: str, token: str | None, as_json: bool) -> None:
    """What is there and still open, the oldest first: id, source, when, how often, and why."""
    entries = _read(url, token)
    shown = [one for one in entries if (settled or not one.letter.settled) and kind in (None, one.letter.kind)]
    if as_json:
        echo_json([msgspec.to_builtins(entry) for entry in shown])
        return
    hidden = len([one for one in entries if one.letter.settled and not settled])
    rows = [
        (
            printable(entry.letter.id),
            printable(entry.letter.source),
            when(entry.last_time),
            f"{entry.times}",
            f"{entry.letter.settled}: " * bool(entry.letter.settled) + short(entry.letter.reason, 100),
        )
        for entry in shown
    ]
    if rows:
        click.echo("\n".join(table(rows, ("id", "source", "when", "times", "reason"))))
    else:
        click.echo("No dead letters" + (f" that are open; {counted(hidden, 'settled one')} with --all" if hidden else ""))


@dead.command(
    short_help="Show one letter in full.", epilog=examples("agl dead show ro-1d18988581cd", "agl dead show dl-3f --json")
)
@click.argument("name", metavar="ID")
@log_option()
@json_option
def show(name: str, url: str, token: str | None, as_json: bool) -> None:
    """One letter in full. ID is its id, the beginning of it, or the rollout that it is about."""
    entry = find_letter(_read(url, token), name)
    if as_json:
        echo_json(msgspec.to_builtins(entry))
        return
    letter = entry.letter
    for head, text in (
        ("id", letter.id),
        ("kind", letter.kind),
        ("source", letter.source),
        ("reason", letter.reason),
        ("tries", str(letter.tries)),
        ("given up", f"{counted(entry.times, 'time')}, first {when(entry.first_time)}, last {when(entry.last_time)}"),
        ("rollout", letter.rollout_id or ""),
        ("attempt", letter.attempt_id or ""),
        ("position", "" if letter.position is None else str(letter.position)),
        ("settled", letter.settled),
    ):
        if text:
            click.echo(f"{head:10} {printable(text)}")
    if letter.data:
        click.echo(json.dumps(plain(letter.data), indent=2))


@dead.command(
    short_help="Try one again, or all of a run.",
    epilog=examples("agl dead retry ro-1d18988581cd", "agl dead retry --run capitals --log http://127.0.0.1:4747"),
)
@click.argument("name", metavar="[ID]", required=False)
@click.option("--run", metavar="RUN", help="Every rollout of this run that was given up, instead of one ID.")
@click.option("--function", metavar="MODULE:FUNCTION", help="The subscriber to hand a fact to, if not the one it failed in.")
@log_option()
@json_option
def retry(name: str | None, run: str | None, function: str | None, url: str, token: str | None, as_json: bool) -> None:
    """Try one again: a rollout goes back into the queue as a new generation, a fact to its function once more.

    With --run every rollout of RUN that was given up goes back; RUN is its id, the beginning of it, or its name. A file that
    a store serves is changed through that store.
    """
    if (name is None) == (run is None):
        raise click.UsageError("give the ID of one letter, or --run RUN for all rollouts of a run")
    if run is not None:
        done = asyncio.run(_retry_run(run, url, token))
        ids = done["rollout_ids"]
        what = f"{counted(len(ids), 'rollout')} in the queue again." if ids else "none of its rollouts was given up."
        echo_json({"event": "requeued", **done}) if as_json else click.echo(f"{printable(done['run_id'])}: {what}")
        return
    assert name is not None
    what, letter = asyncio.run(_retry(name, function, url, token))
    if as_json:
        echo_json({"event": what, "id": letter.id, "rollout_id": letter.rollout_id})
    elif letter.kind == ROLLOUT:
        click.echo(f"{printable(str(letter.rollout_id))} is in the queue again.")
    else:
        click.echo(f"{printable(letter.id)} was handled.")


async def _retry(name: str, function: str | None, url: str, token: str | None) -> tuple[str, DeadLetter]:
    """REQUEUED or HANDLED, and the letter that `name` stands for."""
    async with open_existing(address_of(url), token, os.environ) as store:
        letter = find_letter(entries_from(await store.query_dead_letters()), name).letter
        if letter.settled:
            raise InvalidInput(f"{letter.id} was {letter.settled} already")
        if letter.kind == ROLLOUT:
            await requeue(store, letter)
            return REQUEUED, letter
        if letter.kind != SUBSCRIBER:
            raise InvalidInput(
                f"{letter.id} is a record that this release cannot read; it stays where it is, and a release that can read "
                "it needs no retry"
            )
        await redeliver(store, letter, function)
        return HANDLED, letter


async def _retry_run(run: str, url: str, token: str | None) -> dict[str, Any]:
    async with open_existing(address_of(url), token, os.environ) as store:
        return await requeue_run(store, run)


def _read(url: str, token: str | None) -> list[DeadEntry]:
    if not url.startswith(("http://", "https://")):
        with open_reading(url) as log:
            return dead_letters(log)

    async def ask() -> list[dict[str, Any]]:
        from ..rest.client.client import LightningStoreClient

        client = LightningStoreClient(url, token=token, patience_seconds=LOOKING_SECONDS)
        try:
            return await client.query_dead_letters()
        finally:
            await client.close()

    return entries_from(asyncio.run(ask()))
