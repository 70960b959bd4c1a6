"""A real Slurm and a real OAR for the tests of this folder, which `make test-cluster` starts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from clusters import CLUSTERS, Cluster
from on_a_cluster import CampaignOnACluster
from support import drivers

from hpo_cluster.launchers import LAUNCHERS

MOST_TRIALS = 12


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test once on each scheduler, or on the one that it is marked `only` for."""
    if "cluster" in metafunc.fixturenames:
        only = metafunc.definition.get_closest_marker("only")
        kinds = [kind for kind in CLUSTERS if kind in LAUNCHERS and (only is None or kind in only.args)]
        metafunc.parametrize("cluster", kinds, indirect=True)


@pytest.fixture(scope="session")
def clusters() -> dict[str, Cluster]:
    """The clusters that this process has started."""
    return {}


@pytest.fixture
def cluster(request: pytest.FixtureRequest, clusters: dict[str, Cluster]) -> Iterator[Cluster]:
    """A cluster with nothing in its queue, whole again afterwards."""
    kind = request.param
    if kind not in clusters:
        clusters[kind] = CLUSTERS[kind]()
    cluster = clusters[kind]
    yield cluster
    cluster.mend()
    cluster.cancel_all()


@pytest.fixture
def campaign(cluster: Cluster) -> Iterator[Callable[..., CampaignOnACluster]]:
    """Makes campaigns, and ends what is left of them."""
    made: list[CampaignOnACluster] = []

    def make(**options: Any) -> CampaignOnACluster:
        made.append(CampaignOnACluster(cluster, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The parameters of each trial, from a campaign that nothing happened to."""
    directory = tmp_path_factory.mktemp("reference") / "c"
    assert drivers.run(directory, sleep=0, operation={"budget": MOST_TRIALS}) == 0
    return [parameters for _, parameters, *_ in drivers.trials(directory)]
