"""Writes the golden logs of a release: run once per release by hand, and it refuses to touch what is there.

`python tests/golden/make.py NAME`. A log is a file of records, each a 4-byte big-endian length and the value; beside it
lies a JSON file with the number of records, the fingerprint after the last one, and the SHA-256 of the dumped state.
`python tests/golden/make.py NAME runs` writes the log that has events of runs among the others; its JSON file holds what
the projection of runs makes of it too.
"""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

FOLDER = Path(__file__).resolve().parent
LOGS = {"calm": (11, 400, False), "crowded": (12, 700, False), "hostile": (51, 500, True)}
"""Name of the log: seed, steps, and whether it holds flipped bits."""
RUN_FIELDS = (
    "run_id", "opened_at", "opened_time", "name", "algorithm", "agent", "parameters", "seed", "resources_id",
    "resources_version", "train_size", "val_size", "closed_at", "closed_time", "outcome", "best_resources_id",
    "best_resources_version", "summary", "rollout_ids", "decisions", "opened_offset",
)  # fmt: skip
"""What a run consists of since the first release that has runs; a later one may add to it."""


def main(release: str) -> None:
    from strategies import World  # type: ignore[import-not-found]

    for name, (seed, steps, hostile) in LOGS.items():
        path = fresh(release, name)
        write(path, World(seed, hostile=hostile).run(steps), {})


def runs(release: str) -> None:
    """Several runs, opened, deciding and closed side by side, some of their records twice, one of a later release."""
    from strategies import BASE_US, World  # type: ignore[import-not-found]

    from agentlightning.core.events import codec, payload
    from agentlightning.core.events.run_events import RUN_ID, RunRecord
    from agentlightning.core.events.schema import NewRollout
    from agentlightning.core.fold import commands

    path = fresh(release, "runs")
    world = World(77)
    rng, state, run_ids = world.rng, world.state, [f"run-{number}" for number in range(6)]

    def user(value: object) -> msgspec.Raw:
        return payload.inline(payload.encode(value))

    def say(event: object) -> None:
        world.count += 1
        time_us = BASE_US + world.count
        basis = state.position - 1, state.fingerprint
        record = RunRecord(f"{world.count:032x}", time_us, "n1", *basis, event, noncritical=True)  # type: ignore[arg-type]
        value = codec.encode(record)
        for _ in range(rng.choice((1, 1, 1, 2))):
            world.append(value)

    for number in range(400):
        run_id = rng.choice(run_ids)
        kind = rng.randrange(8)
        if kind == 0:
            say(commands.open_run(run_id, name=f"fit {run_id}", seed=number, parameters=user({"lr": number / 7})))
        elif kind <= 2:
            content = user({"rollout_ids": rng.sample(list(state.rollouts), min(2, len(state.rollouts)))})
            say(commands.decision(run_id, kind="rollouts.enqueued", digest=f"{number:016x}", content=content, based_on=number))
        elif kind == 3 and number > 200:
            say(commands.close_run(run_id, outcome="succeeded", summary=user({"mean": 0.5}), resources_id="rs-a"))
        elif kind == 4:
            name = commands.rollout_id_of(f"{world.count + 1:032x}")
            new = NewRollout(name, msgspec.Raw(b"1"), metadata=user({RUN_ID: run_id}))
            world.append(world.proposal(commands.enqueue([new])))
        else:
            world.step()
    later = codec.encode(RunRecord("f" * 32, BASE_US, "n1", 0, b"", commands.close_run("run-0", outcome="x"), noncritical=True))
    world.append(later.replace(b"run.closed", b"run.cloned"))
    write(path, world, {"runs_sha256": runs_print(world.values)})


def runs_print(values: list[bytes]) -> str:
    """SHA-256 of what the projection of runs makes of these records."""
    from agentlightning.core.log.open_log import open_log
    from agentlightning.projections.history.run_index import RunBook

    book = RunBook(open_log("memory://"), lambda reference: b"null")
    for position, value in enumerate(values):
        book.read(position, value, position)
    rows = [{name: msgspec.to_builtins(run)[name] for name in RUN_FIELDS} for run in book.runs.values()]
    return sha256(msgspec.json.encode(rows)).hexdigest()


def fresh(release: str, name: str) -> Path:
    path = FOLDER / f"{release}-{name}.log"
    if path.exists():
        sys.exit(f"{path} exists; a golden log is never written again")
    return path


def write(path: Path, world: Any, more: dict[str, Any]) -> None:
    from agentlightning.core.fold.state import dump

    path.write_bytes(b"".join(len(value).to_bytes(4, "big") + value for value in world.values))
    expected = {
        "records": len(world.values),
        "position": world.state.position,
        "fingerprint": world.state.fingerprint.hex(),
        "state_sha256": sha256(dump(world.state)).hexdigest(),
        "halted": world.state.halted is not None,
        **more,
    }
    path.with_suffix(".json").write_text(json.dumps(expected, indent=1) + "\n", encoding="ascii")
    print(path.name, expected)


if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER.parent / "core" / "fold"))
    (runs if sys.argv[2:] == ["runs"] else main)(sys.argv[1])
