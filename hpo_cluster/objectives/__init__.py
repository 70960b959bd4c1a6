"""What is optimised: each objective is its typed settings, the program in ``jobs/`` and the meaning of its result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from hpo_cluster.errors import ConfigError
from hpo_cluster.objectives.base import Objective
from hpo_cluster.objectives.command import CommandObjective
from hpo_cluster.objectives.function import FunctionObjective
from hpo_cluster.objectives.lora.settings import LoraObjective
from hpo_cluster.objectives.synthetic import SyntheticObjective
from hpo_cluster.settings import faults_of
from hpo_cluster.text import did_you_mean

#: Every objective by the name that `objective.kind` gives it.
OBJECTIVES: dict[str, type[Objective]] = {
    "lora": LoraObjective,
    "command": CommandObjective,
    "function": FunctionObjective,
    "synthetic": SyntheticObjective,
}


def parse_objective(data: Mapping[str, Any]) -> Objective:
    """The objective of plain data, as it stands in ``campaign.yaml``: its kind and its settings.

    Raises:
        ConfigError: with every fault of every setting.
    """
    kind = data.get("kind")
    if kind not in OBJECTIVES:
        close = did_you_mean(str(kind), OBJECTIVES)
        raise ConfigError([f"objective.kind={kind!r} is unknown; {close}accepted: {', '.join(OBJECTIVES)}"])
    try:
        return OBJECTIVES[kind].model_validate(dict(data))
    except ValidationError as error:
        raise ConfigError([str(fault) for fault in faults_of(error, OBJECTIVES[kind], "objective")]) from error
