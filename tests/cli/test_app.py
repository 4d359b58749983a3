"""The entry point: nothing is loaded before it is called, and every failure is one line with a meaningful exit code."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from agentlightning import __version__
from agentlightning.cli import app
from agentlightning.cli.store import _serve
from agentlightning.core.errors import AgentLightningError, HistoryChanged
from agentlightning.core.log.local.memory import MemoryLog
from agentlightning.projections.store.store import EventLogStore
from agentlightning.rest.server.server import LightningStoreServer
from agentlightning.runners.stop_events import ThreadingEvent

from .support import invoke


def test_help_loads_no_sub_command_and_nothing_heavy() -> None:
    program = (
        "import sys; from agentlightning.cli import main; code = main(['--help']);"
        "print(code, [m for m in sys.modules if m.startswith('agentlightning.cli.') and m != 'agentlightning.cli.app'],"
        "[m for m in ('uvicorn', 'starlette', 'aiohttp', 'openai', 'pydantic', 'sqlite3') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "0 [] []"
    for name in app.COMMANDS:
        assert f"  {name} " in run.stdout


def test_a_broken_sub_command_harms_no_other(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(app.COMMANDS, "broken", ("no_such_module", "broken", "It cannot be loaded."))
    assert app.run(["--help"]) == 0
    assert app.run(["--version"]) == 0
    assert capsys.readouterr().out.endswith(f"agl {__version__}\n")
    assert app.run(["broken"]) == app.FAILED
    assert capsys.readouterr().err.startswith("agl: agl broken cannot be loaded: ")


@pytest.mark.parametrize("name", sorted(app.COMMANDS))
def test_every_sub_command_of_the_table_loads_and_has_help(name: str) -> None:
    code, out = invoke(name, "--help")
    assert code == 0 and out.startswith(f"Usage: agl {name}")


def commands() -> Iterator[tuple[list[str], click.Command]]:
    """Every command that does something, with the words that call it."""
    for name in sorted(app.COMMANDS):
        command = app.agl.get_command(click.Context(app.agl), name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from (([name, sub], command.commands[sub]) for sub in sorted(command.commands))
        else:
            yield [name], command


@pytest.mark.parametrize(("words", "command"), [pytest.param(*each, id=" ".join(each[0])) for each in commands()])
def test_every_command_has_two_examples_that_it_would_take(words: list[str], command: click.Command) -> None:
    out = invoke(*words, "--help")[1]
    lines = [shlex.split(line) for line in out.splitlines() if line.startswith("    agl ")]
    assert len(lines) >= 2, out
    for line in lines:
        assert line[: 1 + len(words)] == ["agl", *words]
        command.make_context(" ".join(words), line[1 + len(words) :])


@pytest.mark.parametrize(("words", "command"), [pytest.param(*each, id=" ".join(each[0])) for each in commands()])
def test_log_and_store_are_one_option(words: list[str], command: click.Command) -> None:
    named = [one.opts for one in command.params if {"--log", "--store"} & set(one.opts)]
    assert all({"--log", "--store"} <= set(opts) for opts in named)


@pytest.mark.parametrize(
    "args",
    [
        ["nope"],
        ["log", "nope"],
        ["store", "--port", "x"],
        ["show"],
        ["log", "tail", "--since", "x"],
        ["runner", "a:b", "--log-level", "x"],
    ],
)
def test_wrong_usage_is_exit_code_2_and_says_where_help_is(args: list[str]) -> None:
    code, out = invoke(*args)
    assert code == app.USAGE
    assert len(out.splitlines()) == 2 and "--help" in out


def test_an_error_of_ours_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    said = f"there is no log at {tmp_path / 'none.db'}; `agl store` begins one, and every command takes another's address"
    code, out = invoke("replay", str(tmp_path / "none.db"))
    assert (code, out) == (1, f"agl: {said}\n")
    code, out = invoke("replay", str(tmp_path / "none.db"), "--json")
    assert code == 1 and json.loads(out) == {"error": "invalid_input", "message": said}
    for command in (["replay", str(tmp_path)], ["log", "check", "--log", str(tmp_path)]):
        code, out = invoke(*command)
        assert (code, out) == (1, f"agl: {tmp_path} is a folder; a log is a file in it, such as {tmp_path / 'log.db'}\n")


def test_ctrl_c_is_one_line_and_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(app.agl, "main", pressed)
    assert invoke("log") == (130, "Interrupted.\n")


def test_an_error_over_several_lines_is_told_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AgentLightningError("first\n  second")

    monkeypatch.setattr(app.agl, "main", fail)
    assert invoke("log") == (1, "agl: first second\n")


def test_a_reader_that_has_seen_enough_ends_it_without_a_word(tmp_path: Path) -> None:
    from .support import make_log

    make_log(tmp_path / "log.db")
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-m", "agentlightning", "log", "grep", ".", "--log", "log.db"]
        run = subprocess.run(command, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writer)
    assert (run.returncode, run.stderr) == (1, "")


@pytest.mark.parametrize("args", [[], ["log"]])
def test_a_group_without_a_command_shows_its_help_in_lines(args: list[str]) -> None:
    code, out = invoke(*args)
    assert code == app.USAGE
    assert out.startswith(f"Usage: {' '.join(['agl', *args])} ") and "\nCommands:\n" in out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
def test_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    from .support import make_log

    make_log(tmp_path / "log.db")
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "agentlightning", "log", "tail", "--log", "log.db"]
        run = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (run.returncode, run.stderr) == (1, "agl: No space left on device\n")


@pytest.mark.parametrize(("value", "coloured"), [(None, True), ("", True), ("1", False)])
def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch, value: str | None, coloured: bool) -> None:
    if value is None:
        monkeypatch.delenv("NO_COLOR", raising=False)
    else:
        monkeypatch.setenv("NO_COLOR", value)
    seen: dict[str, object] = {}

    def main(**options: object) -> None:
        seen.update(options)

    monkeypatch.setattr(app.agl, "main", main)
    assert app.run([]) == 0
    assert seen["color"] is (None if coloured else False)


def test_commands_are_click_commands() -> None:
    assert isinstance(app.agl, click.Group)


@pytest.mark.parametrize("name", sorted(app.GONE))
def test_a_command_that_is_gone_says_what_to_do_instead(name: str) -> None:
    code, out = invoke(name, "--port", "4748")
    assert code == app.USAGE and app.GONE[name] in out


@pytest.mark.parametrize("group", ["dead", "kafka", "log"])
def test_the_lines_about_sub_commands_are_whole_sentences(group: str) -> None:
    code, out = invoke(group, "--help")
    assert code == 0 and "..." not in out.partition("Commands:")[2]


def test_a_retry_begins_no_log_where_there_is_none(tmp_path: Path) -> None:
    code, out = invoke("dead", "retry", "x", "--log", str(tmp_path / "gone" / "none.db"))
    assert code == app.FAILED and "there is no log at" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command", [("ps", "--log"), ("show", "latest", "--log"), ("replay",), ("store", "--port", "0", "--log")]
)
def test_what_is_no_log_is_said_in_one_line(command: tuple[str, ...], tmp_path: Path) -> None:
    notes, folder, secret = tmp_path / "notes.txt", tmp_path / "folder", tmp_path / "secret.db"
    notes.write_text("milk, bread", encoding="utf-8")
    folder.mkdir()
    secret.touch(mode=0o000)
    for path, words in ((notes, "text file and no event log"), (folder, "is a folder"), (secret, "may not be read by")):
        if path is secret and os.access(secret, os.R_OK):
            continue  # root reads everything
        code, out = invoke(*command, str(path))
        assert code == 1 and words in out and len(out.splitlines()) == 1, out
    assert notes.read_text(encoding="utf-8") == "milk, bread" and list(folder.iterdir()) == []


async def test_a_served_store_whose_log_became_another_one_ends_with_a_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = EventLogStore(MemoryLog(), foreign_writers=True)
    threading.Timer(0.5, _change, [store]).start()
    with pytest.raises(HistoryChanged, match="restart"):
        server = LightningStoreServer(store, "127.0.0.1", 0, launch_mode="asyncio")
        await asyncio.wait_for(_serve(store, server, 0.0, True, ThreadingEvent()), 20)
    store.close()

    def ended(**_: object) -> None:
        raise HistoryChanged("the log is another one")

    monkeypatch.setattr(app.agl, "main", ended)
    assert app.run(["store"]) == app.HISTORY_CHANGED == 5
    assert capsys.readouterr().err.endswith("agl: the log is another one\n")


def _change(store: EventLogStore) -> None:
    node = store.engine.node
    with node.lock:
        node.history_changed("the test says so")
