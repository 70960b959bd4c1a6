"""`Meter` reads the energy counter of the device that torch uses, and does without one."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hpo_cluster.objectives.lora.meter import Meter


def test_on_a_cpu() -> None:
    report = Meter(torch.device("cpu")).report()
    assert report["device"] == "cpu"
    assert report["energy_wh"] is None
    assert 0 < report["peak_memory_gb"] < 64


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A stand-in for torch's view of a GPU and for NVML."""
    state: dict[str, Any] = {"energy_mj": 1_000_000, "asked": None}

    def by_uuid(uuid: str) -> str:
        state["asked"] = uuid
        return "handle"

    def energy(_handle: str) -> int:
        if state["energy_mj"] is None:
            raise RuntimeError("Not Supported")
        return int(state["energy_mj"])

    nvml = SimpleNamespace(
        nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=by_uuid, nvmlDeviceGetTotalEnergyConsumption=energy
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 3_000_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100-SXM4-40GB")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="ab-cd"))
    return state


def test_on_a_gpu(gpu: dict[str, Any]) -> None:
    meter = Meter(torch.device("cuda"))
    gpu["energy_mj"] += 7_200_000
    assert meter.report() == {
        "device": "cuda",
        "device_name": "NVIDIA A100-SXM4-40GB",
        "peak_memory_gb": 3.0,
        "energy_wh": 2.0,
        "energy_source": "nvml",
    }
    assert gpu["asked"] == "GPU-ab-cd"


def test_on_a_gpu_without_a_counter(gpu: dict[str, Any]) -> None:
    gpu["energy_mj"] = None
    report = Meter(torch.device("cuda")).report()
    assert report["energy_wh"] is None
    assert report["energy_source"] == "none"
