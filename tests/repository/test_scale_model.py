"""The model of scale: its arithmetic, its distance from what was measured, and that page and plot are what it makes."""

from __future__ import annotations

import pytest

from ..benchmarks.scale_model import (
    BUSY,
    DAY_SECONDS,
    PAGE,
    PLOT,
    REPLICAS,
    SECONDS,
    SPANS,
    Costs,
    Shape,
    checks,
    limits,
    nodes_of_a_prefix,
    page,
    plan,
    plot,
)

COSTS = Costs(
    file_rollout=0.001,
    file_span=0.0001,
    node_rollout=0.002,
    node_span=0.0005,
    fold_record=0.00001,
    records=4,
    partition_spans=10_000,
    requests=2,
    broker_requests=5_000,
    control_bytes=1_000,
    span_bytes=500,
)
"""Round numbers: a rollout of 10 spans is 2 ms of a file's server, 7 ms of a node's, and 40 us of every other node's."""


def test_a_file_serves_what_one_core_can() -> None:
    small, large = (plan(Shape(slots, 10.0, 10), COSTS) for slots in (3_490, 3_510))
    assert (small.on_file, small.nodes, small.brokers, small.requests) == (True, 1, 0, 0.0)
    assert not large.on_file


def test_a_day_of_rollouts_takes_the_bytes_of_its_records_in_every_copy() -> None:
    one_file = plan(Shape(100, 10.0, 10), COSTS)
    on_kafka = plan(Shape(10_000, 10.0, 10), COSTS)
    assert one_file.gigabytes_a_day == pytest.approx(10 * DAY_SECONDS * 6_000 / 1e9)
    assert on_kafka.gigabytes_a_day == pytest.approx(REPLICAS * 1_000 * DAY_SECONDS * 6_000 / 1e9)


@pytest.mark.parametrize("rate", [100.0, 1_000.0, 5_000.0])
def test_no_node_is_busier_than_planned_and_one_less_would_be(rate: float) -> None:
    serve, fold = rate * COSTS.on_node(10), rate * COSTS.folding

    def busy(nodes: int) -> float:
        return serve / nodes + fold * (nodes - 1) / nodes

    nodes = nodes_of_a_prefix(rate, 10, COSTS)
    assert busy(nodes) <= BUSY + 1e-9
    assert nodes == 1 or busy(nodes - 1) > BUSY


def test_a_prefix_is_split_where_folding_takes_half_of_a_node() -> None:
    at_most = COSTS.prefix_rollouts
    assert at_most == pytest.approx(0.35 / 0.00004)
    assert plan(Shape(round(at_most * 10) - 1, 10.0, 10), COSTS).prefixes == 1
    assert plan(Shape(round(at_most * 10) + 1, 10.0, 10), COSTS).prefixes == 2


def test_spans_and_requests_are_divided_among_partitions_and_brokers() -> None:
    found = plan(Shape(10_000, 10.0, 10), COSTS)
    assert (found.requests, found.span_partitions, found.brokers) == (2_000, 2, REPLICAS)
    assert plan(Shape(80_000, 10.0, 10), COSTS).brokers == 5


def test_limits_come_in_their_order_and_each_says_what_is_split() -> None:
    found = limits(10.0, 10, COSTS)
    assert [round(rate) for _, rate, _ in found] == [100, 350, 700, 1750, 8750]
    assert all(what and split for what, _, split in found)
    assert len(limits(10.0, 0, COSTS)) == len(found) - 1  # without spans their partitions limit nothing


def test_the_model_is_within_a_quarter_of_what_was_measured() -> None:
    found = checks(Costs.measured())
    assert len(found) >= 3
    assert {one.name: one.off for one in found if abs(one.off) > 0.25} == {}


def test_page_and_plot_are_what_the_model_makes() -> None:
    """`python -m tests.benchmarks.scale_model` makes them anew."""
    costs, text = Costs.measured(), PAGE.read_text()
    assert page(SECONDS, SPANS, costs, text) == text
    assert PLOT.read_text() == plot(SPANS, costs)
