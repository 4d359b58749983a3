"""The long versions of the kill tests run only where they are asked for: `pytest -m chaos tests/store`."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked `chaos` unless the marker expression names it."""
    if "chaos" in (config.option.markexpr or ""):
        return
    left_out = [item for item in items if item.get_closest_marker("chaos") and HERE in item.path.parents]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
