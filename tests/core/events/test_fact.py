"""Facts: one struct per type, the same in the fold, in the plain form that is published and as a subscriber decodes it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from agentlightning.core.events import fact
from agentlightning.core.fold import state_machine
from agentlightning.core.fold.apply import apply
from agentlightning.core.fold.state import State
from agentlightning.core.model.rollout import Fact
from agentlightning.projections.facts.derived_topic import FactBatch, plain_facts_of, record_of

from ..fold.strategies import World

_VALUES: dict[str, Any] = {
    "rollout_id": "ro-1", "sequence_id": 2, "attempt_id": "at-1", "version": 3, "to_ms": 5, "due_ms": 6, "resources_id": "rs-1",
    "status": "failed", "generation": 4, "fields": ("input", "mode"), "task_digest": "00", "run_id": "run-1", "reward": 0.5,
    "resources_version": 3, "worker_id": "w", "seconds": 1.5,
}  # fmt: skip


@pytest.mark.parametrize("kind", fact.TYPES.values(), ids=list(fact.TYPES))
def test_a_fact_is_read_again_from_its_published_form(kind: type[fact.FactData]) -> None:
    made = kind(**{field.name: _VALUES[field.name] for field in msgspec.structs.fields(kind)})
    (plain,) = plain_facts_of(FactBatch(7, 1_000_000, [made]), "log")
    published = json.loads(record_of(plain).value)
    assert fact.decode(published) == made == Fact(**plain).content
    assert not {"type", "rollout_id", "attempt_id"} & set(plain["data"]), "the envelope has them"


def test_a_type_of_a_newer_release_is_no_fact_of_this_one() -> None:
    with pytest.raises(msgspec.ValidationError):
        fact.decode({"type": "rollout.teleported", "rollout_id": "ro-1", "attempt_id": None, "data": {}})


def test_every_fact_of_random_histories_is_of_a_known_type_and_fits_its_struct() -> None:
    seen: set[str] = set()
    for seed in range(6):
        world = World(seed)
        world.run(120)
        state = State()
        for value in world.values:
            for one in apply(state, value).facts:
                assert type(one) is fact.TYPES[one.type]
                assert msgspec.convert(msgspec.to_builtins(one), fact.AnyFact) == one
                seen.add(one.type)
    assert len(seen) > 15


def test_what_a_fact_says_beside_its_identity_does_not_enter_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a field may be added to a fact, and its content worded anew, while older releases follow the same log."""

    def folded() -> State:
        world = World(3)
        world.run(100)
        return world.state

    before = folded()
    made = state_machine.completed
    monkeypatch.setattr(
        state_machine, "completed", lambda one: msgspec.structs.replace(made(one), task_digest="of another form", seconds=-1)
    )
    assert folded().fingerprint == before.fingerprint
    monkeypatch.setattr(state_machine, "completed", lambda one: msgspec.structs.replace(made(one), sequence_id=99))
    assert folded().fingerprint != before.fingerprint
