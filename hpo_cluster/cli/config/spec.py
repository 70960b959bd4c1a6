"""The campaign that a configuration describes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hpo_cluster.cli.config.schema import Config
    from hpo_cluster.driver.spec import CampaignSpec


def campaign_spec(
    config: Config, overrides: Sequence[str] = (), *, take_over: bool = False, other_places: bool = False
) -> CampaignSpec:
    """Return the campaign of a configuration, ready to be opened."""
    from hpo_cluster.driver.spec import make_spec

    settings = config.settings
    return make_spec(
        config.campaign_dir,
        space=config.space,
        objective=config.objective,
        optimizer=config.optimizer,
        seed=settings.seed,
        launcher=config.launcher,
        operation=config.operation,
        storage_dir=settings.storage_dir,
        resolve=config.resolve,
        fidelity=config.fidelity,
        tracking=config.tracking,
        warm_start=settings.warm_start,
        warm_start_other_objective=settings.warm_start_other_objective,
        warm_start_columns=settings.warm_start_columns,
        warm_start_skip_bad=settings.warm_start_skip_bad,
        overrides=tuple(overrides),
        code=settings.code,
        take_over=take_over,
        other_places=other_places,
    )
