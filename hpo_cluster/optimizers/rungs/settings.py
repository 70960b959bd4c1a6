"""The settings of rungs: where evaluations are looked at early, and by which rule they go on."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from hpo_cluster.fidelity import Kind, Ladder, as_share, geometric
from hpo_cluster.settings import Settings

Share: TypeAlias = Annotated[float, BeforeValidator(as_share), Field(gt=0, le=1)]


class Fidelity(Settings):
    """Whether evaluations are looked at early, where, and who goes on."""

    kind: Kind = Field(
        "off",
        description="what a rung is a share of: steps of the training, rows of the training data (data), items of each "
        "task (items), or share: a command or function reads it; off: every evaluation is whole",
    )
    low: Share = Field(
        1 / 9, description="share of the lowest rung, such as 1/9; the others are eta times the one below"
    )
    eta: float = Field(3.0, gt=1, description="of the trials at a rung, one in eta goes on")
    rungs: tuple[Share, ...] = Field(
        (), description="the rungs one by one, such as [1/9,1/3,1], in place of low and eta"
    )
    rule: Literal["careful", "asha", "median", "all"] = Field(
        "careful",
        description="who goes on: asha: the best 1/eta of those at the rung so far; careful: more where the rung is "
        "found to say little about those above; median: who is not below the median there; all: everybody (rungs are "
        "only recorded)",
    )
    linger_s: float = Field(5.0, ge=0, description="seconds that a job waits at a rung for the decision before it ends")
    keep: Literal["promotable", "none"] = Field(
        "promotable", description="checkpoints of paused trials that are kept: those that may come back, or none"
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.rungs:
            if list(self.rungs) != sorted(set(self.rungs)) or self.rungs[-1] != 1 or len(self.rungs) < 2:
                raise ValueError(
                    "fidelity.rungs: give two or more shares in increasing order, the last one 1: [1/9,1/3,1]"
                )
        elif self.kind != "off" and self.low >= 1:
            raise ValueError("fidelity.low: must be below 1: a rung below the whole evaluation, such as 1/9")
        return self

    @property
    def ladder(self) -> Ladder | None:
        """The rungs; None if every evaluation is whole."""
        if self.kind == "off":
            return None
        return Ladder(self.kind, self.rungs or geometric(self.low, self.eta))

    def identity(self) -> dict[str, Any]:
        """Return the rungs as a campaign's identity and the first event of its journal name them; nothing without."""
        return {} if self.ladder is None else {"fidelity": self.ladder.to_json()}
