"""What a runner says of heartbeats that do not arrive."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import psutil
import pytest

from agentlightning.projections.store.memory_store import InMemoryLightningStore
from agentlightning.runners.worker.heartbeat import Heartbeat, HeartbeatSource
from agentlightning.runners.worker.system_snapshot import system_snapshot


async def test_a_store_that_never_answered_is_no_news_of_the_heartbeat_and_one_that_stops_is(
    store: InMemoryLightningStore, caplog: pytest.LogCaptureFixture
) -> None:
    class Quiet:
        capabilities = store.capabilities
        answers = False

        async def update_worker(self, *args: Any, **kwargs: Any) -> Any:
            if not self.answers:
                raise asyncio.TimeoutError
            return await store.update_worker(*args, **kwargs)

    quiet: Any = Quiet()
    beat = Heartbeat(quiet, [HeartbeatSource("Worker-0", "i", list)], interval=0.01, jitter=0.0, mode="asyncio")
    with caplog.at_level(logging.INFO):
        beat.start()
        await asyncio.sleep(0.1)
        assert "Heartbeat" not in caplog.text
        quiet.answers = True
        await asyncio.sleep(0.1)
        quiet.answers = False
        await asyncio.sleep(0.1)
        await beat.stop()
    said = [record.getMessage() for record in caplog.records if "Heartbeat" in record.getMessage()]
    assert said == ["Heartbeat of Worker-0 failed: the store does not answer"]


def test_graphics_cards_are_told_as_nvidia_smi_tells_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA A100, 37, 1024, 40960, [N/A]'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    known = {"gpu": "NVIDIA A100", "util_pct": 37.0, "mem_used_mb": 1024.0, "mem_total_mb": 40960.0}
    assert system_snapshot(include_gpu=True)["gpus"] == [known]
    assert "gpus" not in system_snapshot()
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert system_snapshot(include_gpu=True)["gpus"] == []


def test_a_snapshot_has_every_figure_of_the_contract_and_leaves_out_what_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = system_snapshot()
    text = {"timestamp", "host", "os", "cpu_name"}
    figures = {"cpu_threads", "cpu_usage_pct", "mem_used_gb", "mem_total_gb", "mem_pct", "disk_used_gb", "disk_total_gb"}
    figures |= {"disk_pct", "bytes_sent_mb", "bytes_recv_mb"}
    assert set(snapshot) - {"cpu_cores"} == text | figures
    assert all(isinstance(snapshot[name], (int, float)) and snapshot[name] >= 0 for name in figures)
    assert 0 < snapshot["mem_used_gb"] <= snapshot["mem_total_gb"] and 0 < snapshot["mem_pct"] <= 100

    def hidden() -> Any:
        raise PermissionError("/proc/meminfo")

    monkeypatch.setattr(psutil, "virtual_memory", hidden)
    assert set(snapshot) - set(system_snapshot()) == {"mem_used_gb", "mem_total_gb", "mem_pct"}
