"""The topics of a log: what each carries, how it is keyed, and what may be forgotten.

| topic     | key              | carries                                                                   |
|-----------|------------------|---------------------------------------------------------------------------|
| control   | none             | every proposal: rollouts, attempts, resources, workers, time; never pruned |
| spans     | rollout_id       | spans and reservations of sequence ids, one record each                   |
| liveness  | incarnation      | heartbeats and machine stats; only the newest of a key is kept            |
| blobs     | content hash     | payloads that are too large for a record, referred to by hash and size    |
| snapshots | position, writer, chunk | folded states and their manifests; old ones are dropped            |
| dead      | source           | poison records and rollouts that were given up, with the reason           |
| tasks     | rollout_id       | "rollout X, attempt n is claimable"; derived from control where no broker is |
| facts     | rollout_id       | what the fold accepted, for subscribers; derived in the same way           |
"""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

CONTROL = "control"
SPANS = "spans"
LIVENESS = "liveness"
BLOBS = "blobs"
SNAPSHOTS = "snapshots"
DEAD = "dead"
TASKS = "tasks"
FACTS = "facts"

LEADER_GROUP = "timekeeper"
"""The consumer group that deals the partitions of `control` among nodes, which says who leads. It reads and commits nothing."""


@dataclass(frozen=True)
class Topic:
    """How one topic is kept.

    `compacted`: only the newest record of a key has to survive. `by_key`: `Log.read_key` is asked for it, so an
    embedded log indexes the key. `durable`: an acknowledgement means that the record survives a power cut.
    `derived`: not stored by an embedded log; computed from `control` while it is read.
    """

    name: str
    compacted: bool = False
    by_key: bool = False
    durable: bool = True
    derived: bool = False


TOPICS: dict[str, Topic] = {
    topic.name: topic
    for topic in (
        Topic(CONTROL),
        Topic(SPANS, by_key=True),
        Topic(LIVENESS, compacted=True, by_key=True, durable=False),
        Topic(BLOBS, compacted=True, by_key=True),
        Topic(SNAPSHOTS, compacted=True, by_key=True),
        Topic(DEAD, by_key=True),
        Topic(TASKS, derived=True),
        Topic(FACTS, derived=True),
    )
}

STORED: tuple[str, ...] = tuple(name for name, topic in TOPICS.items() if not topic.derived)


def partition_of(key: str, partitions: int) -> int:
    """Return the partition (0-based) of `key` among `partitions`, for every client and for ever.

    CRC-32 of the UTF-8 key, modulo the count. It is ours and passed to brokers explicitly: clients' own partitioners
    differ from each other. Lone surrogates are escaped first, so every str has a partition.
    """
    return crc32(key.encode("utf-8", "backslashreplace")) % partitions
