"""`agl demo`: a small language model on this machine, nine prompts, and a log that proves what happened."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..terminal import examples, own_command

if TYPE_CHECKING:
    from .run import Finished, Options
    from .screen import Screen

_INTERRUPTED = 130
"""Exit code after Ctrl+C, as shells have it."""


@click.command(
    epilog=examples("agl demo --short", "agl demo --base-url http://localhost:11434/v1 --model llama3.2 --chat")
)
@click.option(
    "--base-url", help="Ask the OpenAI-compatible endpoint at this address instead of the model on this machine."
)
@click.option("--model", help="The model's name at that endpoint.")
@click.option("--api-key-env", default="OPENAI_API_KEY", show_default=True, help="Environment variable with its key.")
@click.option("--chat", is_flag=True, help="Ask by chat message, where the endpoint offers no text completion.")
@click.option("--fresh", is_flag=True, help="Begin a new run, even if the last one was interrupted.")
@click.option("--short", is_flag=True, help="A few questions only: shows that it works, and nothing about prompts.")
@click.option("--dir", "folder", type=click.Path(file_okay=False, path_type=Path), default=Path(".agl/demo"),
              show_default=True, help="Where the log and the processes' output are kept.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end and nothing else.")
def demo(
    base_url: str | None,
    model: str | None,
    api_key_env: str,
    chat: bool,
    fresh: bool,
    short: bool,
    folder: Path,
    as_json: bool,
) -> None:
    """Find the best of nine prompts by asking a real language model.

    Two runner processes ask SmolLM2-135M-Instruct, which runs on this machine without network or key, whether short
    reviews are positive or negative. An algorithm compares nine prompts by the rewards that come back (1 where the
    first word of the answer is right, else 0), drops the worse ones early, and asks the first and the best prompt about
    80 reviews that no choice was made by. The nine were written beforehand, with an eye on the validation reviews, so
    their mean rewards flatter them; the held-out accuracy does not.

    What it shows: everything went through the event log, and a second process that folds the log from its first event
    finds the same state. What it does not show: a clever model (it has 135 million parameters and knows little) or a
    clever algorithm (it writes no prompt, it only compares). Prompts whose intervals overlap may differ by luck.

    Ctrl+C loses nothing: the next start keeps the rewards that are there.
    """
    if (base_url is None) != (model is None):
        raise click.UsageError("--base-url and --model go together")
    if base_url is None and chat:
        raise click.UsageError(
            "--chat is for --base-url: the model on this machine follows examples in plain text only"
        )
    from .model import MODEL_NAME
    from .run import Options
    from .search import FULL, SHORT

    plan = SHORT if short else FULL
    options = Options(folder, plan, base_url, model or MODEL_NAME, api_key_env, chat, fresh)
    click.get_current_context().exit(_run(options, as_json))


def _run(options: Options, as_json: bool) -> int:
    from rich.console import Console

    from .screen import LiveScreen, Screen

    console = Console(quiet=as_json)
    screen = LiveScreen(console) if console.is_terminal and not as_json else Screen(console)
    try:
        with screen:
            finished = asyncio.run(_interruptible(options, screen))
    except (KeyboardInterrupt, asyncio.CancelledError):
        click.echo(
            f"stopped; every reward so far is in {options.folder / 'log.db'}, the next `{own_command()} demo` goes on", err=True
        )
        return _INTERRUPTED
    except OSError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(_as_json(options, finished)))
    else:
        _report(screen, options, finished)
    return 1 if finished.difference else 0


async def _interruptible(options: Options, screen: Screen) -> Finished:
    """Runs the demo as a task that Ctrl+C and SIGTERM cancel once; what comes after the first is ignored."""
    from .run import run_demo

    running = asyncio.ensure_future(run_demo(options, screen))
    stopping = False

    def stop() -> None:
        nonlocal stopping
        if not stopping:
            stopping = True
            running.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, stop)
        except (NotImplementedError, RuntimeError):
            # Windows, or not the main thread: Ctrl+C then raises KeyboardInterrupt, which asyncio turns into the same.
            break
    return await running


def _report(screen: Screen, options: Options, finished: Finished) -> None:
    from .screen import report

    board, live, folded = finished.board, finished.live, finished.folded
    report(screen, board, finished.outcome.seed, finished.outcome.best)
    screen.say("")
    asked = board.answered - board.recalled
    again = f", {board.recalled} known from before" if board.recalled else ""
    screen.say(f"{asked} questions asked{again}; the log holds {live.position} control events and {folded.spans} spans")
    if finished.difference:
        screen.say(f"NOT PROVED: {finished.difference}")
        return
    screen.say(
        f"proved: a second process folded the log from its first event to the same state, fingerprint "
        f"{folded.fingerprint}, and found the same {len(live.rewards)} rewards"
    )
    screen.say(f"look inside: {own_command()} replay {options.url}")
    if live.rewards:
        screen.say(f"             {own_command()} show {list(live.rewards)[-1]} --log {options.url}")


def _as_json(options: Options, finished: Finished) -> dict[str, Any]:
    from .wilson import estimate

    board = finished.board
    ends = {"seed": finished.outcome.seed, "best": finished.outcome.best}
    test = {end: estimate(list(board.test.get(c.name, {}).values())) for end, c in ends.items()}
    return {
        "log": options.url,
        "plan": options.plan.name,
        "model": options.model,
        "candidates": [
            {
                "name": row.candidate.name,
                "mean": row.estimate.mean if row.estimate.count else None,
                "low": row.estimate.low,
                "high": row.estimate.high,
                "answers": row.estimate.count,
                "missing": row.missing,
                "dropped_in_round": row.dropped_in,
            }
            for row in board.ranking()
        ],
        "best": {"name": ends["best"].name, "template": ends["best"].template},
        "held_out": {
            end: {
                "prompt": ends[end].name,
                "accuracy": t.mean if t.count else None,
                "low": t.low,
                "high": t.high,
                "answers": t.count,
            }
            for end, t in test.items()
        },  # fmt: skip
        "questions": {"asked": board.answered - board.recalled, "known_before": board.recalled},
        "first_reward_seconds": finished.first_reward_seconds,
        "control_events": finished.live.position,
        "spans": finished.folded.spans,
        "fingerprint": {"live": finished.live.fingerprint, "folded": finished.folded.fingerprint},
        "proved": not finished.difference,
        "difference": finished.difference,
    }
