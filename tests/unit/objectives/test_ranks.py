"""How items are divided among ranks, and that one rank exchanges nothing."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
import torch

from hpo_cluster.objectives.lora.ranks import Ranks, deal


@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_shares_are_complete_ordered_and_of_similar_cost(count: int) -> None:
    rng = random.Random(count)
    costs = [rng.randint(20, 400) for _ in range(64)]
    shares = deal(costs, count)
    assert sorted(item for share in shares for item in share) == list(range(64))
    assert all(share == sorted(share) for share in shares)
    sums = [sum(costs[item] for item in share) for share in shares]
    assert max(sums) <= 1.03 * sum(costs) / count
    assert deal(costs, count) == shares
    assert [Ranks(rank, count).mine(costs) for rank in range(count)][1:] == shares[1:]


def test_fewer_items_than_ranks() -> None:
    assert deal([5, 9], 4) == [[1], [0], [], []]
    assert deal([], 2) == [[], []]


def test_one_rank_gives_back_what_it_is_given() -> None:
    alone, loss = Ranks(), torch.tensor(2.0)
    weight = torch.nn.Parameter(torch.ones(2))
    alone.join(torch.device("cpu"))
    alone.copy([weight])
    assert alone.add_up(loss, [weight]) is loss
    assert weight.grad is None
    assert list(alone.mine([3, 1])) == [0, 1]
    assert (alone.scatter(["a"]), alone.gather("b"), alone.from_first(lambda: "c")) == ("a", ["b"], "c")
    assert alone.first


def test_the_process_that_starts_ranks_needs_no_torch() -> None:
    code = "import sys, hpo_cluster.objectives.lora.rank_processes; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
