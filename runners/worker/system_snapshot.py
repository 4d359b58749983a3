"""System snapshot: the state of the machine that a heartbeat reports."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import socket
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

__all__ = ["system_snapshot"]

GPU_SECONDS = 2.0
_log = logging.getLogger(__name__)
_GIGA = 1024**3
_MEGA = 1024**2
_LOOPBACK = ("lo", "Loopback")
"""Beginnings of the names of loopback interfaces; psutil names others ``eth0``, ``en0``, ``Ethernet``."""


def system_snapshot(include_gpu: bool = False) -> dict[str, Any]:
    """Host, processor, memory, disk and network of this machine; a key that is unknown is left out.

    ``timestamp`` is local time to the second. ``cpu_usage_pct`` is the load of the last minute
    over the number of processors, at most 100. Bytes count from the start of the machine.
    ``include_gpu`` adds ``gpus``, as ``nvidia-smi`` reports them, which takes up to GPU_SECONDS; empty without it.
    """
    snapshot: dict[str, Any] = {
        "timestamp": datetime.now().isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "os": f"{platform.system()} {platform.release()}",
        "cpu_name": platform.processor() or platform.machine(),
        "cpu_threads": os.cpu_count() or 1,
    }
    for figures in (_processor, _memory, _disk, _network):
        try:
            snapshot.update(figures())
        except (OSError, psutil.Error) as error:  # /proc that is hidden, a working directory that was removed
            _log.debug("A part of the system snapshot is unknown: %s", error)
    if include_gpu:
        snapshot["gpus"] = _gpus()
    return snapshot


def _processor() -> dict[str, float]:
    load, cores = psutil.getloadavg()[0], psutil.cpu_count(logical=False)
    usage = {"cpu_usage_pct": round(min(100.0, 100 * load / (os.cpu_count() or 1)), 1)}
    return {**usage, "cpu_cores": cores} if cores else usage


def _memory() -> dict[str, float]:
    memory = psutil.virtual_memory()
    used = memory.total - memory.available
    return {"mem_used_gb": round(used / _GIGA, 2), "mem_total_gb": round(memory.total / _GIGA, 2), "mem_pct": memory.percent}


def _disk() -> dict[str, float]:
    disk = shutil.disk_usage(Path.cwd().anchor or ".")
    percent = round(100 * disk.used / disk.total, 1) if disk.total else 0.0
    return {"disk_used_gb": round(disk.used / _GIGA, 2), "disk_total_gb": round(disk.total / _GIGA, 2), "disk_pct": percent}


def _network() -> dict[str, float]:
    cards = [card for name, card in psutil.net_io_counters(pernic=True).items() if not name.startswith(_LOOPBACK)]
    return {
        "bytes_sent_mb": round(sum(card.bytes_sent for card in cards) / _MEGA, 2),
        "bytes_recv_mb": round(sum(card.bytes_recv for card in cards) / _MEGA, 2),
    }


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
