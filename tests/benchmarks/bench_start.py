"""How long starts take: the import, the commands, a fit until its first rollout ends, and the processor time of a worker."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .measured import note
from .table import show

ROUNDS = 5
WORKERS = 4
FIT_SECONDS = 120
_CLI = "import sys; from agentlightning.cli import main; sys.exit(main(sys.argv[1:]))"
FIT = """
import json, os, time
BEGAN = time.time()
import agentlightning as agl

@agl.rollout
def agent(task, prompt_template):
    with open("begun", "a") as out:
        out.write(json.dumps([os.getpid(), time.process_time(), time.time()]) + "\\n")
    return 1.0

@agl.algo
async def algorithm(*, store, train_dataset, val_dataset=None):
    await store.add_resources({"prompt_template": agl.PromptTemplate(template="{question}", engine="f-string")})
    made = [await store.enqueue_rollout(task) for task in train_dataset]
    while not any(one.status == "succeeded" for one in await store.query_rollouts()):
        await asyncio.sleep(0.005)
    first = time.time() - BEGAN
    await store.wait_for_rollouts(rollout_ids=[one.rollout_id for one in made])
    with open("first", "w") as out:
        json.dump([first, time.time() - BEGAN], out)

if __name__ == "__main__":
    import asyncio
    trainer = agl.Trainer(algorithm=algorithm, n_runners=%d, progress=False)
    trainer.fit(agent, ["a"] * %d)
    used = os.times()
    with open("end", "w") as out:
        json.dump([time.time() - BEGAN, used.user + used.system, used.children_user + used.children_system], out)
"""


def _run(*command: str) -> tuple[float, float]:
    """Wall and processor seconds of a command."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, *command], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - began, used


def _rows() -> list[list[object]]:
    commands = {
        "python -c pass": ("-c", "pass"),
        "import agentlightning": ("-c", "import agentlightning"),
        "agl --version": ("-c", _CLI, "--version"),
        "agl --help": ("-c", _CLI, "--help"),
        "agl runner --help": ("-c", _CLI, "runner", "--help"),
    }
    rows: list[list[object]] = []
    for name, command in commands.items():
        walls, used = zip(*(_run(*command) for _ in range(ROUNDS)))
        rows.append([name, f"{min(walls) * 1e3:.0f}", f"{min(used) * 1e3:.0f}"])
    return rows


def _fit() -> list[float]:
    """Seconds until the first rollout ended, all had, and the fit; processor seconds of a worker, the parent, all workers."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "program.py"
        program.write_text(FIT % (WORKERS, WORKERS * 4))
        run = [sys.executable, str(program)]
        subprocess.run(run, cwd=folder, check=True, timeout=FIT_SECONDS, capture_output=True)
        begun: dict[int, float] = {}
        for line in (Path(folder) / "begun").read_text().splitlines():
            pid, used, _ = json.loads(line)
            begun.setdefault(pid, used)
        first, done = json.loads((Path(folder) / "first").read_text())
        end, own, children = json.loads((Path(folder) / "end").read_text())
        return [first, done, end, min(begun.values()), own, children]


def run() -> None:
    """Print the tables: the best of several, and for a fit the middle one too."""
    show(f"Commands, the best of {ROUNDS}", ("what", "wall ms", "processor ms"), _rows())
    measured = list(zip(*(_fit() for _ in range(ROUNDS))))
    names = ("first rollout ended", "all rollouts ended", "end of the fit", "a worker until its first rollout, processor",
             "the fit's own process, processor", "all workers, processor")  # fmt: skip
    rows = [[name, f"{min(one):.2f}", f"{statistics.median(one):.2f}"] for name, one in zip(names, measured)]
    show(f"A fit with {WORKERS} worker processes, seconds", ("what", "best", "median"), rows)
    note("start", first_rollout_s=min(measured[0]), worker_cpu_s=min(measured[3]))
