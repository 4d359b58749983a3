"""What a heartbeat says about the machine, as far as the standard library can tell."""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
import socket
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

__all__ = ["system_snapshot"]

GPU_SECONDS = 2.0
_log = logging.getLogger(__name__)
_GIGA = 1024**3
_MEGA = 1024**2


def system_snapshot(include_gpu: bool = False) -> dict[str, Any]:
    """Host, processor, memory, disk and network of this machine; a key that cannot be told is left out.

    ``timestamp`` is local time to the second. ``cpu_usage_pct`` is the load of the last minute
    over the number of processors, at most 100. Bytes count from the start of the machine.
    ``include_gpu`` adds ``gpus``, as ``nvidia-smi`` tells them, which takes up to GPU_SECONDS; empty without it.
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
    cores = _cores()
    if cores:
        snapshot["cpu_cores"] = cores
    snapshot.update(_memory())
    disk = shutil.disk_usage(Path.cwd().anchor or ".")
    snapshot["disk_used_gb"] = round(disk.used / _GIGA, 2)
    snapshot["disk_total_gb"] = round(disk.total / _GIGA, 2)
    snapshot["disk_pct"] = round(100 * disk.used / disk.total, 1) if disk.total else 0.0
    snapshot.update(_network())
    if include_gpu:
        snapshot["gpus"] = _gpus()
    return snapshot


def _cores() -> int:
    """Physical cores; 0 where the system does not tell them from threads."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    blocks = [dict(re.findall(r"^(physical id|core id)\s*: (\d+)$", block, re.MULTILINE)) for block in text.split("\n\n")]
    return len({(block["physical id"], block["core id"]) for block in blocks if len(block) == 2})


def _gpus() -> list[dict[str, Any]]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = "name,utilization.gpu,memory.used,memory.total,temperature.gpu"
    try:
        command = [tool, f"--query-gpu={query}", "--format=csv,noheader,nounits"]
        out = subprocess.run(command, capture_output=True, text=True, timeout=GPU_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        _log.debug("nvidia-smi does not answer: %s", error)
        return []
    names = ("util_pct", "mem_used_mb", "mem_total_mb", "temp_c")
    rows = [[cell.strip() for cell in line.split(",")] for line in out.splitlines()]
    return [
        # "[N/A]" and its like are left out.
        {"gpu": row[0], **{name: float(cell) for name, cell in zip(names, row[1:]) if cell.replace(".", "", 1).isdigit()}}
        for row in rows
        if len(row) == 5
    ]


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
