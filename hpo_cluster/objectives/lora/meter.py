"""Measure what one attempt uses of its device: time, peak memory, energy, and the share of the peak FLOP rate.

The model-FLOPs utilisation (MFU) of a phase is ``FLOPs / (seconds * peak)``, where ``peak`` is what the device's maker
states for dense bfloat16 matrix products. The FLOPs are those that the model needs, 2 for each weight and token:

| phase | FLOPs |
|---|---|
| train | tokens * (4 * base weights + 6 * adapter weights): frozen weights need no gradient of their own |
| score | 2 * (positions * weights without the head + scored positions * weights of the head) |

Recomputation, padding in training, and the products inside the attention are not counted: at the lengths of Alpaca and
HellaSwag the latter are about 1 % for a model of 1B. Positions of scoring are those that go through the model, and so
hold the padding there is.

With several GPUs, FLOPs, tokens, energy and the peak rate are those of all of them; memory is that of the GPU that used
the most.
"""

from __future__ import annotations

import contextlib
import re
import resource
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hpo_cluster.objectives.lora.ranks import Ranks

#: Dense bfloat16 TFLOP/s by a part of the device's name; the first that fits counts.
PEAK_TFLOPS = {
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H200": 989,
    "GH200": 989,
    "A100": 312,
    "A800": 312,
    "A40": 149.7,
    "A30": 165,
    "A10": 125,
    "A6000": 154.8,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "RTX 4090": 165.2,
    "RTX 3090": 71,
}
RAPL_DIR = Path("/sys/class/powercap")
#: Seconds between two readings of counters that begin again at zero when they are full, after minutes.
SAMPLE_S = 10.0


def peak_flops(device_name: str) -> float | None:
    """Return the FLOP/s of a device in bfloat16; None if they are not known, and for a MIG slice, a part of one."""
    if "MIG" in device_name.split():
        return None
    found = (rate for part, rate in PEAK_TFLOPS.items() if part in device_name)
    return next((rate * 1e12 for rate in found), None)


@dataclass(frozen=True)
class Weights:
    """Weights of the matrices that each token is multiplied with.

    Attributes:
        trunk: all but the head's.
        head: of the language-model head.
        adapter: of the LoRA matrices.
    """

    trunk: int
    head: int
    adapter: int

    @classmethod
    def of(cls, model: Any) -> Weights:
        """Return those of a LitGPT model; of a mixture of experts, those of the experts that a token goes through."""
        config = model.config
        share = config.n_expert_per_token / config.n_expert if config.n_expert else 1.0
        trunk = head = 0.0
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear):
                if name.startswith("lm_head"):
                    head += module.weight.numel()
                else:
                    trunk += module.weight.numel() * (share if ".experts." in name else 1.0)
        adapter = sum(
            value.numel() * (share if ".experts." in name else 1.0)
            for name, value in model.named_parameters()
            if "lora_" in name
        )
        return cls(round(trunk), round(head), round(adapter))

    def training_flops(self, tokens: int) -> float:
        """Return the FLOPs to train on so many tokens."""
        return tokens * (4.0 * (self.trunk + self.head) + 6.0 * self.adapter)

    def scoring_flops(self, positions: int, scored: int) -> float:
        """Return the FLOPs of a forward pass of a merged model that computes the head at `scored` positions."""
        return 2.0 * (positions * self.trunk + scored * self.head)


@dataclass
class _Phase:
    seconds: float = 0.0
    energy_wh: float | None = 0.0
    tokens: int = 0
    requests: int = 0
    flops: float = 0.0

    def document(self, *, gpus: int, peak: float | None) -> dict[str, Any]:
        """Return the phase as JSON; what was not counted, or is not known, is null."""

        def rate(amount: float) -> float | None:
            return round(amount / self.seconds, 3) if amount and self.seconds > 0 else None

        flops_per_s = rate(self.flops)
        return {
            "seconds": round(self.seconds, 3),
            "gpu_s": round(self.seconds * gpus, 3),
            "energy_wh": None if self.energy_wh is None else round(self.energy_wh, 6),
            "tokens": self.tokens or None,
            "tokens_per_s": rate(self.tokens),
            "requests": self.requests or None,
            "requests_per_s": rate(self.requests),
            "tflops": None if flops_per_s is None else round(flops_per_s / 1e12, 6),
            "mfu": None if flops_per_s is None or peak is None else round(flops_per_s / peak, 6),
        }


@dataclass
class _Positions:
    through: int = 0
    scored: int = 0


