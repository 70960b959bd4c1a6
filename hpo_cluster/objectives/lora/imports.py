"""Import the packages of the fine-tuning job without what they would load and the job never uses.

LitGPT imports lightning, which imports torch's compiler to recognise a compiled model, and torchmetrics to look at its
version, and with it scipy's signals and the models of transformers. transformers imports scikit-learn for one curve of
its text generation, and torch's distributed tensors for a tool to debug models. These were a third of the CPU time of a
small evaluation.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

#: Modules that are imported by others for parts that the job does not use.
UNUSED = (
    "torchmetrics",
    "sklearn",
    "lightning.pytorch",
    "torch._dynamo",
    "torch._inductor",
    "transformers.model_debugging_utils",
)

#: Modules that others do without if they are missing: `datasets` without another way to the network and without reading
#: MATLAB's files, requests with a detector of encodings that loads faster, httpx without its command line.
OPTIONAL = ("aiohttp", "chardet", "httpx._main", "scipy.io")


class _Placeholder(ModuleType):
    """Stands for a module: every name that is imported from it is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = type(name, (), {"__module__": self.__name__})
        setattr(self, name, value)
        return value


class _PlaceholderFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a placeholder for some modules and those inside of them, and fails to import some others."""

    def __init__(self, unused: Sequence[str], optional: Sequence[str]) -> None:
        self._unused, self._optional = unused, optional

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if _is_in(fullname, self._unused) or _is_in(fullname, self._optional):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        if _is_in(spec.name, self._optional):
            raise ModuleNotFoundError(f"{spec.name} is left out", name=spec.name)
        return _Placeholder(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Leave the module empty."""


def _is_in(fullname: str, modules: Sequence[str]) -> bool:
    return any(fullname == name or fullname.startswith(f"{name}.") for name in modules)


@contextlib.contextmanager
def placeholders(unused: Sequence[str] = UNUSED, optional: Sequence[str] = OPTIONAL) -> Iterator[None]:
    """Within the context, importing a module of `unused` gives a placeholder, and one of `optional` fails.

    Modules that are imported already stay as they are. Afterwards the real ones can be imported.
    """
    new = ([name for name in names if name not in sys.modules] for names in (unused, optional))
    finder = _PlaceholderFinder(*new)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, _Placeholder)]:
            parent, _, last = name.rpartition(".")
            if vars(sys.modules.get(parent, finder)).get(last) is sys.modules.pop(name):
                delattr(sys.modules[parent], last)


#: What `import_packages` imports.
PACKAGES = (
    "litgpt.lora",
    "litgpt.data.base",
    "lm_eval.evaluator",
    "lm_eval.models.utils",
    "transformers.models.auto.tokenization_auto",
)


def import_packages() -> None:
    """Import torch, LitGPT, lm-eval and the tokenizers of transformers."""
    if all(name in sys.modules for name in PACKAGES):  # an earlier attempt of this process imported them
        return
    gc.disable()  # the million objects of these imports live on: looking for garbage among them takes a second
    try:
        with placeholders():
            for name in PACKAGES:
                importlib.import_module(name)
            _prepare_reading_json()
        gc.freeze()
    finally:
        gc.enable()


def _prepare_reading_json() -> None:
    """Have `datasets` do now what it does when it first reads a JSON file: look for functions that open files."""
    from datasets import DownloadConfig
    from datasets.streaming import extend_module_for_streaming

    extend_module_for_streaming("datasets.packaged_modules.json.json", DownloadConfig())
