"""`Meter` reads the energy counter of the device that torch uses, and does without one."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hpo_cluster.objectives.lora import meter as module
from hpo_cluster.objectives.lora.meter import Meter, Weights, peak_flops
from hpo_cluster.objectives.lora.ranks import Ranks


@pytest.fixture(autouse=True)
def no_rapl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder in the place of the processors' energy counters."""
    monkeypatch.setattr(module, "RAPL_DIR", tmp_path / "powercap")
    return tmp_path / "powercap"


def test_on_a_cpu() -> None:
    meter = Meter(torch.device("cpu"))
    meter.begin("train")
    meter.begin("score")
    report = meter.report()
    assert report["device"] == "cpu"
    assert report["energy_wh"] is None
    assert report["energy_source"] == "none"
    assert [*report["phases"]] == ["train", "score"]
    for phase in report["phases"].values():
        assert phase["gpu_s"] == 0
        assert all(phase[name] is None for name in ("energy_wh", "tokens_per_s", "mfu"))
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
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
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
        "gpus": 1,
        "peak_memory_gb": 3.0,
        "energy_wh": 2.0,
        "energy_source": "nvml",
        "peak_tflops": 312.0,
        "phases": {},
    }
    assert gpu["asked"] == "GPU-ab-cd"


def test_on_a_gpu_without_a_counter(gpu: dict[str, Any]) -> None:
    gpu["energy_mj"] = None
    report = Meter(torch.device("cuda")).report()
    assert report["energy_wh"] is None
    assert report["energy_source"] == "none"


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


def test_phases_on_a_gpu(gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    meter = Meter(torch.device("cuda"))
    gpu["energy_mj"] += 3_600_000  # before the first phase
    meter.begin("train")
    clock.now += 10
    gpu["energy_mj"] += 7_200_000
    meter.add(tokens=5_000, flops=312e12)
    meter.begin("score")
    clock.now += 5
    gpu["energy_mj"] += 360_000
    meter.add(requests=200)
    report = meter.report()
    assert report["energy_wh"] == 3.1
    assert report["phases"]["train"] == {
        "seconds": 10.0, "gpu_s": 10.0, "energy_wh": 2.0, "tokens": 5000, "tokens_per_s": 500.0, "requests": None,
        "requests_per_s": None, "tflops": 31.2, "mfu": 0.1,
    }  # fmt: skip
    assert report["phases"]["score"]["energy_wh"] == 0.1
    assert report["phases"]["score"]["requests_per_s"] == 40.0
    assert report["phases"]["score"]["mfu"] is None


class FirstOfTwo(Ranks):
    """The first of two ranks, without the other one."""

    def gather(self, value: Any) -> list[Any]:
        """Return the value, and one of the other rank that is twice as large."""
        return [value, tuple(2 * part for part in value) if isinstance(value, tuple) else 2 * value]


def test_phases_on_two_gpus(gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    meter = Meter(torch.device("cuda", 0), ranks=FirstOfTwo(0, 2))
    meter.begin("train")
    clock.now += 10
    gpu["energy_mj"] += 3_600_000  # both read this counter
    meter.add(tokens=5_000, flops=312e12)
    report = meter.report()
    assert (report["gpus"], report["peak_memory_gb"], report["peak_tflops"]) == (2, 6.0, 624.0)
    assert report["energy_wh"] == 2.0
    train = report["phases"]["train"]
    assert (train["gpu_s"], train["energy_wh"], train["tokens_per_s"], train["mfu"]) == (20.0, 2.0, 500.0, 0.05)


def test_positions_of_all_ranks_are_scored_ones() -> None:
    model = torch.nn.Module()
    model.transformer = torch.nn.ModuleDict({"wte": torch.nn.Embedding(10, 4)})
    model.lm_head = torch.nn.Linear(4, 10, bias=False)
    model.config = SimpleNamespace(n_expert=0)
    meter = Meter(torch.device("cpu"), ranks=FirstOfTwo(0, 2))
    meter.begin("score")
    with meter.scoring(model):
        model.lm_head(model.transformer["wte"](torch.zeros(2, 3, dtype=torch.long))[:, -1])
    assert meter.report()["phases"]["score"]["tokens"] == 6 + 12


def test_without_bfloat16_there_is_no_share_of_its_peak(gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    meter = Meter(torch.device("cuda"), bfloat16=False)
    meter.begin("train")
    clock.now += 1
    meter.add(flops=1e12)
    assert meter.report()["phases"]["train"]["tflops"] == 1.0
    assert meter.report()["phases"]["train"]["mfu"] is None


def test_nor_for_a_phase_in_float32(gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    meter = Meter(torch.device("cuda"), in_float32=["score"])
    for phase in ("train", "score"):
        meter.begin(phase)
        clock.now += 1
        meter.add(flops=1e12)
    phases = meter.report()["phases"]
    assert [phases[name]["tflops"] for name in phases] == [1.0, 1.0]
    assert phases["train"]["mfu"] > 0
    assert phases["score"]["mfu"] is None


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989), ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L40S", 362), ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", None), ("Tesla V100-SXM2-32GB", None),
    ],
)  # fmt: skip
def test_peaks(name: str, tflops: float | None) -> None:
    assert peak_flops(name) == (None if tflops is None else tflops * 1e12)


def write_rapl(folder: Path, *values: int) -> None:
    for number, value in enumerate(values):
        for name in (f"intel-rapl:{number}", f"intel-rapl:{number}:0"):  # a package, and a part of it
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / "energy_uj").write_text(str(value))
            (folder / name / "max_energy_range_uj").write_text("36000000000")


def test_the_counters_of_the_processors(no_rapl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    write_rapl(no_rapl, 30_000_000_000, 0)
    meter = Meter(torch.device("cpu"))
    assert meter.counts_energy
    meter.begin("train")
    write_rapl(no_rapl, 35_000_000_000, 3_600_000_000)
    clock.now += 60
    meter.sample()
    write_rapl(no_rapl, 1_000_000_000, 3_600_000_000)  # the first has begun again at zero
    report = meter.report()
    assert report["energy_source"] == "rapl"
    assert report["energy_wh"] == pytest.approx((7 + 3.6) / 3.6, abs=1e-5)
    assert report["phases"]["train"]["energy_wh"] == report["energy_wh"]


def test_weights_and_positions_are_those_of_the_model() -> None:
    from litgpt.lora import GPT, Config, merge_lora_weights

    shape = {"n_layer": 2, "n_head": 2, "n_embd": 8, "intermediate_size": 16, "vocab_size": 24, "padded_vocab_size": 24}
    config = Config(
        block_size=16, bias=False, norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP", rotary_percentage=1.0,
        lora_r=2, lora_alpha=4, lora_query=True, lora_value=True, **shape,
    )  # fmt: skip
    model = GPT(config)
    weights = Weights.of(model)
    assert weights.trunk == 2 * (3 * 8 * 8 + 8 * 8 + 3 * 8 * 16)
    assert weights.head == 8 * 24
    assert weights.adapter == sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    assert weights.training_flops(10) == 10 * (4 * (weights.trunk + weights.head) + 6 * weights.adapter)
    merge_lora_weights(model)
    meter = Meter(torch.device("cpu"))
    meter.begin("score")
    with meter.scoring(model):
        model(torch.zeros(3, 5, dtype=torch.int64))
    model(torch.zeros(3, 5, dtype=torch.int64))  # not counted
    assert meter.report()["phases"]["score"]["tokens"] == 15
