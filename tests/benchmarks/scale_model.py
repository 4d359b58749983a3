"""Scale on paper: what many runner slots ask of nodes, partitions, brokers and disks, computed from measured costs.

`python -m tests.benchmarks.scale_model` prints the tables of docs/explanation/scale.md and writes them and the plot there;
with `--seconds 300 --spans 50` it prints those of other rollouts. The costs are those of measured.json, which the benchmarks
write with `make bench RECORD=1`. `checks` computes figures that were measured by themselves and give no cost to the model.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..sources import ROOT
from .measured import figures

PAGE = ROOT / "docs" / "explanation" / "scale.md"
PLOT = ROOT / "docs" / "explanation" / "scale.svg"
SLOTS = (10, 1_000, 100_000)
SECONDS, SPANS = 60.0, 20
"""The length of a rollout and its spans, that the page shows."""
BUSY = 0.7
"""Share of a core that is planned for: what is above it waits in queues."""
FOLDING = 0.5
"""Share of a node's planned time that folding the other nodes' records may take, before the prefix is split."""
REPLICAS = 3
DAY_SECONDS = 86_400


@dataclass(frozen=True)
class Shape:
    """What runs: `slots` at once, each rollout of so many seconds with so many spans."""

    slots: int
    seconds: float
    spans: int

    @property
    def rollouts(self) -> float:
        """Rollouts per second while every slot works."""
        return self.slots / self.seconds


@dataclass(frozen=True)
class Costs:
    """Processor seconds, bytes and requests of one rollout, of one span, and of one control record that another node wrote."""

    file_rollout: float
    file_span: float
    node_rollout: float
    node_span: float
    fold_record: float
    records: float
    partition_spans: float
    requests: float
    broker_requests: float
    control_bytes: float
    span_bytes: float

    @classmethod
    def measured(cls) -> Costs:
        """Those of measured.json."""
        http, kafka, rebuild, growth = (figures(name) for name in ("http", "kafka", "rebuild", "growth"))
        return cls(
            file_rollout=http["server_rollout_ms"] / 1e3,
            file_span=http["server_span_ms"] / 1e3,
            node_rollout=kafka["claim_ms"] / 1e3,
            node_span=(kafka["node_ms"] - kafka["claim_ms"]) / kafka["node_spans"] / 1e3,
            fold_record=rebuild["record_us"] / 1e6,
            records=growth["records"],
            partition_spans=1e6 / kafka["batched_span_us"],
            requests=kafka["requests"],
            broker_requests=1e3 * kafka["requests"] / kafka["broker_ms"],
            control_bytes=growth["control_bytes"],
            span_bytes=growth["span_bytes"],
        )

    def on_file(self, spans: int) -> float:
        """Processor seconds of the one server of a file per rollout."""
        return self.file_rollout + spans * self.file_span

    def on_node(self, spans: int) -> float:
        """Processor seconds of the node on Kafka that serves a rollout."""
        return self.node_rollout + spans * self.node_span

    @property
    def folding(self) -> float:
        """Processor seconds that a rollout costs each other node of its prefix."""
        return self.records * self.fold_record

    @property
    def prefix_rollouts(self) -> float:
        """Rollouts per second at which a prefix is split: each of its nodes folds all of them."""
        return BUSY * FOLDING / self.folding


@dataclass(frozen=True)
class Plan:
    """What a shape needs. Of a file there is one node and no partition, and no broker."""

    shape: Shape
    on_file: bool
    prefixes: int
    nodes: int
    span_partitions: int
    brokers: int
    requests: float
    gigabytes_a_day: float


def plan(shape: Shape, costs: Costs) -> Plan:
    """The smallest plan in which no core is busier than `BUSY`."""
    rate = shape.rollouts
    stored = rate * DAY_SECONDS * (costs.control_bytes + shape.spans * costs.span_bytes) / 1e9
    if rate * costs.on_file(shape.spans) <= BUSY:
        return Plan(shape, True, 1, 1, 0, 0, 0.0, stored)
    prefixes = math.ceil(rate / costs.prefix_rollouts)
    each = nodes_of_a_prefix(rate / prefixes, shape.spans, costs)
    partitions = math.ceil(rate * shape.spans / prefixes / (BUSY * costs.partition_spans))
    requests = rate * costs.requests
    brokers = max(REPLICAS, math.ceil(requests / (BUSY * costs.broker_requests)))
    return Plan(shape, False, prefixes, prefixes * each, prefixes * partitions, brokers, requests, REPLICAS * stored)


def nodes_of_a_prefix(rate: float, spans: int, costs: Costs) -> int:
    """Nodes that serve so many rollouts per second: each serves its part and folds all the others'."""
    serve, fold = rate * costs.on_node(spans), rate * costs.folding
    # n nodes: serve / n + fold * (n - 1) / n <= BUSY
    return max(1, math.ceil((serve - fold) / (BUSY - fold)))


