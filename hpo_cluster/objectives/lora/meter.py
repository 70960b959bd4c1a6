"""Peak memory and energy that an attempt uses on its device."""

from __future__ import annotations

import contextlib
import resource
from typing import Any

import torch


class Meter:
    """A meter of memory and energy, from its creation to the call of `report`.

    Args:
        device: device that the attempt computes on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._energy_mj = self._read_energy_mj()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    @property
    def counts_energy(self) -> bool:
        """Whether the driver of the device measures energy."""
        return self._energy_mj is not None

    def report(self) -> dict[str, Any]:
        """Return the device, ``peak_memory_gb`` (1e9 bytes) and ``energy_wh`` (None if it cannot be measured).

        On a GPU, memory is what torch allocated; on a CPU, it is the resident memory of the process. Energy is that of
        the whole GPU, including other processes.
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
        """Return the energy counter of the GPU in millijoules; None if it has none, as a MIG slice or without NVML."""
        if self._device.type != "cuda":
            return None
        with contextlib.suppress(Exception):  # a failed measurement must not fail the evaluation
            import pynvml

            pynvml.nvmlInit()
            # by UUID: CUDA_VISIBLE_DEVICES renumbers the devices of torch, but not those of NVML
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(self._device).uuid}")
            return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        return None
