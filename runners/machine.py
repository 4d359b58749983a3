"""What a heartbeat says about the machine, as far as the standard library can tell."""

from __future__ import annotations

import os
import platform
import shutil
import socket
from datetime import datetime
from pathlib import Path
from typing import Any

__all__ = ["system_snapshot"]

_GIGA = 1024**3
_MEGA = 1024**2


def system_snapshot(include_gpu: bool = False) -> dict[str, Any]:
    """Host, processor, memory, disk and network of this machine; a key that cannot be told is left out.

    ``timestamp`` is local time to the second. ``cpu_usage_pct`` is the load of the last minute
    over the number of processors, at most 100. Bytes count from the start of the machine.
    ``include_gpu`` adds an empty list: no library that could tell is required.
    """
    snapshot: dict[str, Any] = {
        "timestamp": datetime.now().isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "os": f"{platform.system()} {platform.release()}",
        "cpu_name": platform.processor() or platform.machine(),
        "cpu_threads": os.cpu_count() or 1,
    }
    if hasattr(os, "getloadavg"):
        load = os.getloadavg()[0]
        snapshot["cpu_usage_pct"] = round(min(100.0, 100 * load / snapshot["cpu_threads"]), 1)
    snapshot.update(_memory())
    disk = shutil.disk_usage(Path.cwd().anchor or ".")
    snapshot["disk_used_gb"] = round(disk.used / _GIGA, 2)
    snapshot["disk_total_gb"] = round(disk.total / _GIGA, 2)
    snapshot["disk_pct"] = round(100 * disk.used / disk.total, 1) if disk.total else 0.0
    snapshot.update(_network())
    if include_gpu:
        snapshot["gpus"] = []
    return snapshot


def _memory() -> dict[str, float]:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    kilo = {line.split(":")[0]: int(line.split()[1]) for line in lines if len(line.split()) > 1}
    total, free = kilo.get("MemTotal"), kilo.get("MemAvailable")
    if not total or free is None:
        return {}
    return {
        "mem_used_gb": round((total - free) * 1024 / _GIGA, 2),
        "mem_total_gb": round(total * 1024 / _GIGA, 2),
        "mem_pct": round(100 * (total - free) / total, 1),
    }


def _network() -> dict[str, float]:
    try:
        lines = Path("/proc/net/dev").read_text(encoding="ascii").splitlines()[2:]
    except OSError:
        return {}
    fields = [line.partition(":")[2].split() for line in lines if not line.strip().startswith("lo:")]
    rows = [row for row in fields if len(row) > 8]
    return {
        "bytes_sent_mb": round(sum(int(row[8]) for row in rows) / _MEGA, 2),
        "bytes_recv_mb": round(sum(int(row[0]) for row in rows) / _MEGA, 2),
    }
