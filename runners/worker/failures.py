"""How a failed attempt is told: one line in the log, words for an exception that has none, and where its traceback is."""

from __future__ import annotations

import logging
import sysconfig
import traceback
from pathlib import Path

from ...core.errors import message_of, printable

__all__ = ["error_text", "say_failure"]

_log = logging.getLogger(__name__)
LONGEST_LINE = 300
"""Characters of an error in a line of the log."""
_ROOMS = tuple(
    str(Path(__file__).parents[2] / room)
    for room in ("algorithms", "cli", "compat", "core", "projections", "rest", "runners")
)
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def error_text(error: BaseException) -> str:
    """Type and message; the type alone where there is no message."""
    message = message_of(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def say_failure(error: BaseException, prefix: str, where: str) -> None:
    """One line at ERROR, with the line of the agent's code that failed; the traceback at DEBUG.

    A run has hundreds of attempts, and many fail. ``where`` says how to see the whole traceback of this one.
    """
    place = _place(error) or (_place(error.__cause__) if error.__cause__ is not None else "")
    _log.error("%s Exception during rollout. %s%s. %s", prefix, _line(error_text(error)), place, where)
    _log.debug("%s The traceback:", prefix, exc_info=error)


def _line(text: str) -> str:
    """The first line of the text, without what a terminal would obey or could not show."""
    first, *more = text.strip().splitlines() or [""]
    shown = printable(first[:LONGEST_LINE])
    return f"{shown} ..." if more or len(first) > LONGEST_LINE else shown.removesuffix(".")


def _place(error: BaseException) -> str:
    """The last line of code on the way to the error that is neither ours nor a library's; empty without one."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*_ROOMS, *_LIBRARIES, "<frozen"))]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
