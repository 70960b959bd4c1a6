"""The packages of the job are imported without what they bring along, and what they bring along stays usable."""

import json
import subprocess
import sys

from hpo_cluster.objectives.lora.imports import placeholders

CHECK = """
import json, sys
from hpo_cluster.objectives.lora.imports import import_packages
import_packages()
from hpo_cluster.objectives.lora import adapter, checks, language_model, tasks, tokenized_data  # as a job
import litgpt.data.base
heavy = [name for name in ("torchmetrics", "sklearn", "scipy.signal") if name in sys.modules]
from transformers import AutoModelForCausalLM, AutoTokenizer  # what a task of one's own may want
from lightning import Fabric
from litgpt.finetune import lora
from torchmetrics import RunningMean
from sklearn.metrics import f1_score
mean = RunningMean(window=2)
mean.update(3.0)
Fabric(devices=1, accelerator="cpu", precision="32-true").launch()
print(json.dumps([heavy, float(mean.compute()), float(f1_score([1, 0], [1, 0]))]))
"""


def test_unused_packages_are_not_imported_and_can_be_later() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", CHECK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[], 3.0, 1.0]


def test_what_is_imported_already_stays() -> None:
    with placeholders(["json"]):
        import json as inside
    assert inside is json


def test_a_placeholder_gives_classes_and_goes() -> None:
    with placeholders(["wave"]):
        sys.modules.pop("wave", None)
        from wave import Wave_read

        assert isinstance(Wave_read, type)
        assert not hasattr(sys.modules["wave"], "__version__")
    assert "wave" not in sys.modules
    from wave import open as real

    assert callable(real)