def limits(seconds: float, spans: int, costs: Costs) -> list[tuple[str, float, str]]:
    """(what is used up, rollouts per second at which it is, what is split there) in the order in which they come."""
    of_spans = BUSY * costs.partition_spans / spans if spans else math.inf
    found = [
        ("the interpreter of the one server of a file", BUSY / costs.on_file(spans), "the file becomes Kafka"),
        ("the interpreter of a node on Kafka", BUSY / costs.on_node(spans), "more nodes"),
        ("the control partition: each node folds all of it", costs.prefix_rollouts, "more prefixes"),
        ("a partition of spans, by what a writer appends", of_spans, "more partitions of `spans`"),
        ("the processor of a broker, by its requests", BUSY * costs.broker_requests / costs.requests, "more brokers"),
    ]
    return sorted((one for one in found if one[1] < math.inf), key=lambda one: one[1])


@dataclass(frozen=True)
class Check:
    """A figure that was measured, and what the model says of it."""

    name: str
    unit: str
    measured: float
    computed: float

    @property
    def off(self) -> float:
        """How far the model is off, as a share of what was measured."""
        return self.computed / self.measured - 1


def checks(costs: Costs) -> list[Check]:
    """Figures of benchmarks that gave no cost to the model."""
    http, runners, growth = (figures(name) for name in ("http", "runners", "growth"))
    # A slot is busy for as long as an attempt took with one process, and is never idle.
    four = Shape(4, runners["attempt_ms_1"] / 1e3, 0)
    return [
        Check("a file over HTTP, 64 runners, 5 spans", "ms/rollout", http["server_ms_64"], costs.on_file(5) * 1e3),
        Check("a file over HTTP, 16 runners, 2 spans", "ms/rollout", growth["server_ms"], costs.on_file(2) * 1e3),
        Check("bytes of the log, 2 spans", "bytes/rollout", growth["log_bytes"], costs.control_bytes + 2 * costs.span_bytes),
        Check("4 runner processes on Kafka, tasks of 0.5 s", "rollouts/s", runners["rollouts_4"], four.rollouts),
    ]


def shown(value: float) -> str:
    """Three digits that count."""
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plan_table(shapes: Sequence[Shape], costs: Costs) -> str:
    """What each shape needs."""
    rows: list[list[str]] = []
    for shape in shapes:
        found = plan(shape, costs)
        where = ["1 file"] if found.on_file else [f"{found.prefixes} on Kafka"]
        kafka = ["-"] * 3 if found.on_file else [str(found.span_partitions), str(found.brokers), shown(found.requests)]
        rows.append(
            [f"{shape.slots:,}", f"{shape.seconds:g} s", f"{shape.spans}", shown(shape.rollouts),
             shown(shape.rollouts * shape.spans), *where, str(found.nodes), *kafka, f"{shown(found.gigabytes_a_day)} GB"]
        )  # fmt: skip
    head = ("slots", "length", "spans", "rollouts/s", "spans/s", "prefixes", "nodes", "partitions of `spans`", "brokers",
            "broker requests/s", "disk a day")  # fmt: skip
    return table(head, rows)


