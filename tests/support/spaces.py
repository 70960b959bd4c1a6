"""Search spaces with every kind of parameter, conditions and constraints, to hold the partition algorithms against."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from hpo_cluster.errors import ConfigError
from hpo_cluster.space import Categorical, Float, Integer, Space

SPACES = {
    "real": Space({"x": Float(-5.0, 5.0), "y": Float(1e-6, 1e-1, log=True), "z": Float(0.0, 1.0)}),
    "integer": Space({"rank": Integer(2, 64), "width": Integer(1, 200, log=True), "depth": Integer(1, 12, log=True)}),
    "choices": Space(
        {
            "scheme": Categorical(("a", "b", "c", "d", "e")),
            "bits": Categorical((4, 8, 16, 32), ordered=True),
            "bias": Categorical((False, True)),
        }
    ),
    "mixed": Space(
        {
            "bias": Categorical((False, True)),
            "rank": Integer(1, 10),
            "learning_rate": Float(1e-6, 1e-1, log=True),
            "scheme": Categorical(("a", "b", "c")),
            "dropout": Float(0.0, 0.5),
        }
    ),
    "conditional": Space(
        {
            "warmup": Float(0.0, 0.2, when={"scheme": ["linear", "cosine"]}),
            "scheme": Categorical(("constant", "linear", "cosine")),
            "adapter": Categorical((False, True)),
            "rank": Integer(2, 32, when={"adapter": True}),
        }
    ),
    "constrained": Space(
        {"rank": Integer(1, 16), "alpha": Float(1.0, 32.0), "bits": Categorical((4, 8, 16), ordered=True)},
        ["rank * bits <= 128", "alpha >= rank / 2"],
    ),
    "stepped": Space(
        {
            "epochs": Integer(3, 3),
            "batch": Integer(8, 64, step=8),
            "dropout": Float(0.0, 0.3, step=0.05),
            "schedule": Categorical(("cosine",), when={"batch": [8, 16, 24, 32]}),
            "warmup": Float(0.0, 0.2, when={"schedule": "cosine"}),
            "cooldown": Float(0.0, 1.0, when={"schedule": "linear"}),
            "rank": Integer(2, 10, step=2, when={"epochs": 3, "dropout": [0.15, 0.2, 0.3]}),
        }
    ),
}

PARAMETERS = {
    "real": st.builds(Float, st.sampled_from([-5.0, 0.0]), st.sampled_from([0.7, 5.0])),
    "log": st.just(Float(1e-6, 1e-1, log=True)),
    "integer": st.builds(Integer, st.just(1), st.integers(2, 40)),
    "log_integer": st.builds(Integer, st.just(1), st.integers(2, 300), log=st.just(True)),
    "ordered": st.integers(2, 6).map(lambda n: Categorical(tuple(2**i for i in range(n)), ordered=True)),
    "unordered": st.integers(2, 5).map(lambda n: Categorical(tuple("abcde"[:n]))),
    "switch": st.just(Categorical((False, True))),
    "steps": st.integers(1, 12).map(lambda n: Integer(4, 4 + 4 * n, step=4)),
    "real_steps": st.integers(1, 12).map(lambda n: Float(-0.3, -0.3 + n * 0.1, step=0.1)),
    "fixed": st.sampled_from([Integer(3, 3), Float(0.1, 0.1), Categorical(("only",)), Categorical((16,))]),
}


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Any space of up to four parameters, some of which depend on others or are bound to others by a constraint."""
    kinds = draw(st.lists(st.sampled_from(sorted(PARAMETERS)), min_size=1, max_size=4))
    parameters: dict[str, Any] = {}
    for kind in kinds:
        name, parameter = f"p{len(parameters)}", draw(PARAMETERS[kind])
        parents = [other for other, p in parameters.items() if isinstance(p, Categorical)]
        if parents and draw(st.booleans()):
            parent = draw(st.sampled_from(parents))
            parameter = replace(parameter, when={parent: [parameters[parent].choices[-1]]})
        parameters[name] = parameter
    numbers = [name for name, p in parameters.items() if isinstance(p, Float | Integer)]
    constraints = []
    if numbers and draw(st.booleans()):
        first, last = parameters[numbers[0]], numbers[-1]
        constraints = [f"{numbers[0]} + {last} <= {(first.low + 3 * first.high) / 4 + parameters[last].high / 2:g}"]
    try:
        return Space(parameters, constraints)
    except ConfigError:  # the constraint allows next to nothing
        return Space(parameters)
