"""`agl ps`, `agl best`, `agl cancel`, and the run of `agl show`: what was fitted, how far it is, and what it reached."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import msgspec

from ..algorithms.runs.report import Candidate, Failure, LogReader, RolloutRow, RunReport
from ..core.errors import NotFound
from ..core.log.open_log import shown
from ..core.model.scalars import mapping
from ..core.model.status import FINISHED
from ..projections.history.run_index import Decision, datasets_of
from ..projections.history.run_table import RunSummary, runs_in
from ..projections.spans.blobs import NO_LIMIT_MB, Blobs
from ..projections.store.runs import cancel_run
from ..rest.open_store import open_existing
from .log_source import Located, address_of, located, log_option, logs_here, open_reading
from .terminal import (
    by_status,
    counted,
    duration,
    echo_json,
    examples,
    json_option,
    plain,
    printable,
    short,
    status,
    table,
    when,
)

MOST_LINES = 20
MOST_TASKS = 3
"""Inputs that are shown of a group of failures."""
NAME_WIDTH = 40


@click.command(epilog=examples("agl ps", "agl ps --log runs.db --json", "agl ps --log http://127.0.0.1:4747"))
@log_option(default=None)
@json_option
def ps(url: str | None, token: str | None, as_json: bool) -> None:
    """Every run, the oldest first: its id, name, algorithm, state, rollouts, mean reward, and when it began.

    The mean is over finished rollouts that have a reward; n is the number of rollouts, 4/6 while only 4 are finished. A log is
    read while a store writes it. With --json one list.
    """
    urls = logs_here(url)
    found: list[RunSummary] = []
    for each in urls:
        with open_reading(each, token) as log:
            found += [replace(one, url=each) for one in runs_in(log)]
    if as_json:
        echo_json([one.summary() for one in found])
        return
    if not found:
        click.echo(f"No runs in {', '.join(shown(one) for one in urls)}")
        return
    heads = ["run", "name", "algorithm", "state", "n", "reward", "began", "took"]
    rows = [_row(one) for one in found]
    if len(urls) > 1:
        heads.append("log")
        rows = [[*row, printable(shown(one.url))] for row, one in zip(rows, found)]
    click.echo("\n".join(table(rows, heads)))


def _row(found: RunSummary) -> list[str]:
    run = found.run
    ended = run.closed_time if run.closed_time is not None else time.time()
    reward = found.mean_reward
    missing = f" ({found.missing_rewards} without)" if found.missing_rewards else ""
    return [
        printable(run.run_id),
        short(run.name, NAME_WIDTH) or "-",
        short(run.algorithm, NAME_WIDTH) or "-",
        status(printable(found.state)),
        _count(found.statuses),
        "-" if reward is None else f"{reward:.3f}" + missing,
        _began(run.opened_time),
        duration(max(ended - run.opened_time, 0.0)),
    ]


def _count(statuses: Mapping[str, str]) -> str:
    """`6`, `4/6` while some are not finished, `6, 2 failed`."""
    over = sum(word in FINISHED for word in statuses.values())
    failed = sum(word == "failed" for word in statuses.values())
    counts = f"{over:,}" if over == len(statuses) else f"{over:,}/{len(statuses):,}"
    return counts + (f", {failed:,} failed" if failed else "")


def _began(seconds: float) -> str:
    """Date and time to the minute; without the year where it is this year."""
    text = when(seconds)[:16]
    return text.removeprefix(f"{datetime.date.today().year}-")


@click.command(epilog=examples("agl cancel run-1f3c", "agl cancel capitals --store http://127.0.0.1:4747 --json"))
@click.argument("name", metavar="RUN")
@log_option(None)
@json_option
def cancel(name: str, url: str | None, token: str | None, as_json: bool) -> None:
    """Cancel every rollout of RUN that is not over: those that wait in the queue, and those that runners work on.

    RUN is the id of a run, the beginning of it, or its name. The run itself stays in the log with all its results. The
    store has to be reachable for writing: give its http:// address where a process serves the file.
    """
    with located(name, url, token, ("run",)) as found:
        found_url, run_id = found.url, found.id

    async def cancel_all() -> dict[str, Any]:
        async with open_existing(address_of(found_url), token, os.environ) as store:
            return await cancel_run(store, run_id)

    done = asyncio.run(cancel_all())
    if as_json:
        echo_json({"event": "cancelled", **done})
        return
    ids = done["rollout_ids"]
    what = f"{counted(len(ids), 'rollout')} cancelled." if ids else "nothing was open."
    click.echo(f"{printable(done['run_id'])}: {what}")


def show_run(place: Located, full: bool, as_json: bool) -> None:
    """Print the run. Blocks: its spans are read, and the log is folded from its newest snapshot on."""
    assert place.run is not None
    report = LogReader(place.log).report(place.book, place.run)
    summary = _summary(report, place.url)
    if as_json:
        echo_json(_document(place, report, summary))
        return
    _print_head(report, summary)
    _print_candidates(report, full)
    _print_failures(report.failures, full)
    _print_rollouts(report.rows, full)
    _print_decisions(report.run.decisions, full)


def _summary(report: RunReport, url: str) -> RunSummary:
    over = {row.rollout_id: row.reward for row in report.rows if row.finished}
    report.run.rollout_ids = [row.rollout_id for row in report.rows]  # those that the log accepted
    return RunSummary(report.run, url, {row.rollout_id: row.status for row in report.rows}, over)


def _document(place: Located, report: RunReport, summary: RunSummary) -> dict[str, Any]:
    """The document of `--json`; `recorded` names the datasets that the run was recorded with."""
    run = report.run
    return {
        **summary.summary(),
        "parameters": run.parameters,
        "resources_id": run.resources_id,
        "resources_version": run.resources_version,
        "train_size": run.train_size,
        "val_size": run.val_size,
        "recorded": sorted(datasets_of(place.log, run, Blobs(place.log, NO_LIMIT_MB).fetch)),
        "summary": run.summary,
        "candidates": [_candidate(one) for one in report.candidates],
        "failures": [
            {"error": one.error, "line": one.line, "rollout_ids": one.rollout_ids} for one in report.failures
        ],
        "rollouts": [asdict(row) for row in report.rows],
        "decisions": [msgspec.to_builtins(one) for one in run.decisions],
    }


def _candidate(one: Candidate) -> dict[str, Any]:
    found = asdict(one)
    return {**found, "mean_reward": found.pop("mean"), "resources": found.pop("content")}


def _print_head(report: RunReport, summary: RunSummary) -> None:
    run = report.run
    took = None if run.closed_time is None else run.closed_time - run.opened_time
    sizes = [f"{size:,} {name}" for name, size in (("train", run.train_size), ("val", run.val_size)) if size >= 0]
    click.echo(
        f"{printable(run.run_id)}  {status(printable(summary.state))}" + (f"  {printable(run.name)}" if run.name else "")
    )
    for head, text in (
        ("algorithm", printable(run.algorithm)),
        ("agent", printable(run.agent)),
        ("began", when(run.opened_time) + ("" if took is None else f", took {duration(took)}")),
        ("positions", f"{run.opened_at:,} to " + ("-" if run.closed_at is None else f"{run.closed_at:,}")),
        ("seed", "" if run.seed is None else str(run.seed)),
        ("samples", ", ".join(sizes)),
        ("parameters", short(run.parameters) if run.parameters is not None else ""),
        ("resources", printable(run.resources_id or "")),
        ("rollouts", by_status(summary.summary()["rollouts"])),
        ("reward", _reward_line(summary)),
        ("summary", short(run.summary) if run.summary is not None else ""),
        ("log", printable(shown(summary.url))),
    ):
        if text:
            click.echo(f"{head:12} {text}")


def _reward_line(summary: RunSummary) -> str:
    mean, missing = summary.mean_reward, summary.missing_rewards
    if mean is None:
        return ""
    rest = f"; {counted(missing, 'rollout')} without a reward" if missing else ""
    return f"{mean:.4g} on average of {counted(len(summary.rewards) - missing, 'rollout')}{rest}"


def _print_candidates(report: RunReport, full: bool) -> None:
    if not report.candidates:
        return
    best = report.best
    shown = report.candidates if full else report.candidates[-MOST_LINES:]
    rows = [
        [
            "*" if one is best else "",
            f"{printable(one.resources_id)} v{one.version or '-'}",
            str(one.rollouts),
            _mean(one),
            f"{one.missing}" if one.missing else "",
            f"{one.failed}" if one.failed else "",
            short(text_of(one)),
        ]
        for one in shown
    ]
    click.echo("\nCandidates")
    click.echo("\n".join(table(rows, ("", "resources", "n", "mean reward", "missing", "failed", "content"), "  ")))
    _more(len(report.candidates) - len(shown), "candidate")
    if best is not None and best.content:
        word = "Best" if best.best else "Best so far"
        click.echo(f"\n{word}: {printable(best.resources_id)} v{best.version or '-'}, mean reward {_mean(best)}")
        for line in content_lines(best.content):
            click.echo(f"  {line}")


def _mean(one: Candidate) -> str:
    if one.mean is None:
        return "-"
    return f"{one.mean:.3f}" + ("" if one.half_width is None else f" ±{one.half_width:.3f}")


def text_of(one: Candidate) -> str:
    """The first prompt of a candidate, else all of it as JSON; empty where nothing is known of it."""
    templates = [fields.get("template") for fields in map(mapping, one.content.values()) if fields is not None]
    text = next((template for template in templates if isinstance(template, str)), None)
    return text if text is not None else json.dumps(plain(one.content), ensure_ascii=False) if one.content else ""


def content_lines(content: Any) -> list[str]:
    """Named resources as lines: a prompt's text as it is, everything else as JSON."""
    lines: list[str] = []
    for name, resource in (mapping(content) or {}).items():
        fields = mapping(resource) or {}
        template = fields.get("template")
        kind = fields.get("engine") or fields.get("resource_type") or ""
        lines.append(f"{printable(str(name))}" + (f" ({printable(str(kind))})" if kind else ""))
        text = template if isinstance(template, str) else json.dumps(plain(resource), indent=2, ensure_ascii=False)
        lines += [f"  {printable(line)}" for line in text.splitlines()]
    return lines


