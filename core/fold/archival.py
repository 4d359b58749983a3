"""How a finished rollout leaves hot state and comes back: packed bytes, their hash, and when it is time.

Who leaves is decided by log position alone, so replicas of any size agree about every later event.
"""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from .archive import HASH_BYTES
from .state import FINISHED, Rollout, State

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Rollout).decode


def pack(rollout: Rollout) -> bytes:
    """The bytes of a rollout with its attempts; equal rollouts give equal bytes."""
    return _encode(rollout)


def unpack(body: bytes) -> Rollout | None:
    """What `pack` packed, or None where the bytes are something else."""
    try:
        return _decode(body)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):
        return None


def hash_of(body: bytes) -> bytes:
    """The 8-byte hash that stays in the fold."""
    return blake2b(body, digest_size=HASH_BYTES).digest()


def archive_due(state: State) -> list[tuple[Rollout, bytes]]:
    """Take the rollouts out of hot state whose outcome lies `archive_after` records back; return them, packed.

    A rollout that was reopened or finished anew since then stays; its later outcome has an entry of its own.
    """
    leaving = state.leaving
    limit = state.position - state.archive_after
    if not leaving or leaving[0][0] > limit:
        return []
    gone: list[tuple[Rollout, bytes]] = []
    while leaving and leaving[0][0] <= limit:
        position, rollout_id = leaving.popleft()
        rollout = state.rollouts.get(rollout_id)
        if rollout is None or rollout.finished_at != position or rollout.status not in FINISHED:
            continue
        body = pack(rollout)
        state.archived.put(rollout_id, hash_of(body))
        del state.rollouts[rollout_id]
        gone.append((rollout, body))
    return gone
