"""`agl` itself: the table of sub-commands, and what becomes of an error, a wrong word and Ctrl+C."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from ..core.errors import AgentLightningError, HistoryChanged, printable

COMMANDS: dict[str, tuple[str, str, str]] = {
    "best": ("runs", "best", "The best prompt or model of a run, and what it is worth; saves it to a file."),
    "cancel": ("runs", "cancel", "Cancel what is open of a run."),
    "dead": ("dead", "dead", "Dead letters: what was given up and why; try it again."),
    "demo": ("demo.command", "demo", "A real language model on this machine, two runners, the best prompt of several."),
    "kafka": ("kafka", "kafka", "Make the topics of a log on Apache Kafka."),
    "lag": ("lag", "lag", "How far the consumer groups of a log on Kafka are behind."),
    "log": ("log", "log", "Look at the log: topics, tail, show, grep, check, copy."),
    "ps": ("runs", "ps", "The runs of a log or a store: what was fitted, how far it is, and what it reached."),
    "replay": ("replay", "replay", "Fold a log to its state then; play a run again, or play it to an algorithm."),
    "runner": ("runner", "runner", "Run an agent on the rollouts of a store."),
    "show": ("show", "show", "One run, one rollout or the versions of resources, as a person wants to read it."),
    "store": ("store", "store", "Serve the store over HTTP on an event log."),
    "subscribe": ("subscribe", "subscribe", "Hand the facts of a store to a Python function, in a process of its own."),
}
"""Name -> (module, relative to this room; the command in it; the line that `agl --help` prints without loading it)."""

GONE = {
    "agentops": "none is needed: agl.AgentOpsTracer records without a server of its own",
    "prometheus": "there are no metrics backends here: `agl log topics` and store.statistics() show what a store did",
    "vllm": "start the server with vLLM's own command, and give agents an agl.LLM resource with its endpoint",
}
"""Commands of older releases that have no successor, and what to do instead."""

FAILED, USAGE, INTERRUPTED = 1, 2, 130
HISTORY_CHANGED = 5
"""The log is not the one that was folded: starting again folds it anew, so a supervisor should."""


class LazyCommands(click.Group):
    """A group whose commands are imported when they are called; its help is written from the table."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now. An ImportError becomes one sentence: other commands are not harmed by it."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            if cmd_name in GONE:
                raise click.UsageError(f"There is no agl {cmd_name} in this release: {GONE[cmd_name]}", ctx)
            return None
        module, name, _ = entry
        try:
            command: Any = getattr(import_module(f".{module}", __package__), name)
        except ImportError as error:
            if isinstance(error, AgentLightningError):
                raise
            raise click.ClickException(f"agl {cmd_name} cannot be loaded: {error}") from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of sub-commands, without importing one."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][2]) for name in self.list_commands(ctx)])


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from .. import __version__

        click.echo(f"agl {__version__}")
        ctx.exit()


@click.group(cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Say which release.")
def agl() -> None:
    """Agent Lightning on an event log."""


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `agentlightning.cli.main`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    # https://no-color.org: set and not empty. None leaves it to click, which colours on terminals only.
    color = False if os.environ.get("NO_COLOR") else None
    try:
        result = agl.main(args=arguments, prog_name="agl", standalone_mode=False, color=color)
    except click.exceptions.Exit as done:
        return done.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        # `agl` alone, `agl log` alone: the message is the help, which is made of lines.
        click.echo(error.format_message(), err=True)
        return USAGE
    except click.ClickException as error:
        return _say(error.format_message(), "usage" if isinstance(error, click.UsageError) else "error", as_json, error)
    except AgentLightningError as error:
        code = _say(error.message or str(error), error.code, as_json)
        return HISTORY_CHANGED if isinstance(error, HistoryChanged) else code
    except OSError as error:
        # A disk that is full, a folder without permission to write: the message of the operating system, without a traceback.
        return _say(_of_the_system(error), "system", as_json)
    except SystemExit as closed:
        # click's answer to a reader of our output that has seen enough, such as `head`: quiet, and no success.
        return closed.code if isinstance(closed.code, int) else FAILED
    return result if isinstance(result, int) else 0


def _of_the_system(error: OSError) -> str:
    """`No space left on device`, with the file where there is one."""
    message = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {message}" if error.filename else message


def _say(sentence: str, code: str, as_json: bool, error: click.ClickException | None = None) -> int:
    """One line on standard error, and the exit code."""
    if as_json:
        click.echo(json.dumps({"error": code, "message": sentence}), err=True)
    else:
        click.echo(f"agl: {printable(' '.join(sentence.split()))}", err=True)
        if isinstance(error, click.UsageError) and error.ctx is not None:
            click.echo(f"Try '{error.ctx.command_path} --help'.", err=True)
    return USAGE if isinstance(error, click.UsageError) else FAILED
