"""What can be tried: parameters, constraints, and their map to the unit cube."""

from hpo_cluster.space.categorical import Categorical
from hpo_cluster.space.conditional import Value
from hpo_cluster.space.definition import SPACE_KEYS, parameter_names
from hpo_cluster.space.number import Float, Integer, Prior
from hpo_cluster.space.parameters import PARAMETER_FIELDS, Parameter
from hpo_cluster.space.space import Configuration, Space

__all__ = [
    "PARAMETER_FIELDS",
    "SPACE_KEYS",
    "Categorical",
    "Configuration",
    "Float",
    "Integer",
    "Parameter",
    "Prior",
    "Space",
    "Value",
    "parameter_names",
]
