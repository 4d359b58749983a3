"""The demo's other processes: started with a lifeline, watched, and ended with the demo."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.errors import AgentLightningError

_GRACE_SECONDS = 5.0


class ChildFailed(AgentLightningError):
    """A process that the demo needs ended by itself; the message ends with the last line that it wrote."""

    code = "child_failed"

    @property
    def headline(self) -> str:
        """What happened, without the last lines."""
        return str(self).split(";", 1)[0]


class Child:
    """One Python module in a process of its own, in its own process group: Ctrl+C reaches the demo alone.

    Its standard input is the lifeline (lifeline.py); what it writes goes into `<folder>/<name>.log`.
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process, log_file: Path) -> None:
        self.name = name
        self._process = process
        self._log_file = log_file

    @classmethod
    async def start(
        cls,
        name: str,
        folder: Path,
        module: str,
        *arguments: str,
        answers: bool = False,
        environment: Mapping[str, str],
    ) -> Child:
        """Starts `python -m module arguments`. `answers`: its standard output is ours to read, one line at a time."""
        log_file = folder / f"{name}.log"
        own_group: dict[str, Any] = (
            {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
            if sys.platform == "win32"
            else {"start_new_session": True}
        )
        with log_file.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                *arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if answers else log,
                stderr=log,
                env={**os.environ, **environment},
                **own_group,
            )
        return cls(name, process, log_file)

    @property
    def pid(self) -> int:
        """The operating system's number of the process."""
        return self._process.pid

    async def answer(self) -> str:
        """The next line of its standard output. Raises ChildFailed where it ends without one."""
        assert self._process.stdout is not None
        line = (await self._process.stdout.readline()).decode().strip()
        if not line:
            await self._process.wait()
            raise self._failure()
        return line

    async def ended(self) -> ChildFailed:
        """Waits until the process ends, which it should not do by itself; returns the error that says so."""
        await self._process.wait()
        return self._failure()

    async def stop(self) -> None:
        """Asks the process to end, and after a grace makes it. Idempotent."""
        if self._process.returncode is not None:
            return
        try:
            self._process.terminate()
            await asyncio.wait_for(self._process.wait(), _GRACE_SECONDS)
        except ProcessLookupError:
            pass
        except asyncio.TimeoutError:
            self._process.kill()
            await self._process.wait()

    def _failure(self) -> ChildFailed:
        lines = self._log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        tail = f"; its last line: {lines[-1].strip()}" if lines else ""
        return ChildFailed(f"{self.name} ended with code {self._process.returncode} (see {self._log_file}){tail}")
