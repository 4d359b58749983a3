"""What the demo shows: lines where it is written to a file, a table that fills itself on a terminal."""

from __future__ import annotations

import math
import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .board import Board, Key, Row
from .candidates import Candidate
from .wilson import Estimate, estimate


class Screen:
    """Plain lines, for pipes and logs: one per prompt and round, never one per answer. The base of the other screens."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.started = time.monotonic()
        self.first_reward_seconds: float | None = None
        self._round = 0
        self._shown: set[tuple[str, int]] = set()

    def say(self, text: str) -> None:
        """One line for the reader, at once."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Leaves the terminal as it was."""

    def changed(self, board: Board, key: Key, reward: float | None, recalled: bool) -> None:
        """One question has its result; None: no reward came. `recalled`: an earlier run had asked it."""
        self.show(board)
        if self.first_reward_seconds is None and reward is not None and not recalled:
            self.first_reward_seconds = time.monotonic() - self.started
            self.say(
                f"first reward after {self.first_reward_seconds:.1f} s: {reward:.0f} "
                f"for '{key.candidate}' on review {key.review_id}"
            )

    def show(self, board: Board) -> None:
        """The board as it is now. Here: a line for each round and for each prompt that is through it."""
        staying = [row for row in board.rows if row.dropped_in is None]
        number = board.rounds + 1 if board.test_planned else board.round
        if number != self._round:
            self._round = number
            what = f"round {number} of {board.rounds}: {len(staying)} prompts, {staying[0].planned} validation reviews each"
            if board.test_planned:
                what = f"held-out check: {board.test_planned} test reviews, before and after"
            self.say(f"{self._seconds()}  {what}")
        for row in staying:
            done = (row.candidate.name, row.planned)
            if len(row.rewards) + row.missing == row.planned > 0 and done not in self._shown:
                self._shown.add(done)
                known = row.estimate
                worth = f"{known.mean:.2f} ({interval(known)})" if known.count else "no answers"
                self.say(f"{self._seconds()}    {row.candidate.name}: {worth}")

    def _seconds(self) -> str:
        return f"{time.monotonic() - self.started:5.1f} s"


class LiveScreen(Screen):
    """The table of candidates on a terminal, redrawn as rewards come in."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live = Live(console=console, refresh_per_second=8, transient=True)
        self._running = False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._running:
            self._running = False
            self._live.stop()

    def show(self, board: Board) -> None:
        if not self._running:
            self._running = True
            self._live.start()
        seconds = time.monotonic() - self.started
        if board.test_planned:
            done, planned = sum(len(rewards) for rewards in board.test.values()), 2 * board.test_planned
            what = "held-out check"
        else:
            staying = [row for row in board.rows if row.dropped_in is None]
            done = sum(len(row.rewards) + row.missing for row in staying)
            planned = sum(row.planned for row in staying)
            what = f"round {board.round} of {board.rounds}"
        bar = Table.grid(padding=(0, 1))
        bar.add_row(Text(what), ProgressBar(total=planned, completed=done, width=30), Text(f"{seconds:.0f} s", "dim"))
        self._live.update(Group(candidates_table(board), bar))


def candidates_table(board: Board) -> Table:
    """One row per prompt, best first: mean reward, 95 % interval, answers, and whether it stayed."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("prompt", no_wrap=True)
    table.add_column("mean reward", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("answers", justify="right")
    table.add_column("")
    for row in board.ranking():
        known = row.estimate
        mean = "" if math.isnan(known.mean) else f"{known.mean:.2f}"
        missing = f" ({row.missing} missing)" if row.missing else ""
        table.add_row(
            row.candidate.name, mean, interval(known), f"{known.count}{missing}", _state(row), style=_style(row)
        )
    return table


def interval(known: Estimate) -> str:
    """The interval as text; empty where nothing is known."""
    return f"{known.low:.2f} to {known.high:.2f}" if known.count else ""


def _state(row: Row) -> str:
    return f"out, round {row.dropped_in}" if row.dropped_in else ""


def _style(row: Row) -> str:
    return "dim" if row.dropped_in else ""


def report(screen: Screen, board: Board, seed: Candidate, best: Candidate) -> None:
    """The table, the best prompt, and how both ends did on the reviews that nothing was chosen by."""
    console = screen.console
    console.print()
    console.print(candidates_table(board))
    console.print()
    console.print(Panel(Text(best.template), title=f"best prompt: {best.name}", title_align="left", expand=False))
    equal = [row.candidate.name for row in board.rows if _as_good(row, board.row(best.name))]
    if equal:
        screen.say(f"as good: {', '.join(equal)}; the first in the list was taken")
    before, after = (estimate(list(board.test.get(c.name, {}).values())) for c in (seed, best))
    screen.say(f"held-out accuracy  before {held_out(before)}   '{seed.name}'")
    screen.say(f"                   after  {held_out(after)}   '{best.name}'")


def _as_good(row: Row, best: Row) -> bool:
    return row is not best and (row.estimate.mean, row.estimate.count) == (best.estimate.mean, best.estimate.count)


def held_out(known: Estimate) -> str:
    """An accuracy with its interval and the number of reviews behind it."""
    return f"{known.mean:.2f} ({interval(known)}, n = {known.count})" if known.count else "unknown: no answers"
