"""The packages of the job are imported without what they bring along, and what they bring along stays usable."""

import importlib.util
import json
import subprocess
import sys
from importlib import import_module

import pytest

from hpo_cluster.objectives.lora.imports import placeholders

CHECK = """
import json, sys
from hpo_cluster.objectives.lora.imports import import_packages
import_packages()
import torch
from litgpt.lora import GPT, Config, mark_only_lora_as_trainable
from hpo_cluster.objectives.lora import adapter, checks, checkpoint, language_model, tasks, tokenized_data  # as a job
from hpo_cluster.objectives.lora.adamw import AdamW, Decay
from hpo_cluster.objectives.lora.packed_forward import PackedModel
from hpo_cluster.objectives.lora.packing import passes
import litgpt.data.base
model = GPT(Config.from_name("pythia-14m", n_layer=1, lora_r=2, lora_query=True))
mark_only_lora_as_trainable(model)
row = {"input_ids": torch.arange(9), "labels": torch.arange(9)}
PackedModel(model, torch.enable_grad, half=False).loss(passes([[row]], 1.0, 99)[0], backward=True)
AdamW([each for each in model.parameters() if each.requires_grad], Decay()).step(0.1)
names = ("torchmetrics", "sklearn", "scipy.io", "lightning.pytorch", "torch._dynamo", "torch._inductor", "sympy",
         "torch.distributed.tensor", "aiohttp", "chardet", "torch.nn.attention.varlen")
heavy = [name for name in names if name in sys.modules]
from transformers import AutoModelForCausalLM, AutoTokenizer  # what a task of one's own may want
from lightning import Fabric
from litgpt.finetune import lora
from torchmetrics import RunningMean
from sklearn.metrics import f1_score
import scipy.io
mean = RunningMean(window=2)
mean.update(3.0)
Fabric(devices=1, accelerator="cpu", precision="32-true").launch()
used = [float(mean.compute()), float(f1_score([1, 0], [1, 0])), torch.compile(abs, backend="eager")(-1)]
print(json.dumps([heavy, *used]))
"""


def test_unused_packages_are_not_imported_and_can_be_later() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", CHECK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[], 3.0, 1.0, 1]


def test_what_is_imported_already_stays() -> None:
    with placeholders(["json"], ["json"]):
        import json as inside
    assert inside is json


def test_a_placeholder_gives_classes_and_goes() -> None:
    sys.modules.pop("wave", None)
    with placeholders(["wave"]):
        from wave import Wave_read

        assert isinstance(Wave_read, type)
        assert not hasattr(sys.modules["wave"], "__version__")
    assert "wave" not in sys.modules
    from wave import open as real

    assert callable(real)


def test_what_is_optional_is_missing_for_a_while() -> None:
    sys.modules.pop("wave", None)
    with placeholders([], ["wave"]):
        assert importlib.util.find_spec("wave") is not None
        with pytest.raises(ModuleNotFoundError, match="wave is left out"):
            import_module("wave")
    assert callable(import_module("wave").open)


def test_a_module_in_a_package_is_found_again() -> None:
    sys.modules.pop("xml.dom.minidom", None)
    with placeholders(["xml.dom.minidom"]):
        assert isinstance(import_module("xml.dom.minidom").parse, type)
    assert not hasattr(import_module("xml.dom"), "minidom")
    assert callable(import_module("xml.dom.minidom").parse)
