"""`agl demo`: a small language model on this machine, nine prompts, two runners, and the log of what happened."""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..terminal import counted, echo_json, examples, json_option, own_command, table

if TYPE_CHECKING:
    from collections.abc import Generator

    from ...algorithms.optimizers.scores import Score
    from ...algorithms.optimizers.successive_halving import SuccessiveHalving
    from ...algorithms.trainer.result import FitResult

_INTERRUPTED = 130
"""Exit code after Ctrl+C, as shells have it."""
RUNNERS = 2


@dataclass(frozen=True)
class Plan:
    """How much is asked: `rounds` of the search, held-out reviews, and only the first so many prompts."""

    rounds: tuple[tuple[int, int], ...]
    held_out: int
    prompts: int | None = None


FULL = Plan(((12, 4), (24, 2), (48, 1)), 80)
SHORT = Plan(((2, 2), (4, 1)), 4, 3)
"""For tests: enough to pass through every step, too little to mean anything."""


@click.command(
    epilog=examples("agl demo --short", "agl demo --base-url http://localhost:11434/v1 --model llama3.2 --chat")
)
@click.option(
    "--base-url", help="Ask the OpenAI-compatible endpoint at this address instead of the model on this machine."
)
@click.option("--model", help="The model's name at that endpoint.")
@click.option("--api-key-env", default="OPENAI_API_KEY", show_default=True, help="Environment variable with its key.")
@click.option("--chat", is_flag=True, help="Ask by chat message, where the endpoint offers no text completion.")
@click.option("--short", is_flag=True, help="A few questions only: shows that it works, and nothing about prompts.")
@click.option("--dir", "folder", type=click.Path(file_okay=False, path_type=Path), default=Path(".agl/demo"),
              show_default=True, help="Where the log and the model's output are kept.")  # fmt: skip
@json_option
def demo(
    base_url: str | None, model: str | None, api_key_env: str, chat: bool, short: bool, folder: Path, as_json: bool
) -> None:
    """Find the best of nine prompts by asking a real language model.

    Two runner processes ask SmolLM2-135M-Instruct, which runs on this machine without network or key, whether short
    reviews are positive or negative. An algorithm compares nine prompts by the rewards that come back (1 where the
    first word of the answer is right, else 0), drops the worse ones early, and asks the first and the best prompt about
    80 reviews that no choice was made by. The nine were written beforehand, with an eye on the validation reviews, so
    their mean rewards flatter them; the held-out accuracy does not.

    The program is what a user would write: a Trainer, the algorithm SuccessiveHalving, and an agent. What it does not
    show: a clever model (it has 135 million parameters and knows little) or a clever algorithm (it writes no prompt, it
    only compares). Prompts whose intervals overlap may differ by luck.

    Ctrl+C keeps every rollout in the log; the next start is a new run beside it.
    """
    if (base_url is None) != (model is None):
        raise click.UsageError("--base-url and --model go together")
    if base_url is None and chat:
        raise click.UsageError(
            "--chat is for --base-url: the model on this machine follows examples in plain text only"
        )
    from ...core.log.private_files import make_folder
    from .model import MODEL_NAME, local_model

    make_folder(folder)
    url = f"sqlite:///{folder / 'log.db'}"
    serving: AbstractContextManager[str] = (
        local_model(folder / "model.log") if base_url is None else nullcontext(base_url)
    )
    began = time.monotonic()
    with serving as address, _lines(began, quiet=as_json):
        if not as_json:
            click.echo(f"model {model or MODEL_NAME} at {address}, {RUNNERS} runners, log {url}")
        search, result = fit(
            url, address, model or MODEL_NAME, api_key_env, SHORT if short else FULL, chat, not as_json
        )
    if result.outcome == "interrupted":
        click.echo(
            f"stopped; every rollout so far is in the log: {own_command()} show {result.run_id} --log {url}", err=True
        )
        click.get_current_context().exit(_INTERRUPTED)
    report = _report(url, model or MODEL_NAME, search, result, time.monotonic() - began)
    if as_json:
        echo_json(report)
    else:
        _print(report)


