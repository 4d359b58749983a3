"""Log output: the lines of the tutorial, colours only for a person who watches."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentlightning.core import logging_setup as loglines
from agentlightning.core.logging_setup import HarmlessFormatter, configure_logger, setup_logging, setup_module_logging

LINE = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} \[INFO\] \(Process-\d+ agentlightning\.store\.server\)   hello\n"
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Leave every logger as it was found."""
    loggers = [logging.getLogger(name) for name in ("agentlightning", "agentlightning.child", "other", "foreign")]
    before = [(logger, logger.level, list(logger.handlers), logger.propagate, logger.disabled) for logger in loggers]
    disabled = {n: x.disabled for n, x in logging.Logger.manager.loggerDict.items() if isinstance(x, logging.Logger)}
    yield
    for logger, level, handlers, propagate, off in before:
        for handler in logger.handlers:
            if handler not in handlers:
                handler.close()
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate, logger.disabled = propagate, off
    for name, off in disabled.items():
        logging.getLogger(name).disabled = off
    logging.captureWarnings(False)


def test_lines_have_the_form_that_the_tutorial_shows(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging()
    logging.getLogger("agentlightning.store.server").info("hello")
    assert LINE.fullmatch(capsys.readouterr().err)


def test_set_up_twice_every_line_comes_once(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging()
    setup_logging("DEBUG")
    logging.getLogger("agentlightning").debug("once")
    assert capsys.readouterr().err.count("once") == 1


def test_what_others_added_stays() -> None:
    theirs = logging.NullHandler()
    logging.getLogger("agentlightning").addHandler(theirs)
    setup_logging()
    assert theirs in logging.getLogger("agentlightning").handlers


def test_colours_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.logging import RichHandler

    def handlers(color: bool, stream: io.StringIO) -> list[type[logging.Handler]]:
        monkeypatch.setattr(sys, "stderr", stream)
        logger = setup_module_logging(name="other", color=color)
        return [type(handler) for handler in logger.handlers]

    assert handlers(True, Terminal()) == [RichHandler]
    assert handlers(False, Terminal()) == [logging.StreamHandler]
    assert handlers(True, io.StringIO()) == [logging.StreamHandler]


def test_rich_is_not_imported_without_a_terminal() -> None:
    code = (
        "import sys; from agentlightning.core.logging_setup import setup_logging as s; s(); sys.exit('rich' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, stderr=subprocess.DEVNULL)


def test_files_get_the_lines_of_their_logger_in_folders_that_are_made(tmp_path: Path) -> None:
    whole, part = tmp_path / "a" / "all.log", tmp_path / "b" / "child.log"
    setup_logging(console=False, files={"agentlightning": str(whole), "agentlightning.child": str(part)})
    setup_logging(console=False, files={"agentlightning": str(whole), "agentlightning.child": str(part)})
    logging.getLogger("agentlightning").info("one")
    logging.getLogger("agentlightning.child").info("two")
    assert [line.split()[-1] for line in whole.read_text().splitlines()] == ["one", "two"]
    assert [line.split()[-1] for line in part.read_text().splitlines()] == ["two"]
    setup_logging(console=False, files=str(whole))


def test_other_loggers_and_levels_are_set_where_asked(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("info", submodule_levels={"agentlightning.child": "DEBUG"}, apply_to=["other"])
    logging.getLogger("agentlightning.child").debug("deep")
    logging.getLogger("other").info("beside")
    logging.getLogger("other").debug("hidden")
    written = capsys.readouterr().err
    assert [word in written for word in ("says more", "deep", "beside", "hidden")] == [True, True, True, False]
    assert logging.getLogger("other").propagate is False


def test_extra_handlers_and_formatters_are_used() -> None:
    stream = io.StringIO()
    setup_logging(
        console=False,
        extra_handlers=[logging.StreamHandler(stream)],
        formatter=logging.Formatter("<%(message)s>"),
    )
    logging.getLogger("agentlightning").info("hi")
    assert stream.getvalue() == "<hi>\n"


def test_others_are_silenced_and_warnings_caught_only_when_asked() -> None:
    foreign = logging.getLogger("foreign")
    setup_logging()
    assert not foreign.disabled
    setup_logging(disable_existing_loggers=True, capture_warnings=True)
    assert foreign.disabled and not logging.getLogger("agentlightning").disabled
    assert warnings.showwarning.__module__ == "logging"


@pytest.mark.parametrize("level", ["LOUD", ""])
def test_an_unknown_level_is_refused_before_anything_changes(level: str) -> None:
    before = list(logging.getLogger("agentlightning").handlers)
    with pytest.raises(ValueError, match="Unknown log level"):
        setup_logging(level)
    with pytest.raises(ValueError):
        setup_logging(submodule_levels={"agentlightning.child": level})
    assert logging.getLogger("agentlightning").handlers == before


def test_the_earliest_form_still_works_and_says_that_it_is_old() -> None:
    with pytest.warns(DeprecationWarning, match="setup_logging"):
        logger = configure_logger(logging.WARNING, name="other")
    assert (logger.name, logger.level) == ("other", logging.WARNING)


def test_the_plain_format_is_public() -> None:
    assert loglines.PLAIN_FORMAT == "%(asctime)s [%(levelname)s] (Process-%(process)d %(name)s)   %(message)s"


def test_what_a_terminal_would_obey_is_escaped_and_no_line_passes_for_a_record(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging("INFO")
    try:
        raise ValueError("\x1b[2J\u202e")
    except ValueError:
        logging.getLogger("agentlightning").exception("one\x1b[31m\n2026 [INFO] two\ttab")
    text = capsys.readouterr().err
    assert all(line.isprintable() for line in text.splitlines())
    assert "one\\x1b[31m\n    2026 [INFO] two" in text and "ValueError: \\x1b[2J\\u202e" in text


def test_a_traceback_that_another_handler_has_formatted_is_escaped_too() -> None:
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        record = logging.LogRecord("agentlightning", logging.ERROR, __file__, 1, "failed", (), sys.exc_info())
    raw = logging.Formatter().format(record)
    assert raw.endswith("\x1b[2J") and HarmlessFormatter().format(record).endswith("\\x1b[2J")
    assert logging.Formatter().format(record) == raw, "and the record is as it was"
