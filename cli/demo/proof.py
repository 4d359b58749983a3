"""The proof: a process that never saw the run folds its log from the first event and says what it found.

`python -m agentlightning.cli.demo.proof URL` prints one JSON object. It opens the file read-only, takes no snapshot and
no index, and asks nobody: what it prints follows from the records alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from ...core.errors import AgentLightningError
from ...core.log.interface import Log, Record
from ...core.log.open_log import open_log
from ...core.log.topics import SPANS
from ...core.spans.readers import find_final_reward
from ...projections.history.replay import replay
from ...projections.spans.blobs import Blobs
from ...projections.spans.span_log import SpanBook

_BATCH = 4096


@dataclass(frozen=True)
class Evidence:
    """What one reader knows of a log.

    `position` control events make `fingerprint` (hex). `rewards`: by rollout id, those that the spans hold. `spans`: the
    number of records beside the control events; None where nobody counted.
    """

    position: int
    fingerprint: str
    rewards: Mapping[str, float]
    spans: int | None = None


def fold_from_first(log: Log) -> Evidence:
    """Folds every control record of the log and reads every reward. Raises LogCorrupt where a record is damaged."""
    state, _ = replay(log)
    if state.halted is not None:
        raise AgentLightningError(state.halted)
    rollouts = [record.key for p in range(log.partitions(SPANS)) for record in _records(log, SPANS, p)]
    book = SpanBook(log, Blobs(log, sys.maxsize))
    rewards = {rollout_id: find_final_reward(book.read(rollout_id)) for rollout_id in dict.fromkeys(rollouts)}
    return Evidence(
        position=state.position,
        fingerprint=state.fingerprint.hex(),
        rewards={rollout_id: reward for rollout_id, reward in rewards.items() if reward is not None},
        spans=len(rollouts),
    )


def difference(live: Evidence, folded: Evidence) -> str:
    """What the second process found otherwise than the live store, as half a sentence; empty where nothing."""
    if (live.position, live.fingerprint) != (folded.position, folded.fingerprint):
        return (
            f"the live store had fingerprint {live.fingerprint} after {live.position} control events, "
            f"the file gives {folded.fingerprint} after {folded.position}"
        )
    for rollout_id, reward in live.rewards.items():
        if folded.rewards.get(rollout_id) != reward:
            return f"the reward of {rollout_id} was {reward}, the file gives {folded.rewards.get(rollout_id)}"
    return ""


def _records(log: Log, topic: str, partition: int) -> Iterator[Record]:
    offset = 0
    while records := log.read(topic, partition, offset, _BATCH, headers=False):
        yield from records
        offset = records[-1].offset + 1


def main(argv: list[str] | None = None) -> int:
    """Entry point of the process: 0 with the evidence on standard output, 1 with a sentence on standard error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    args = parser.parse_args(argv)
    try:
        with open_log(args.url, readonly=True) as log:
            print(json.dumps(asdict(fold_from_first(log))))
    except AgentLightningError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