def _print_failures(failures: list[Failure], full: bool) -> None:
    if not failures:
        return
    click.echo("\nFailures")
    for one in failures if full else failures[:MOST_LINES]:
        click.echo(f"  {counted(len(one.rollout_ids), 'rollout')}: {click.style(short(one.error), fg='red')}")
        if one.line:
            click.echo(f"    at {short(one.line)}")
        for rollout_id, given in list(zip(one.rollout_ids, one.inputs))[: None if full else MOST_TASKS]:
            click.echo(f"    {printable(rollout_id)}  {short(given, 80)}")
        _more(len(one.rollout_ids) - MOST_TASKS if not full else 0, "rollout", "    ")
    _more(len(failures) - MOST_LINES if not full else 0, "kind")


def _print_rollouts(found: list[RolloutRow], full: bool) -> None:
    shown = found if full else found[:MOST_LINES]
    rows = [
        [
            printable(row.rollout_id),
            status(row.status),
            "-" if row.reward is None else f"{row.reward:.4g}",
            short(row.input, 60),
            short(row.error or row.answer, 60),
        ]
        for row in shown
    ]
    if rows:
        click.echo("\nRollouts")
        click.echo("\n".join(table(rows, ("rollout", "status", "reward", "input", "answer or error"), "  ")))
    _more(len(found) - len(shown), "rollout")


