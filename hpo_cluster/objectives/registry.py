"""The table of objectives: the class of each kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from hpo_cluster.errors import ConfigError
from hpo_cluster.objectives.base import Objective, without
from hpo_cluster.objectives.command import CommandObjective
from hpo_cluster.objectives.elsewhere import ElsewhereObjective
from hpo_cluster.objectives.function import FunctionObjective
from hpo_cluster.objectives.lora.objective import LoraObjective
from hpo_cluster.objectives.surrogate import SurrogateObjective
from hpo_cluster.objectives.synthetic import SyntheticObjective
from hpo_cluster.settings import faults_of
from hpo_cluster.text import instead_of

#: The class of each objective, by its `objective.kind`.
OBJECTIVES: dict[str, type[Objective]] = {
    "lora": LoraObjective,
    "command": CommandObjective,
    "function": FunctionObjective,
    "surrogate": SurrogateObjective,
    "synthetic": SyntheticObjective,
    "elsewhere": ElsewhereObjective,
}


def parse_objective(data: Mapping[str, Any]) -> Objective:
    """Make an objective from the plain data in ``campaign.yaml``: its kind and its settings.

    Raises:
        ConfigError: if the kind is unknown or settings are wrong; it names all faults.
    """
    kind = data.get("kind")
    if kind not in OBJECTIVES:
        raise ConfigError([f"objective.kind={kind!r} is unknown; {instead_of(str(kind), OBJECTIVES)}"])
    try:
        return OBJECTIVES[kind].model_validate(without(data, OBJECTIVES[kind].FORMER))
    except ValidationError as error:
        raise ConfigError([str(fault) for fault in faults_of(error, OBJECTIVES[kind], "objective")]) from error
