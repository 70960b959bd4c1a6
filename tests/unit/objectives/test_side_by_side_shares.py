"""Which cores the attempts of one job get."""

from __future__ import annotations

from hpo_cluster.objectives.side_by_side import share_cores


def test_threads_of_one_physical_core_go_to_one_attempt() -> None:
    cores = {*range(8), *range(64, 72)}

    def listed(core: int) -> str:
        return f"{core % 64},{core % 64 + 64}\n"

    lanes = [share_cores(lane, cores, 2, 128, listed) for lane in (0, 1)]
    assert lanes == [{0, 1, 2, 3, 64, 65, 66, 67}, {4, 5, 6, 7, 68, 69, 70, 71}]


def test_cores_without_threads_are_shared_in_order() -> None:
    assert [share_cores(lane, {2, 3, 5, 7}, 2, 16, str) for lane in (0, 1)] == [{2, 3}, {5, 7}]
    assert share_cores(1, {4, 5, 6}, 2, 16, lambda core: "") == {5}


def test_a_job_that_has_its_node_alone_is_not_bound() -> None:
    assert share_cores(0, {0, 1}, 2, 2, str) == set()
    assert share_cores(0, {0}, 2, 8, str) == set()
