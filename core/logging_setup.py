"""Log output: plain lines with the full time by default, coloured ones where a person watches."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .errors import InvalidInput, printable
from .log.private_files import make_folder, make_private

__all__ = ["PLAIN_FORMAT", "configure_logger", "setup_logging", "setup_module_logging"]

PLAIN_FORMAT = "%(asctime)s [%(levelname)s] (Process-%(process)d %(name)s)   %(message)s"
"""Process and logger in every line; the time is logging's default, to the millisecond."""

_BASE = "agentlightning"
_OURS = "_agentlightning_handler"


class HarmlessFormatter(logging.Formatter):
    """Escapes what a terminal would obey (`printable`), and indents further lines of a message, so that none passes for a
    record of its own.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Called by logging, which keeps the traceback's text on the record: that of another handler is not escaped."""
        kept, record.exc_text = record.exc_text, None
        try:
            return super().format(record)
        finally:
            record.exc_text = kept

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Called by logging."""
        record.message = _harmless(record.message, "\n    ")
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        """Called by logging; a traceback ends with what the exception says."""
        return _harmless(super().formatException(ei), "\n")


def _harmless(text: str, line_end: str) -> str:
    return text if text.isprintable() else line_end.join(printable(line) for line in text.split("\n"))


def setup_logging(
    level: int | str = "INFO",
    *,
    console: bool = True,
    color: bool | dict[str, Any] = True,
    propagate: bool = False,
    disable_existing_loggers: bool = False,
    capture_warnings: bool = False,
    submodule_levels: Mapping[str, int | str] | None = None,
    extra_handlers: Iterable[logging.Handler] | None = None,
    formatter: logging.Formatter | None = None,
    apply_to: Iterable[str] | None = None,
    files: str | Mapping[str, str] | None = None,
) -> None:
    """Configure the logger ``agentlightning``; the root logger is left alone.

    Calling it again replaces what it set up before, except handlers that others added.

    Args:
        level: a name in any case, or a number. ValueError for an unknown one.
        console: write to standard error.
        color: coloured output, where standard error is a terminal; a dict holds further
            arguments of rich's handler. Everywhere else lines are plain.
        propagate: also hand records to the root logger.
        disable_existing_loggers: silence every other logger that exists.
        capture_warnings: turn ``warnings.warn`` into log lines.
        submodule_levels: logger name -> level.
        extra_handlers: added to the console; they keep their own formatter if they have one.
        formatter: replaces the plain format.
        apply_to: other loggers that get the same handlers and level, and no longer propagate.
        files: one path for everything, or logger name -> path. Folders are made.
    """
    number = _level(level)
    children = {name: _level(wanted) for name, wanted in (submodule_levels or {}).items()}
    if disable_existing_loggers:
        _disable_others()
    formatter = formatter or HarmlessFormatter(PLAIN_FORMAT)
    handlers = _handlers(console, color, formatter, extra_handlers or ())
    paths = {_BASE: files} if isinstance(files, str) else dict(files or {})
    base = logging.getLogger(_BASE)
    _install(base, number, handlers, propagate)
    for name in apply_to or ():
        _install(logging.getLogger(name), number, handlers, False)
    for name, path in paths.items():
        _add_file(logging.getLogger(name), path, formatter)
    for name, wanted in children.items():
        logging.getLogger(name).setLevel(wanted)
        if wanted < number:
            base.warning("Logger %s says more (%s) than %s (%s)", name, wanted, _BASE, number)
    logging.captureWarnings(capture_warnings)


def setup_module_logging(
    level: int | str = "INFO",
    *,
    name: str = _BASE,
    console: bool = True,
    color: bool | dict[str, Any] = True,
    propagate: bool = False,
    disable_existing_loggers: bool = False,
) -> logging.Logger:
    """Configure one logger as :func:`setup_logging` does, and return it."""
    number = _level(level)
    if disable_existing_loggers:
        _disable_others()
    logger = logging.getLogger(name)
    _install(logger, number, _handlers(console, color, HarmlessFormatter(PLAIN_FORMAT), ()), propagate)
    return logger


def configure_logger(level: int | str = logging.INFO, name: str = _BASE) -> logging.Logger:
    """Deprecated: the earliest form of :func:`setup_module_logging`, without colour."""
    warnings.warn(
        "configure_logger is deprecated: use setup_logging or setup_module_logging",
        DeprecationWarning,
        stacklevel=2,
    )
    return setup_module_logging(level, name=name, color=False)


def _level(level: int | str) -> int:
    if isinstance(level, int):
        return level
    unregistered = logging.Logger(_BASE)
    try:
        unregistered.setLevel(level.strip().upper())
    except ValueError:
        raise InvalidInput(f"Unknown log level: {level!r}") from None
    return unregistered.level


def _handlers(
    console: bool,
    color: bool | dict[str, Any],
    formatter: logging.Formatter,
    extra: Iterable[logging.Handler],
) -> list[logging.Handler]:
    handlers: list[logging.Handler] = []
    if console:
        handlers.append(_console(color, formatter))
    for handler in extra:
        if handler.formatter is None:
            handler.setFormatter(formatter)
        handlers.append(handler)
    return handlers


def _console(color: bool | dict[str, Any], formatter: logging.Formatter) -> logging.Handler:
    if color is not False and sys.stderr.isatty():
        try:
            from rich.console import Console
            from rich.logging import RichHandler
        except ImportError:
            pass
        else:
            options: dict[str, Any] = {"console": Console(stderr=True), "show_path": False}
            options.update(color if isinstance(color, dict) else {})
            rich = RichHandler(**options)
            rich.setFormatter(HarmlessFormatter("%(message)s"))
            return rich
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    return handler


def _install(logger: logging.Logger, level: int, handlers: Iterable[logging.Handler], propagate: bool) -> None:
    for handler in [handler for handler in logger.handlers if getattr(handler, _OURS, False)]:
        logger.removeHandler(handler)
        if isinstance(handler, logging.FileHandler):
            handler.close()
    for handler in handlers:
        setattr(handler, _OURS, True)
        logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = propagate
    logger.disabled = False


def _add_file(logger: logging.Logger, path: str, formatter: logging.Formatter) -> None:
    target = Path(path).absolute()
    for handler in [h for h in logger.handlers if isinstance(h, logging.FileHandler)]:
        if Path(handler.baseFilename) == target:
            return
    make_folder(target.parent)
    if not target.exists():  # a pipe or a device stays what it is
        make_private(target)
    handler = logging.FileHandler(target, encoding="utf-8")
    handler.setFormatter(formatter)
    setattr(handler, _OURS, True)
    logger.addHandler(handler)


def _disable_others() -> None:
    for name, logger in logging.Logger.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name != _BASE and not name.startswith(_BASE + "."):
            logger.disabled = True