class Meter:
    """Measures from when it is made until `report`, by phases.

    Args:
        device: the device the attempt computes on.
        bfloat16: whether it computes in bfloat16, so that the peak rate is that of bfloat16.
        in_float32: phases that do not.
        ranks: the ranks that share the attempt; rank k computes on GPU k.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        bfloat16: bool = True,
        in_float32: Collection[str] = (),
        ranks: Ranks | None = None,
    ) -> None:
        self._device = device
        self._bfloat16 = bfloat16
        self._in_float32 = in_float32
        self._ranks = ranks or Ranks()
        gpus = self._ranks.count if device.type == "cuda" else 0
        self._gpus = [torch.device("cuda", number) for number in range(gpus)]
        self._counter = _nvml(self._gpus) if gpus else _rapl()
        self._source = "none" if self._counter is None else "nvml" if device.type == "cuda" else "rapl"
        self._began_wh = self._read()
        self._sampled = time.monotonic()
        self._phases: dict[str, _Phase] = {}
        self._current = ("", time.monotonic(), self._began_wh)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            _reset_peak()

    @property
    def counts_energy(self) -> bool:
        """Whether the energy is counted here."""
        return self._began_wh is not None

    def begin(self, phase: str) -> None:
        """End the current phase and begin another one, or go on with it."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        name, began, began_wh = self._current
        now, now_wh = time.monotonic(), self._read()
        if name:
            ended = self._phases[name]
            ended.seconds += now - began
            known = ended.energy_wh is not None and now_wh is not None and began_wh is not None
            ended.energy_wh = ended.energy_wh + now_wh - began_wh if known else None  # type: ignore[operator]
        self._phases.setdefault(phase, _Phase())
        self._current = (phase, now, now_wh)

    def add(self, *, tokens: int = 0, requests: int = 0, flops: float = 0.0) -> None:
        """Add work to the current phase."""
        phase = self._phases[self._current[0]]
        phase.tokens += tokens
        phase.requests += requests
        phase.flops += flops

    def sample(self) -> None:
        """Read the energy counter, at most every 10 s: to be called again and again during long phases."""
        if time.monotonic() - self._sampled >= SAMPLE_S:
            self._sampled = time.monotonic()
            self._read()

    @contextlib.contextmanager
    def scoring(self, model: Any) -> Iterator[None]:
        """Within the context, count the positions that go through a merged LitGPT model, for the current phase.

        On its way out, unless an exception ends it, it adds up the positions of all ranks.
        """
        seen = _Positions()

        def through(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
            seen.through += output[..., 0].numel()

        def scored(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
            seen.scored += output[..., 0].numel()

        hooks = [
            model.transformer.wte.register_forward_hook(through),
            model.lm_head.register_forward_hook(scored),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        through_all, scored_all = map(sum, zip(*self._ranks.gather((seen.through, seen.scored)), strict=True))
        self.add(tokens=through_all, flops=Weights.of(model).scoring_flops(through_all, scored_all))

    def energy(self) -> dict[str, float]:
        """Return ``energy_wh``, what was used until now; nothing if nothing counts it."""
        now = self._read()
        return {} if now is None or self._began_wh is None else {"energy_wh": round(now - self._began_wh, 6)}

    def report(self) -> dict[str, Any]:
        """Return device, ``peak_memory_gb`` (1e9 bytes), ``energy_wh`` with its source, and ``phases``, on all ranks.

        Memory is what torch allocated on a GPU, and the whole process's resident memory on a CPU. Energy is that of the
        whole GPU (NVML) or of all processors of the machine (RAPL), including the share of other processes.
        """
        if self._device.type == "cuda":
            names = [torch.cuda.get_device_name(gpu) for gpu in self._gpus]
            memory = float(torch.cuda.max_memory_allocated(self._device))
        else:
            names = ["CPU"] * self._ranks.count
            memory = _peak()
        energy_wh = self.energy().get("energy_wh")
        if self._current[0]:
            self.begin(self._current[0])
        rates = [peak_flops(name) if self._bfloat16 else None for name in names]
        peak = None if None in rates else sum(rate for rate in rates if rate is not None)
        peaks = {name: None if name in self._in_float32 else peak for name in self._phases}
        gpus = len(self._gpus)
        return {
            "device": self._device.type,
            "device_name": ", ".join(dict.fromkeys(names)),
            "gpus": gpus,
            "peak_memory_gb": round(max(self._ranks.gather(memory)) / 1e9, 6),
            "energy_wh": energy_wh,
            "energy_source": self._source,
            "peak_tflops": None if peak is None else peak / 1e12,
            "phases": {name: phase.document(gpus=gpus, peak=peaks[name]) for name, phase in self._phases.items()},
        }

    def _read(self) -> float | None:
        """Return the counter in watt-hours; None without one."""
        if self._counter is not None:
            with contextlib.suppress(Exception):  # a measurement that fails must not stop the evaluation
                return self._counter()
        return None


def _nvml(gpus: Sequence[torch.device]) -> Callable[[], float] | None:
    """Return a reader of the sum of the GPUs' counters (Wh).

    It returns None without an NVIDIA driver that has one for each of them (a MIG slice has none).
    """
    with contextlib.suppress(Exception):
        import pynvml

        pynvml.nvmlInit()
        # by UUID: CUDA_VISIBLE_DEVICES renumbers torch's devices, not NVML's
        uuids = [f"GPU-{torch.cuda.get_device_properties(gpu).uuid}" for gpu in gpus]
        handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]

        def read() -> float:
            return sum(float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) for handle in handles) / 3.6e6

        read()  # fails here if one has no counter
        return read
    return None


def _reset_peak() -> None:
    """Let the peak memory of this process begin again: an earlier attempt may have needed more."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    """Return the largest resident memory of this process (bytes) since the last `_reset_peak`."""
    match = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return float(match[1]) * 1024 if match else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


@dataclass
class _Rapl:
    """The energy counters of the processors, which begin again at zero when they are full."""

    folders: list[Path]
    last_uj: list[int] = field(default_factory=list)
    total_uj: int = 0

    def __call__(self) -> float:
        """Return the energy since the first reading (Wh)."""
        now = [int((folder / "energy_uj").read_text()) for folder in self.folders]
        for folder, before, value in zip(self.folders, self.last_uj, now, strict=False):
            full = int((folder / "max_energy_range_uj").read_text()) if value < before else 0
            self.total_uj += value - before + full
        self.last_uj = now
        return self.total_uj / 3.6e9


def _rapl() -> Callable[[], float] | None:
    """Return a reader of the processors' counters; None if there are none, or only the administrator may read them."""
    with contextlib.suppress(OSError, ValueError):
        folders = sorted(RAPL_DIR.glob("intel-rapl:[0-9]*"))
        counter = _Rapl([folder for folder in folders if folder.name.count(":") == 1])
        if counter.folders:
            counter()
            return counter
    return None
