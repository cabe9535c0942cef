"""What the machine is doing, beside what the kernel says."""

from __future__ import annotations

import os
import resource
import sys
import time

import pytest
import torch

from insight.metric_names import check_metric_name, repeats
from insight.system import PowerReader, SystemSampler, parse_power

TEXT = """*** Sampled system activity (Wed Nov 25 10:00:00 2026 +0000) (502.30ms elapsed) ***

CPU Power: 4210 mW
GPU Power: 13870 mW
ANE Power: 0 mW
Combined Power (CPU + GPU + ANE): 18080 mW
"""


def test_a_sample_holds_the_memory_and_the_work_of_this_process():
    sampler = SystemSampler(torch.device("cpu"))
    began, used = time.perf_counter(), time.process_time()
    while time.process_time() - used < 0.2:
        pass
    share = 100 * (time.process_time() - used) / (time.perf_counter() - began)
    figures = sampler.sample()
    assert all(check_metric_name(name) and not repeats(name) for name in figures)
    assert figures["system/process_cpu_utilization_percentage"] == pytest.approx(share, rel=0.3)
    assert 0 < figures["system/system_memory_usage_percentage"] <= 100
    assert 0 <= figures["system/cpu_utilization_percentage"] <= 100
    if sys.platform == "linux":
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        assert 0.2 * most < figures["system/process_memory_usage_megabytes"] <= 1.01 * most


def test_power_is_read_from_the_text_of_powermetrics():
    assert parse_power(TEXT) == {"system/cpu_power_usage_watts": 4.21, "system/gpu_0_power_usage_watts": 13.87}
    assert parse_power("powermetrics must be invoked as the superuser") == {}


def test_power_is_measured_beside_the_training_and_left_out_where_it_may_not_be_read(tmp_path, monkeypatch):
    command = tmp_path / "powermetrics"
    command.write_text(f"#!/bin/sh\nsleep 0.2\ncat <<'END'\n{TEXT}END\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(os, "geteuid", lambda: 501)
    assert PowerReader().read() == {}
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    reader = PowerReader()
    assert reader.read() == {}  # begins to measure
    assert reader.read() == {}  # still measuring: nothing waits
    reader._running.wait()
    assert reader.read() == {"system/cpu_power_usage_watts": 4.21, "system/gpu_0_power_usage_watts": 13.87}
    reader._running.wait()
