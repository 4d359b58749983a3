"""Shared set-up of the tests: collection from a repository whose root is itself the package."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from .system.kafka.fixtures import (
    _three_brokers,
    kafka_broker,
    kafka_cluster,
    kafka_cluster_prefix,
    kafka_cluster_url,
    kafka_prefix,
    kafka_url,
    mark,
)

__all__ = [
    "_three_brokers",
    "kafka_broker",
    "kafka_cluster",
    "kafka_cluster_prefix",
    "kafka_cluster_url",
    "kafka_prefix",
    "kafka_url",
]

ROOT = Path(__file__).resolve().parent.parent


class _RootIsNoTestPackage:
    """Keeps pytest from importing the repository root a second time, under the name of the checkout's folder."""

    @staticmethod
    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        if path == ROOT:
            return pytest.Dir.from_parent(parent, path=path)
        return None


def pytest_configure(config: pytest.Config) -> None:
    """Registered here and not as a conftest hook, since the root is collected before this folder's hooks apply."""
    config.pluginmanager.register(_RootIsNoTestPackage(), "root-is-no-test-package")
    # Set for the workers of pytest-xdist: what the commands print is not cut to the width of somebody's terminal.
    os.environ.pop("COLUMNS", None)
    # A shell that starts the tests in the background lets them ignore Ctrl+C, and so would every process they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Before `-m` chooses: what uses a broker is marked so; what is marked `chaos` runs where `-m` names it."""
    mark(items)
    if "chaos" in (config.option.markexpr or ""):
        return
    left_out = [item for item in items if item.get_closest_marker("chaos")]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
