"""What can be tried: parameters, constraints, and their map to the unit cube."""

from hpo_cluster.space.parameters import PARAMETER_FIELDS, Categorical, Float, Integer, Parameter, Prior, Value
from hpo_cluster.space.space import SPACE_KEYS, Configuration, Space, parameter_names

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
