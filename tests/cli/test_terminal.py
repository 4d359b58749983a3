"""What the commands print with."""

from __future__ import annotations

from agentlightning.cli.terminal import COLORS
from agentlightning.core.model.status import ATTEMPT_STATUSES, ROLLOUT_STATUSES


def test_every_status_has_a_colour_and_nothing_else_has() -> None:
    assert set(COLORS) == {*ROLLOUT_STATUSES, *ATTEMPT_STATUSES}
