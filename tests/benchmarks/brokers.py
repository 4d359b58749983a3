"""A broker for a benchmark: the one of KAFKA_BOOTSTRAP, or one that is started here and stopped afterwards."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..sources import ROOT


@contextmanager
def a_broker() -> Iterator[str]:
    """The address of a broker that answers, as host:port."""
    given = os.environ.get("KAFKA_BOOTSTRAP")
    if given:
        yield given
        return
    sys.path.insert(0, str(ROOT / "deploy" / "kafka-local"))
    from kafka_local import Cluster

    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder) / "broker") as cluster:
        yield cluster.bootstrap
