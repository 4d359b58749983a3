"""Snapshots of the folded state: written in chunks with the manifest last, read back only if every byte fits.

A chunk's key is namespace, position, writer and number, so two writers never overwrite each other's chunks. The manifest
names the chunks with their hashes, the fingerprint, and the log offset to go on from. In doubt the snapshot before is
taken, then the whole log.
"""

from __future__ import annotations

import logging
import zlib
from dataclasses import dataclass
from hashlib import blake2b

import msgspec

from ..core.errors import LogError
from ..core.log import Ack, Log, NewRecord
from ..core.state import FOLD_VERSION, State, dump, load
from ..core.topics import SNAPSHOTS, partition_of

logger = logging.getLogger(__name__)

CHUNK_BYTES = 900_000
KEPT = 2
"""How many manifests a namespace keeps: the newest and the one before."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot consists of. `offset`: the control offset of the first record that is not in it."""

    namespace: str
    log_id: str
    fold_version: int
    position: int
    offset: int
    fingerprint: bytes
    chunks: list[str]
    hashes: list[bytes]


@dataclass
class Restored:
    """A state read back from a snapshot."""

    state: State
    next_offset: int


def write_snapshot(
    log: Log, namespace: str, writer: str, image: bytes, state_at: tuple[int, int, bytes], turn: int = 0
) -> None:
    """Append the chunks of `image` and then the manifest, without waiting for the log.

    `state_at` is (position, next control offset, fingerprint) of the image, `turn` counts this writer's snapshots: the
    manifests take turns in two slots, so the one before survives a crash. A failure is logged: a snapshot saves time,
    nothing depends on it.
    """
    position, offset, fingerprint = state_at
    partition = partition_of(namespace, log.partitions(SNAPSHOTS))
    packed = zlib.compress(image, 1)
    pieces = [packed[at : at + CHUNK_BYTES] for at in range(0, len(packed), CHUNK_BYTES)]
    keys = [f"{namespace}/{position}/{writer}/{number}" for number in range(len(pieces))]

    def done(result: Ack | LogError) -> None:
        if isinstance(result, LogError):
            logger.warning("The snapshot at position %d was not written: %s", position, result)

    for key, piece in zip(keys, pieces):
        log.append(SNAPSHOTS, partition, [NewRecord(key, piece, 0)], done)
    manifest = Manifest(
        namespace=namespace,
        log_id=log.log_id,
        fold_version=FOLD_VERSION,
        position=position,
        offset=offset,
        fingerprint=fingerprint,
        chunks=keys,
        hashes=[blake2b(piece, digest_size=16).digest() for piece in pieces],
    )
    slot = f"{namespace}/manifest/{turn % KEPT}"
    log.append(SNAPSHOTS, partition, [NewRecord(slot, msgspec.msgpack.encode(manifest), 0)], done)


def read_snapshot(log: Log, namespace: str) -> Restored | None:
    """The newest snapshot that is whole and of this log, or None."""
    found: list[Manifest] = []
    for slot in range(KEPT):
        for record in log.read_key(SNAPSHOTS, f"{namespace}/manifest/{slot}")[-1:]:
            try:
                found.append(msgspec.msgpack.decode(record.value, type=Manifest))
            except msgspec.MsgspecError:
                logger.warning("A snapshot manifest of %s cannot be read; it is ignored", namespace)
    for manifest in sorted(found, key=lambda one: -one.position):
        restored = _restore(log, manifest)
        if restored is not None:
            return restored
    return None


def _restore(log: Log, manifest: Manifest) -> Restored | None:
    if manifest.log_id != log.log_id or manifest.fold_version != FOLD_VERSION:
        return None
    pieces: list[bytes] = []
    for key, expected in zip(manifest.chunks, manifest.hashes):
        records = log.read_key(SNAPSHOTS, key)
        if not records or blake2b(records[-1].value, digest_size=16).digest() != expected:
            logger.warning("The snapshot at position %d is not whole; it is ignored", manifest.position)
            return None
        pieces.append(records[-1].value)
    try:
        state = load(zlib.decompress(b"".join(pieces)))
    except (zlib.error, msgspec.MsgspecError, ValueError) as error:
        logger.warning("The snapshot at position %d cannot be read (%s); it is ignored", manifest.position, error)
        return None
    if state.position != manifest.position or state.fingerprint != manifest.fingerprint:
        return None
    return Restored(state, manifest.offset)


def image_of(state: State) -> bytes:
    """The bytes that `write_snapshot` takes; call it under the node's lock."""
    return dump(state)
