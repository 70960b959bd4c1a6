"""The command that plays campaigns through on a simulated cluster, before anything is spent."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpo_cluster.cli.arguments import Arguments, short_path
from hpo_cluster.cli.commands import BAD_END, OK, help_of, say, tell
from hpo_cluster.errors import ConfigError
from hpo_cluster.record.layout import in_campaign_name
from hpo_cluster.text import command_line, counted, instead_of

if TYPE_CHECKING:
    from hpo_cluster.cli.config.schema import Config
    from hpo_cluster.driver.simulate import SimulationSettings
    from hpo_cluster.driver.spec import CampaignSpec
    from hpo_cluster.report.simulation import Run

#: The section of the command's own keys.
OWN = "simulate"
#: The folder of simulated campaigns, in the folder of all campaigns.
FOLDER = "simulated"


def simulate(arguments: Arguments) -> int:
    """Simulate campaigns, print a table and draw a figure."""
    from hpo_cluster.cli.config.sweep import compose_all, expand
    from hpo_cluster.report.simulation import draw, markdown, plain, write_csv

    faults = arguments.faults
    own = [word for word in arguments.words if word.lstrip("+").startswith(f"{OWN}.")]
    words = [word for word in arguments.words if word not in own]
    settings = _settings(own, faults)
    combinations = [words]
    if arguments.option("--multirun"):
        combinations = expand(words, config_dir=arguments.files.get("config_dir"), faults=faults)
    with help_of("simulate"):
        configs = compose_all(combinations, faults=faults, apart=False, **arguments.files)
    folder = _folder(configs)
    labels = _labels(combinations) if len(configs) > 1 else [configs[0].campaign]
    _check(configs, folder)
    for note in dict.fromkeys(note for config in configs for note in config.objective.notes):
        tell(note)
    shutil.rmtree(folder, ignore_errors=True)
    groups: dict[str, list[Run]] = {}
    began, cpu_began, trials = time.monotonic(), time.process_time(), 0
    for label, config in zip(labels, configs, strict=True):
        tell(f"{label}: {counted(settings.repeats, 'campaign')} of {counted(config.operation.budget, 'trial')}")
        groups[label] = list(_repeated(config, settings, folder / in_campaign_name(label).strip("-.")))
        trials += sum(run.ended for run in groups[label])
    took_s, cpu_s = time.monotonic() - began, time.process_time() - cpu_began
    (folder / "simulation.md").write_text(markdown(groups) + "\n", encoding="utf-8")
    write_csv(groups, folder / "simulation.csv")
    draw(groups, folder / "simulation.png", configs[0].objective.metric or "value")
    say(plain(groups))
    say("medians [10th percentile, 90th percentile]")
    say(f"speed      {counted(trials, 'trial')} in {took_s:.1f} s, {trials / max(cpu_s, 1e-9):.0f} in a CPU second")
    say(f"figure     {short_path(folder / 'simulation.png')}")
    say(f"table      {short_path(folder / 'simulation.csv')}")
    say(f"campaigns  {short_path(folder)}/*   (hpo-cluster status DIR, report DIR)")
    if len(groups) > 1:
        say(f"tests      {command_line('compare', short_path(folder))}")
    return OK if all(run.best for runs in groups.values() for run in runs) else BAD_END


def _settings(words: Sequence[str], faults: list[str]) -> SimulationSettings:
    """Return the command's own settings; add a fault for each that is wrong."""
    from pydantic import ValidationError

    from hpo_cluster.cli.config.compose import parsed
    from hpo_cluster.cli.config.groups import search_dirs
    from hpo_cluster.cli.config.with_hydra import searching
    from hpo_cluster.driver.simulate import SimulationSettings
    from hpo_cluster.settings import faults_of

    values: dict[str, Any] = {}
    known = list(SimulationSettings.model_fields)
    with searching(search_dirs(Path.cwd())):
        for word in words:
            override = parsed(word, faults)
            if override is None:
                continue
            key = override.key_or_group.partition(".")[2]
            if key not in known:
                faults.append(f"{OWN}.{key}: is not a key; {instead_of(key, known)}")
            elif override.is_sweep_override() or override.is_delete():
                faults.append(f"{word}: give one value; -m lists values of the campaign's own keys")
            else:
                values[key] = override.value()
    try:
        return SimulationSettings.model_validate(values)
    except ValidationError as error:
        faults += [str(fault) for fault in faults_of(error, SimulationSettings, OWN)]
        return SimulationSettings()


def _folder(configs: Sequence[Config]) -> Path:
    """Return the folder of the simulated campaigns of a command."""
    first = configs[0]
    name = first.settings.campaign or in_campaign_name(first.objective.label)
    return first.settings.campaigns_dir / FOLDER / name


def _labels(combinations: Sequence[Sequence[str]]) -> list[str]:
    """Return what distinguishes each combination from the others."""
    differ = [[word for word in words if any(word not in other for other in combinations)] for words in combinations]
    return [" ".join(words) for words in differ]


def _check(configs: Sequence[Config], folder: Path) -> None:
    """Raise ConfigError if a campaign cannot be simulated, or something else is in the way of the results."""
    from hpo_cluster.driver.simulate import simulation_faults
    from hpo_cluster.record.identity import SIMULATION, read_identity

    faults = list[str]()
    for config in configs:
        faults += simulation_faults(config.objective, config.launcher, baseline=config.operation.baseline)
    for path in folder.glob("*/campaign.yaml"):
        if SIMULATION not in (read_identity(path) or {}):
            faults.append(f"{path.parent}: is a real campaign, in the folder of simulated ones; give campaign=NEW_NAME")
    if folder.exists() and not any(folder.glob("*/campaign.yaml")) and any(folder.iterdir()):
        faults.append(f"{folder}: holds something else than simulated campaigns; give campaign=NEW_NAME")
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)), "hpo-cluster simulate --help")


def _repeated(config: Config, settings: SimulationSettings, stem: Path) -> Iterator[Run]:
    """Simulate a campaign with one seed after another; yield what became of each."""
    from hpo_cluster.driver.simulate import simulate as play
    from hpo_cluster.report.simulation import run_of

    for seed in range(config.settings.seed, config.settings.seed + settings.repeats):
        folder = stem.with_name(f"{stem.name}-s{seed}")
        for _ in play(_spec(config, seed, folder), settings):
            pass
        yield run_of(folder)


def _spec(config: Config, seed: int, folder: Path) -> CampaignSpec:
    """Return the campaign of a configuration with another seed, in another folder."""
    from hpo_cluster.cli.config.spec import campaign_spec
    from hpo_cluster.driver.spec import choose_optimizer

    chosen, operation = config.optimizer, config.operation
    optimizer = choose_optimizer(chosen.name, chosen.settings, config.space, seed, budget=operation.budget)
    place = config.settings.model_copy(update={"seed": seed, "campaigns_dir": folder.parent})
    return campaign_spec(
        dataclasses.replace(config, campaign=folder.name, settings=place, optimizer=optimizer),
    )
