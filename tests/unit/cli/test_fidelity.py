"""Group `fidelity` on the command line: what is accepted, recorded and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpo_cluster.cli.config.compose import compose
from hpo_cluster.cli.config.recorded import compose_resume
from hpo_cluster.cli.config.schema import to_plain
from hpo_cluster.driver.spec import OPERATIONAL_FIDELITY
from hpo_cluster.errors import ConfigError
from hpo_cluster.objectives.registry import OBJECTIVES
from hpo_cluster.optimizers import registry

COMMAND = ("objective=command", "objective.command='train {x}'", "space={x: {low: 0.0, high: 1.0}}", "optimizer=random")


@pytest.fixture(autouse=True)
def _any_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an objective itself says of rungs is tested with that objective."""
    for objective in OBJECTIVES.values():
        monkeypatch.setattr(objective, "fidelity_faults", lambda self, ladder, space=None: [])


def faults(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose([*COMMAND, *overrides])
    return caught.value.faults


@pytest.mark.parametrize(
    ("low", "eta", "shares"),
    [
        ("1/9", 3, ("1/9", "1/3", "1")),
        ("1/27", 3, ("1/27", "1/9", "1/3", "1")),
        ("1/9", 2, ("1/9", "2/9", "4/9", "1")),
        ("1/10", 3, ("1/10", "3/10", "1")),
        ("4/5", 3, ("4/5", "1")),
    ],
)
def test_no_rung_lies_just_below_the_top(low: str, eta: float, shares: tuple[str, ...]) -> None:
    ladder = compose([*COMMAND, "fidelity=share", f"fidelity.low={low}", f"fidelity.eta={eta}"]).fidelity.ladder
    assert ladder is not None
    assert ladder.labels == shares


def test_off_by_default_and_then_nothing_is_recorded() -> None:
    config = compose(COMMAND)
    assert config.fidelity.ladder is None
    assert "fidelity" not in config.identity()
    assert to_plain(config)["fidelity"] == {"kind": "off"}
    assert compose([*COMMAND, "fidelity=off"]).identity() == config.identity()


@pytest.mark.parametrize("kind", ["steps", "data", "items", "share"])
def test_rungs_belong_to_the_identity(kind: str) -> None:
    config = compose([*COMMAND, f"fidelity={kind}"])
    assert config.identity()["fidelity"] == {"kind": kind, "rungs": [1 / 9, 1 / 3, 1.0]}
    other = compose([*COMMAND, f"fidelity={kind}", "fidelity.rungs=[1/4,0.5,1]", "fidelity.rule=median"])
    assert other.identity()["fidelity"]["rungs"] == [0.25, 0.5, 1.0]


def test_every_fault_is_named() -> None:
    assert any(fault.startswith("fidelity.eta: fidelity=off has no rungs") for fault in faults("fidelity.eta=4"))
    found = "\n".join(
        faults(
            "fidelity=steps",
            "fidelity.eta=1",
            "fidelity.rule=best",
            "fidelity.lingers=3",
            "+space.goal={low: 0, high: 1}",
        )
    )
    for part in ("fidelity.eta=1", "fidelity.rule='best'", "did you mean fidelity.linger_s?", "space.goal: that name"):
        assert part in found
    assert any("increasing order" in fault for fault in faults("fidelity=steps", "fidelity.rungs=[1/3,1/9,1]"))
    assert any("accepted: at least 2" in fault for fault in faults("fidelity=data", "budget=1"))
    several = faults(
        "fidelity=steps", "objective.metrics=[{name: a, direction: maximize},{name: b, direction: minimize}]"
    )
    assert any("rungs are for one objective" in fault for fault in several)
    assert any("choose with fidelity=NAME" in fault for fault in faults("fidelity.kind=steps"))


def test_an_optimizer_that_decides_at_rungs_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {**registry.OPTIMIZERS, "random": registry.OPTIMIZERS["random"]._replace(needs_fidelity=True)}
    monkeypatch.setattr("hpo_cluster.driver.spec.OPTIMIZERS", entries)
    assert any("add fidelity=steps" in fault for fault in faults())
    compose([*COMMAND, "fidelity=steps"])


def test_what_may_change_when_a_campaign_is_resumed(tmp_path: Path) -> None:
    config = compose([*COMMAND, "fidelity=steps"])
    operation: dict[str, Any] = {
        **config.operation.model_dump(mode="json"),
        "fidelity": config.fidelity.model_dump(mode="json", include=set(OPERATIONAL_FIDELITY)),
    }

    def resumed(*overrides: str) -> Any:
        return compose_resume(config.identity(), operation, overrides, campaign_dir=tmp_path / "c")

    again = resumed("fidelity.eta=2", "fidelity.keep=none", "fidelity.linger_s=1")
    assert again.identity()["fidelity"] == config.identity()["fidelity"]
    assert (again.fidelity.eta, again.fidelity.keep, again.fidelity.rule) == (2, "none", "careful")
    for override in ("fidelity.rungs=[0.5,1]", "fidelity.low=0.5", "fidelity=data"):
        with pytest.raises(ConfigError, match="belongs to the campaign's identity"):
            resumed(override)
    plain = compose(COMMAND)
    with pytest.raises(ConfigError, match="belongs to the campaign's identity"):
        compose_resume(plain.identity(), {}, ["fidelity.eta=2"], campaign_dir=tmp_path / "d")
