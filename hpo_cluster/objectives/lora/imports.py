"""Import the packages of the fine-tuning job without what they would load and the job never uses.

LitGPT imports lightning, which imports torchmetrics to look at its version, and with it scipy's signals and the models
of transformers. transformers imports scikit-learn for one curve of its text generation. These were a quarter of the CPU
time of a small evaluation.
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

#: Packages that are imported by others for parts that the job does not use.
UNUSED = ("torchmetrics", "sklearn")


class _Placeholder(ModuleType):
    """Stands for a module: every name that is imported from it is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = type(name, (), {"__module__": self.__name__})
        setattr(self, name, value)
        return value


class _PlaceholderFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a placeholder for every module of some packages."""

    def __init__(self, packages: Sequence[str]) -> None:
        self._packages = packages

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in self._packages:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Placeholder(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Leave the module empty."""


@contextlib.contextmanager
def placeholders(packages: Sequence[str] = UNUSED) -> Iterator[None]:
    """Within the context, importing one of the packages gives a placeholder.

    Packages that are imported already stay as they are. Afterwards the real ones can be imported.
    """
    finder = _PlaceholderFinder([name for name in packages if name not in sys.modules])
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, _Placeholder)]:
            del sys.modules[name]


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
    gc.disable()  # the million objects of these imports live on: looking for garbage among them takes a second
    try:
        with placeholders():
            for name in PACKAGES:
                importlib.import_module(name)
        gc.freeze()
    finally:
        gc.enable()
