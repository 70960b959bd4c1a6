"""The contestants: every optimizer of the registry with its defaults, variants of some, and other libraries.

A contestant's name is ``optimizer`` or ``optimizer[setting=value,...]`` for ours, and ``peer:NAME`` for the libraries
driven by their own interface. What is not installed is left out with a message.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import re
from pathlib import Path
from typing import Any

import hpo_cluster
from benchmarks.optimizers.memory import MemoryCampaign
from benchmarks.optimizers.peers import PEERS
from benchmarks.optimizers.simulate import Contestant
from hpo_cluster.optimizers.registry import OPTIMIZERS, make_optimizer
from hpo_cluster.space import Configuration, Space

#: Settings of ours that take part beside the defaults.
VARIANTS = (
    "bo[outcome=raw]",
    "bo[outcome=clip]",
    "bo[outcome=winsor]",
    "optuna[sampler=gp]",
    "optuna[sampler=cmaes]",
    "optuna[sampler=nsga2]",
    "nevergrad[algorithm=TwoPointsDE]",
    "nevergrad[algorithm=OnePlusOne]",
)

#: Libraries whose versions belong to a run, by optimizer; those of ours always have numpy and scipy.
LIBRARIES = {
    "optuna": ("optuna", "torch"),
    "nevergrad": ("nevergrad",),
    "nomad": ("PyNomadBBO",),
}
#: Those of the registry that are other libraries: they count among the peers.
MODULES = {"optuna": "optuna", "nevergrad": "nevergrad", "nomad": "PyNomad"}


class Ours:
    """An optimizer of the registry, asked with a history as in a campaign.

    Args:
        name: a contestant's name, without ``peer:``.
        space: of the problem.
        budget: number of trials to come, which designs and some libraries plan for.
        workers: trials at once, which some libraries plan for.
        seed: of the campaign.
    """

    def __init__(self, name: str, space: Space, budget: int, workers: int, seed: int) -> None:
        key, settings = parse(name)
        fields = OPTIMIZERS[key].settings.model_fields
        open_settings = {"budget": budget, "workers": max(workers, 2), **({"points": budget} if key == "lhs" else {})}
        settings = {k: v for k, v in open_settings.items() if k in fields} | settings
        self.optimizer = make_optimizer(key, space, seed, **settings)
        self.campaign = MemoryCampaign(space)
        self.number: dict[int, int] = {}  # of the trial in the history: rows that need no evaluation have one too

    def ask(self, trial: int) -> Configuration | None:
        """Return the proposal of the optimizer; rows without a job go into the history."""
        ask = self.optimizer.ask(self.campaign.history(), 1)
        numbers = self.campaign.take(ask)
        if not numbers:
            return None
        self.number[trial] = numbers[0]
        return dict(ask.proposals[0].parameters)

    def tell(self, trial: int, target: float) -> None:
        """Complete the row of the trial."""
        self.campaign.complete(self.number[trial], target)


def parse(name: str) -> tuple[str, dict[str, Any]]:
    """Return optimizer and settings of ``optimizer[setting=value,...]``."""
    match = re.fullmatch(r"(\w+)(?:\[(.*)\])?", name)
    if not match:
        raise ValueError(f"{name!r} is no contestant's name; it is optimizer[setting=value,...] or peer:NAME")
    pairs = [pair.split("=", 1) for pair in (match[2] or "").split(",") if pair]
    return match[1], {key: _literal(value) for key, value in pairs}


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval({"true": "True", "false": "False", "null": "None"}.get(text, text))
    except (ValueError, SyntaxError):
        return text


def names() -> list[str]:
    """Return all contestants' names: the registry's first, then variants, then other libraries."""
    ours = [name for name, entry in OPTIMIZERS.items() if not entry.needs_fidelity]
    return [*ours, *(v for v in VARIANTS if parse(v)[0] in OPTIMIZERS), *(f"peer:{peer}" for peer in PEERS)]


def missing(name: str) -> str:
    """Return why a contestant cannot take part on this machine; empty if it can."""
    if name.startswith("peer:"):
        peer = PEERS.get(name.removeprefix("peer:"))
        if peer is None:
            return f"{name}: is unknown; there are {', '.join(PEERS)}"
        module, install = peer.module, peer.install
    else:
        key = parse(name)[0]
        if key not in OPTIMIZERS:
            return f"{name}: is unknown; there are {', '.join(OPTIMIZERS)}"
        module, install = MODULES.get(key, "hpo_cluster"), "'.[peers]'"
    absent = importlib.util.find_spec(module) is None
    return f"{name}: left out, {module} is not installed (pip install {install})" if absent else ""


def make(name: str, space: Space, budget: int, workers: int, seed: int) -> Contestant:
    """Return the contestant of that name."""
    if name.startswith("peer:"):
        contestant: Contestant = PEERS[name.removeprefix("peer:")].make(space, budget, workers, seed)
        return contestant
    return Ours(name, space, budget, workers, seed)


def versions(name: str) -> dict[str, str]:
    """Return what a run depends on besides its arguments: versions of libraries, and of this project's modules."""
    if name.startswith("peer:"):
        libraries: tuple[str, ...] = PEERS[name.removeprefix("peer:")].libraries
        return {library: importlib.metadata.version(library) for library in libraries}
    key = parse(name)[0]
    libraries = ("numpy", "scipy", *LIBRARIES.get(key, ()))
    return {library: importlib.metadata.version(library) for library in libraries} | {"code": _code(key)}


def _code(key: str) -> str:
    """Return a digest of the optimizer's module and of the modules of `hpo_cluster` that it imports."""
    package = Path(hpo_cluster.__file__).parent
    found: dict[str, str] = {}
    queue = [OPTIMIZERS[key].optimizer.__module__]
    while queue:
        module = queue.pop()
        path = package.joinpath(*module.split(".")[1:]).with_suffix(".py")
        if module in found or not path.is_file():
            continue
        found[module] = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(found[module])):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hpo_cluster."):
                queue.append(str(node.module))
    text = "\0".join(found[module] for module in sorted(found))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
