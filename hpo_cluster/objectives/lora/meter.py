"""What one attempt used of the device: peak memory and energy."""

from __future__ import annotations

import contextlib
import resource
from typing import Any

import torch


class Meter:
    """Measures from when it is made until `report`.

    Args:
        device: the device the attempt computes on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._energy_mj = self._read_energy_mj()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    @property
    def counts_energy(self) -> bool:
        """Whether the device's driver counts energy."""
        return self._energy_mj is not None

    def report(self) -> dict[str, Any]:
        """Device, ``peak_memory_gb`` (1e9 bytes) and ``energy_wh`` (None where no driver counts it).

        Memory is what torch allocated on a GPU, and the whole process's resident memory on a CPU. Energy is the whole
        GPU's, other processes' share included.
        """
        if self._device.type == "cuda":
            name = torch.cuda.get_device_name(self._device)
            peak = float(torch.cuda.max_memory_allocated(self._device))
        else:
            name = "CPU"
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
        now = self._read_energy_mj()
        known = now is not None and self._energy_mj is not None
        return {
            "device": self._device.type,
            "device_name": name,
            "peak_memory_gb": round(peak / 1e9, 6),
            "energy_wh": round((now - self._energy_mj) / 3.6e6, 6) if known else None,  # type: ignore[operator]
            "energy_source": "nvml" if known else "none",
        }

    def _read_energy_mj(self) -> int | None:
        """The GPU's counter in millijoules; None without an NVIDIA driver that has one (a MIG slice has none)."""
        if self._device.type != "cuda":
            return None
        with contextlib.suppress(Exception):  # a measurement that fails must not cost the evaluation
            import pynvml

            pynvml.nvmlInit()
            # by identity: CUDA_VISIBLE_DEVICES renumbers torch's devices, not NVML's
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(self._device).uuid}")
            return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        return None
