"""`agl show RUN`: one run: what it was given, its rollouts, what its algorithm decided, and what came of it."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from ..core.log import Log
from ..projections.blobs import Blobs
from ..projections.runs import Decision, datasets_of
from .finding_runs import NO_LIMIT_MB, Found, runs_in
from .terminal import by_status, counted, duration, echo_json, printable, short, status, table, when

MOST_LINES = 20


def show_run(log: Log, url: str, name: str, full: bool, as_json: bool) -> None:
    """Print the run that `name` names. Raises `NotFound`, `InvalidInput` for several."""
    (found,) = runs_in(log, url, only=name)
    if as_json:
        echo_json(document(log, found))
        return
    _print_head(found)
    _print_rollouts(found, full)
    _print_decisions(found.run.decisions, full)


def document(log: Log, found: Found) -> dict[str, Any]:
    """The document of `--json`; `datasets` has their sizes where the run was recorded with them."""
    run = found.run
    rollouts = [
        {"rollout_id": one, "status": found.statuses.get(one), "reward": found.rewards.get(one)} for one in run.rollout_ids
    ]
    recorded = datasets_of(log, run, Blobs(log, NO_LIMIT_MB).fetch)
    return {
        **found.summary(),
        "parameters": run.parameters,
        "resources_id": run.resources_id,
        "resources_version": run.resources_version,
        "train_size": run.train_size,
        "val_size": run.val_size,
        "recorded": sorted(recorded),
        "summary": run.summary,
        "rollouts": rollouts,
        "decisions": [msgspec.to_builtins(one) for one in run.decisions],
    }


def _print_head(found: Found) -> None:
    run, row = found.run, found.summary()
    took = None if run.closed_time is None else run.closed_time - run.opened_time
    best = run.best_resources_id and f"{run.best_resources_id} version {run.best_resources_version or '-'}"
    sizes = [f"{size:,} {name}" for name, size in (("train", run.train_size), ("val", run.val_size)) if size >= 0]
    reward = found.mean_reward
    without = f"; {counted(row['missing_rewards'], 'rollout')} without a reward" if row["missing_rewards"] else ""
    click.echo(f"{printable(run.run_id)}  {status(printable(found.state))}" + (f"  {printable(run.name)}" if run.name else ""))
    for head, text in (
        ("algorithm", printable(run.algorithm)),
        ("agent", printable(run.agent)),
        ("began", when(run.opened_time) + ("" if took is None else f", took {duration(took)}")),
        ("positions", f"{run.opened_at:,} to " + ("-" if run.closed_at is None else f"{run.closed_at:,}")),
        ("seed", "" if run.seed is None else str(run.seed)),
        ("samples", ", ".join(sizes)),
        ("parameters", short(run.parameters) if run.parameters is not None else ""),
        ("resources", printable(run.resources_id or "")),
        ("rollouts", by_status(row["rollouts"])),
        ("reward", "" if reward is None else f"{reward:.4g} on average of {counted(row['rewarded'], 'rollout')}{without}"),
        ("best", printable(best or "")),
        ("summary", short(run.summary) if run.summary is not None else ""),
        ("log", printable(found.url)),
    ):
        if text:
            click.echo(f"{head:12} {text}")


def _print_rollouts(found: Found, full: bool) -> None:
    ids = found.run.rollout_ids if full else found.run.rollout_ids[:MOST_LINES]
    rows: list[list[str]] = []
    for one in ids:
        reward = found.rewards.get(one)
        rows.append([printable(one), status(found.statuses.get(one, "-")), "-" if reward is None else f"{reward:.4g}"])
    if rows:
        click.echo("\nRollouts")
        click.echo("\n".join(table(rows, ("rollout", "status", "reward"), "  ")))
    _more(len(found.run.rollout_ids) - len(ids), "rollout")


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


def _more(left: int, noun: str) -> None:
    if left > 0:
        click.echo(f"  ... and {counted(left, noun)} more, with --full")
