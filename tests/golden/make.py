"""Writes the golden logs of a release: run once per release by hand, and it refuses to touch what is there.

`python tests/golden/make.py NAME`. A log is a file of records, each a 4-byte big-endian length and the value; beside it
lies a JSON file with the number of records, the fingerprint after the last one, and the SHA-256 of the dumped state.
"""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
LOGS = {"calm": (11, 400, False), "crowded": (12, 700, False), "hostile": (58, 500, True)}
"""Name of the log: seed, steps, and whether it holds flipped bits."""


def main(release: str) -> None:
    sys.path.insert(0, str(FOLDER.parent / "core"))
    from strategies import World  # type: ignore[import-not-found]

    from agentlightning.core.state import dump

    for name, (seed, steps, hostile) in LOGS.items():
        path = FOLDER / f"{release}-{name}.log"
        if path.exists():
            sys.exit(f"{path} exists; a golden log is never written again")
        world = World(seed, hostile=hostile).run(steps)
        path.write_bytes(b"".join(len(value).to_bytes(4, "big") + value for value in world.values))
        expected = {
            "records": len(world.values),
            "position": world.state.position,
            "fingerprint": world.state.fingerprint.hex(),
            "state_sha256": sha256(dump(world.state)).hexdigest(),
            "halted": world.state.halted is not None,
        }
        path.with_suffix(".json").write_text(json.dumps(expected, indent=1) + "\n", encoding="ascii")
        print(path.name, expected)


if __name__ == "__main__":
    main(sys.argv[1])
