"""The command line: `agl` and its sub-commands, each of which is loaded only when it is called."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `agl` with `argv` (the process's own arguments when None) and return its exit code.

    0: done. 1: it failed, said in one line. 2: wrong usage. 130: ended by Ctrl+C. Never raises what a user can cause.
    """
    from .app import run

    return run(argv)