def limit_table(seconds: float, spans: int, costs: Costs) -> str:
    """Where each limit lies."""
    rows = [[what, shown(rate), shown(rate * seconds), split] for what, rate, split in limits(seconds, spans, costs)]
    return table(("what is used up", "rollouts/s", f"slots of {seconds:g} s", "what is split there"), rows)


def check_table(costs: Costs) -> str:
    """What was measured and what the model says."""
    rows = [
        [one.name, f"{shown(one.measured)} {one.unit}", shown(one.computed), f"{one.off:+.0%}"] for one in checks(costs)
    ]
    return table(("figure", "measured", "computed", "off by"), rows)


# The plot: nodes by slots, both on a logarithmic scale

LENGTHS = ((10.0, "#b3402a"), (60.0, "#1f6f8b"), (600.0, "#5b7f2b"))
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 640, 360, 60, 24, 20, 48
DECADES = (1, 6)
"""Powers of ten of slots."""
MOST_NODES = 5
"""Power of ten."""


def _x(slots: float) -> float:
    share = (math.log10(slots) - DECADES[0]) / (DECADES[1] - DECADES[0])
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(nodes: float) -> float:
    return HEIGHT - BOTTOM - math.log10(nodes) / MOST_NODES * (HEIGHT - TOP - BOTTOM)


def plot(spans: int, costs: Costs) -> str:
    """An SVG: the nodes that so many slots need, for three lengths of a rollout."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for power in range(DECADES[0], DECADES[1] + 1):
        at = _x(10**power)
        parts.append(f'<path d="M{at:.1f} {_y(1):.1f}V{TOP}" stroke="#ddd"/>')
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - 28}" text-anchor="middle">{10**power:,}</text>')
    for power in range(MOST_NODES + 1):
        at = _y(10**power)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{10**power:,}</text>')
    for number, (seconds, colour) in enumerate(LENGTHS):
        slots = [10 ** (DECADES[0] + step / 20) for step in range(20 * (DECADES[1] - DECADES[0]) + 1)]
        points = [(_x(one), _y(plan(Shape(round(one), seconds, spans), costs).nodes)) for one in slots]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{LEFT + 12}" y="{TOP + 18 + 17 * number}" fill="{colour}">rollouts of {seconds:g} s</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">runner slots</text>')
    parts.append(f'<text x="{LEFT}" y="{TOP - 8}" text-anchor="middle">nodes</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def page(seconds: float, spans: int, costs: Costs, text: str) -> str:
    """The page with its tables made anew; each stands between two comments that name it."""
    made = {
        "plan": plan_table([Shape(slots, seconds, spans) for slots in SLOTS], costs),
        "short": plan_table([Shape(slots, 10.0, 5) for slots in SLOTS], costs),
        "limits": limit_table(seconds, spans, costs),
        "checks": check_table(costs),
    }
    for name, found in made.items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->\n")
        if not begin or not end:
            raise ValueError(f"{PAGE.name} has no place for the table {name}: add <!-- {name} --> and <!-- end -->")
        text = f"{before}{begin}\n{found}\n\n{end}{after}"
    return text


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables of a shape; of the page's own shape write page and plot."""
    parser = argparse.ArgumentParser(description="What many runner slots need, computed from measured costs.")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="the length of a rollout")
    parser.add_argument("--spans", type=int, default=SPANS, help="the spans of a rollout")
    given = parser.parse_args(argv)
    costs = Costs.measured()
    shapes = [Shape(slots, given.seconds, given.spans) for slots in SLOTS]
    for text in (plan_table(shapes, costs), limit_table(given.seconds, given.spans, costs), check_table(costs)):
        print(f"\n{text}")
    if (given.seconds, given.spans) == (SECONDS, SPANS):
        PAGE.write_text(page(SECONDS, SPANS, costs, PAGE.read_text()))
        PLOT.write_text(plot(SPANS, costs))


if __name__ == "__main__":
    main()