def _print_decisions(decisions: list[Decision], full: bool) -> None:
    shown = decisions if full else decisions[:MOST_LINES]
    rows = [
        [f"{one.position:,}", "-" if one.based_on < 0 else f"{one.based_on:,}", printable(one.kind), short(one.content, 100)]
        for one in shown
    ]
    if rows:
        click.echo("\nDecisions")
        click.echo("\n".join(table(rows, ("position", "based on", "kind", "what"), "  ")))
    _more(len(decisions) - len(shown), "decision")


def _more(left: int, noun: str, indent: str = "  ") -> None:
    if left > 0:
        click.echo(f"{indent}... and {counted(left, noun)} more, with --full")


@click.command(epilog=examples("agl best latest", "agl best nightly --save prompt.txt", "agl best run-81c2 --json"))
@click.argument("name", metavar="RUN", default="latest")
@click.option(
    "--save",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the prompt's text to FILE; JSON where FILE ends in .json or there are several resources.",
)
@log_option(default=None)
@json_option
def best(name: str, save: Path | None, url: str | None, token: str | None, as_json: bool) -> None:
    """The best resources of a run: what its algorithm named the best, else those with the highest mean reward so far.

    RUN is an id, the beginning of one, a name, or `latest`.
    """
    with located(name, url, token, ("run",)) as place:
        assert place.run is not None
        report = LogReader(place.log).report(place.book, place.run)
    found = report.best
    if found is None:
        raise NotFound(f"{report.run.run_id} has no best resources: its algorithm named none, and no rollout has a reward")
    if save is not None:
        save.write_text(_saved(found, save), encoding="utf-8")
    if as_json:
        echo_json({"run_id": report.run.run_id, **_candidate(found), "saved": None if save is None else str(save)})
        return
    word = "named best by the algorithm" if found.best else "the highest mean so far"
    name = f"{printable(found.resources_id)} v{found.version or '-'}"
    click.echo(f"{name}  {word}, mean reward {_mean(found)} of {counted(found.rewarded, 'rollout')}")
    if save is not None:
        click.echo(f"Saved to {save}")
        return
    for line in content_lines(found.content):
        click.echo(line)


def _saved(found: Candidate, file: Path) -> str:
    """The prompt alone where the resources are one prompt, so that the file can be used as it is; else JSON."""
    fields = mapping(next(iter(found.content.values()))) if len(found.content) == 1 else None
    template = fields.get("template") if fields is not None else None
    if file.suffix != ".json" and isinstance(template, str):
        return template if template.endswith("\n") else template + "\n"
    return json.dumps(plain(found.content), indent=2, ensure_ascii=False) + "\n"
