"""A broker for a benchmark: the one of KAFKA_BOOTSTRAP, or one that is started here and stopped afterwards."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

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


def broker_seconds(bootstrap: str) -> float:
    """Processor seconds so far of the process of this machine that listens there; 0.0 for a broker on another one."""
    port = int(bootstrap.rpartition(":")[2])
    for one in psutil.net_connections("tcp"):
        if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr[1] == port and one.pid:
            times = psutil.Process(one.pid).cpu_times()
            return times.user + times.system
    return 0.0
