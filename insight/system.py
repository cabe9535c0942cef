"""What the machine is doing: processor, memory, accelerator. Names are MLflow's own, so that its page of system metrics shows them."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess

import psutil
import torch

MEGABYTE = 1e6
POWERMETRICS = ("powermetrics", "--sample-count", "1", "--sample-rate", "500", "--samplers", "cpu_power,gpu_power")
POWER_LINE = re.compile(r"^(CPU|GPU) Power:\s*([\d.]+) mW", re.MULTILINE)


class SystemSampler:
    """Each call of ``sample`` says what happened since the one before. It takes a fraction of a millisecond and never waits.

    Args:
        device: Where the training runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call only begins to count
        psutil.cpu_percent()
        self._nvml = device.type == "cuda" and importlib.util.find_spec("pynvml") is not None
        self._power = PowerReader() if device.type == "mps" else None

    def sample(self) -> dict[str, float]:
        """Percentages, megabytes and watts by metric name. What cannot be read here is left out."""
        memory = psutil.virtual_memory()
        figures = {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/process_cpu_utilization_percentage": self._process.cpu_percent(),  # 100 = one core
            "system/system_memory_usage_percentage": memory.percent,
            "system/system_memory_usage_megabytes": (memory.total - memory.available) / MEGABYTE,
            "system/process_memory_usage_megabytes": self._process.memory_info().rss / MEGABYTE,
        }
        if self.device.type == "cuda":
            prefix = f"system/gpu_{self.device.index or 0}"
            figures[f"{prefix}_memory_usage_megabytes"] = torch.cuda.memory_allocated(self.device) / MEGABYTE
            if self._nvml:
                figures[f"{prefix}_utilization_percentage"] = float(torch.cuda.utilization(self.device))
                figures[f"{prefix}_power_usage_watts"] = torch.cuda.power_draw(self.device) / 1000
        elif self.device.type == "mps":
            figures["system/gpu_0_memory_usage_megabytes"] = torch.mps.current_allocated_memory() / MEGABYTE
            figures["system/mps_driver_memory_usage_megabytes"] = torch.mps.driver_allocated_memory() / MEGABYTE
        if self._power is not None:
            figures |= self._power.read()
        return figures


class PowerReader:
    """Power of an Apple chip by `powermetrics`, which only root may run: elsewhere ``read`` is always empty."""

    def __init__(self) -> None:
        self.allowed = os.geteuid() == 0 and shutil.which(POWERMETRICS[0]) is not None
        self._running: subprocess.Popen[str] | None = None

    def read(self) -> dict[str, float]:
        """Watts as measured since the call before; begins the next measurement, and does not wait for one."""
        if not self.allowed:
            return {}
        found: dict[str, float] = {}
        if self._running is not None:
            if self._running.poll() is None:
                return {}
            found = parse_power(self._running.communicate()[0])
        self._running = subprocess.Popen(
            POWERMETRICS, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        return found


def parse_power(text: str) -> dict[str, float]:
    """Watts from the text of powermetrics.

    >>> parse_power("CPU Power: 1500 mW\\nGPU Power: 250 mW\\n")
    {'system/cpu_power_usage_watts': 1.5, 'system/gpu_0_power_usage_watts': 0.25}
    """
    names = {"CPU": "system/cpu_power_usage_watts", "GPU": "system/gpu_0_power_usage_watts"}
    return {names[what]: float(milliwatts) / 1000 for what, milliwatts in POWER_LINE.findall(text)}