def fit(
    url: str, address: str, model: str, api_key_env: str, plan: Plan, chat: bool, progress: bool
) -> tuple[SuccessiveHalving, FitResult]:
    """The program: what a user of this package writes to find the best prompt for an agent."""
    from ...algorithms.optimizers.successive_halving import SuccessiveHalving
    from ...algorithms.trainer.trainer import Trainer
    from ...core.model.resources import LLM
    from ...core.model.rollout import RolloutConfig
    from ...runners.tracing.otel import OtelTracer
    from .agent import API_KEY_NAME, agent, chat_agent
    from .candidates import candidates
    from .reviews import tasks_of

    os.environ[API_KEY_NAME] = api_key_env  # for the runners, which are processes of this one
    search = SuccessiveHalving({one.name: one.template for one in candidates()[: plan.prompts]}, rounds=plan.rounds)
    trainer = Trainer(
        name="demo",
        algorithm=search,
        store=url,
        n_runners=RUNNERS,
        tracer=OtelTracer(),
        initial_resources={
            "llm": LLM(
                endpoint=address, model=model, sampling_parameters={"temperature": 0, "max_tokens": 2, "stop": ["\n"]}
            )
        },
        rollout_config=RolloutConfig(
            max_attempts=2, retry_condition=["failed", "timeout", "unresponsive"], timeout_seconds=120.0
        ),
        progress=progress,
    )
    result = trainer.fit(
        chat_agent if chat else agent, tasks_of("validation"), val_dataset=tasks_of("test")[: plan.held_out]
    )
    return search, result


@contextmanager
def _lines(began: float, *, quiet: bool) -> Generator[None, None, None]:
    """Print what the algorithm logs, with the seconds since the start."""
    logger = logging.getLogger("agentlightning.algorithms.optimizers")
    before = logger.level, logger.propagate
    handler = logging.Handler()
    clear = "\x1b[2K" if sys.stdout.isatty() else ""  # the progress of the fit stands in this line
    handler.emit = lambda record: click.echo(f"{clear}{time.monotonic() - began:5.1f} s  {record.getMessage()}")
    if not quiet:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


def _report(url: str, model: str, search: SuccessiveHalving, result: FitResult, seconds: float) -> dict[str, Any]:
    """What came of it; the document of `--json`."""
    best, seed = search.results[0], next(iter(search.given))

    return {
        "log": url,
        "run": result.run_id,
        "model": model,
        "candidates": [
            {
                "name": one.name,
                **_figures(search.score(one)),
                "missing": one.missing,
                "dropped_in_round": one.dropped_in,
            }
            for one in search.results
        ],
        "best": {"name": best.name, "template": getattr(best.resources["prompt_template"], "template", "")},
        "held_out": {
            end: {"name": name, **_figures(search.held_out[name])}
            for end, name in (("seed", seed), ("best", best.name))
        },
        "rollouts": len(result.statuses),
        "seconds": round(seconds, 1),
        "rollout": next(reversed(result.statuses), ""),
    }


def _figures(score: Score) -> dict[str, Any]:
    return {"mean": score.mean if score.count else None, "low": score.low, "high": score.high, "answers": score.count}


def _print(report: dict[str, Any]) -> None:
    rows: list[list[str]] = []
    for one in report["candidates"]:
        known = one["mean"] is not None
        out = f"out, round {one['dropped_in_round']}" if one["dropped_in_round"] else ""
        answers = f"{one['answers']} ({one['missing']} missing)" if one["missing"] else str(one["answers"])
        mean, interval = (f"{one['mean']:.2f}", f"{one['low']:.2f} to {one['high']:.2f}") if known else ("-", "-")
        rows.append([one["name"], mean, interval, answers, out])
    click.echo()
    for line in table(rows, ["prompt", "mean reward", "95 % interval", "answers", ""]):
        click.echo(line)
    click.echo(f"\nbest prompt: {report['best']['name']}\n")
    for line in report["best"]["template"].splitlines():
        click.echo(f"  | {line}".rstrip())
    click.echo("\nheld-out accuracy, on reviews that no choice was made by")
    for when, end in (("before", "seed"), ("after", "best")):
        one = report["held_out"][end]
        worth = (
            "unknown: no answers"
            if one["mean"] is None
            else (f"{one['mean']:.2f} ({one['low']:.2f} to {one['high']:.2f}, n = {one['answers']})")
        )
        click.echo(f"  {when:6}  {worth}   {one['name']}")
    agl, log = own_command(), f"--log {report['log']}"
    click.echo(f"\n{counted(report['rollouts'], 'rollout')} in {report['seconds']:.0f} s, all of them in the log:")
    click.echo(f"  {agl} show {report['run']} {log}")
    click.echo(f"  {agl} show {report['rollout']} {log}")
    click.echo(f"  {agl} replay {report['run']} {log}")
    click.echo(f"  {agl} log check {log}")
