from __future__ import annotations

import pytest

from hpo_cluster.driver.failures import Failures
from hpo_cluster.trial import ErrorKind, State


def test_every_kind_of_failure_has_its_policy() -> None:
    assert set(Failures.model_fields) == {str(kind) for kind in ErrorKind}


@pytest.mark.parametrize(
    ("kinds", "verdict"),
    [
        (["vanished"], None),
        (["vanished", "node"], None),
        (["vanished", "node", "walltime"], State.FAILED),
        (["preempted"] * 9, None),
        (["preempted", "vanished", "preempted", "vanished"], None),
        (["vanished", "diverged"], State.DIVERGED),
        (["out_of_memory"], State.INFEASIBLE),
        (["code"], State.FAILED),
        (["unheard_of"], State.FAILED),
    ],
)
def test_verdicts(kinds: list[str], verdict: State | None) -> None:
    assert Failures().verdict(kinds, retries=2) is verdict


def test_a_policy_can_be_changed() -> None:
    assert Failures(preempted="failed").verdict(["preempted"], retries=2) is State.FAILED
    assert Failures(code="retry").verdict(["code"], retries=1) is None


def test_a_program_that_has_worked_elsewhere_fails_because_of_the_configuration() -> None:
    assert Failures().verdict(["code"], retries=2, others_completed=True) is State.INFEASIBLE
    assert Failures(code="failed").verdict(["code"], retries=2, others_completed=True) is State.FAILED
    assert Failures().verdict(["bad_data"], retries=2, others_completed=True) is State.FAILED
