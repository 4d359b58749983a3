"""User data come back as they went in, or are refused at the edge with a sentence."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlightning.core.errors import InvalidPayload, PayloadTooLarge
from agentlightning.core.events import payload

LEAVES = st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False) | st.text()
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(TREES)
def test_json_like_data_come_back_equal_and_encode_alike(value: object) -> None:
    data = payload.encode(value)
    assert payload.decode(data) == value
    assert payload.encode(value) == data


def test_hostile_values_come_back_or_are_refused() -> None:
    assert math.isnan(payload.decode(payload.encode({"x": math.nan}))["x"])
    assert payload.decode(payload.encode([2**64, -(2**70)])) == [2**64, -(2**70)]
    assert payload.decode(payload.encode("lone \ud800")) == "lone \ud800"
    assert payload.decode(payload.encode({"\udfff": math.inf})) == {"\udfff": math.inf}
    nested: object = None
    for _ in range(900):
        nested = [nested]
    with pytest.raises(InvalidPayload, match="nested deeper"):
        payload.encode(nested)
    for far in (nested, [2**64, nested]):  # the second needs a mark
        with pytest.raises(InvalidPayload, match="nested deeper"):
            payload.encode(far)
    level = 2**64
    deep: object = [level]
    for _ in range(payload.MAX_DEPTH - 2):
        deep = [deep]
    assert payload.decode(payload.encode(deep)) == deep  # as deep as may be, its mark included
    with pytest.raises(InvalidPayload, match="nested deeper"):
        payload.encode([deep])
    cycle: list[object] = []
    cycle.append(cycle)
    with pytest.raises(InvalidPayload):
        payload.encode(cycle)
    with pytest.raises(InvalidPayload, match="cannot be stored"):
        payload.encode(object())


def test_depth_is_bounded_for_values_that_only_become_containers_while_encoded() -> None:
    class Model:
        def __init__(self, depth: int) -> None:
            self.depth = depth

        def model_dump(self, mode: str) -> object:
            made: object = None
            for _ in range(self.depth):
                made = [made]
            return made

    assert payload.decode(payload.encode(Model(2))) == [[None]]
    with pytest.raises(InvalidPayload, match="nested deeper"):
        payload.encode({"here": Model(400)})


def test_too_large_names_the_limit() -> None:
    with pytest.raises(PayloadTooLarge, match="1 MB"):
        payload.encode("x" * 1_000_001, max_mb=1)


def test_a_reference_is_followed_to_the_bytes_it_names() -> None:
    data = payload.encode("x" * 1000)
    short = payload.refer(data)
    assert payload.is_reference(short) and not payload.is_reference(data)
    assert payload.reference(short) == payload.Reference(payload.digest_of(data), len(data))
    assert payload.decode(short, lambda reference: data) == "x" * 1000
    with pytest.raises(InvalidPayload):
        payload.decode(short)


@given(st.binary(max_size=60))
def test_bytes_that_are_not_ours_are_refused_with_one_error(data: bytes) -> None:
    try:
        payload.decode(data)
    except InvalidPayload:
        pass
