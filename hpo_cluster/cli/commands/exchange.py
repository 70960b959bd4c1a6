"""The commands that hand a campaign's trials on to other tools, and take in evaluations that were made elsewhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from hpo_cluster.cli.arguments import Arguments, short_path
from hpo_cluster.cli.commands import BAD_END, OK, say
from hpo_cluster.errors import ConfigError
from hpo_cluster.text import did_you_mean

if TYPE_CHECKING:
    from hpo_cluster.cli.config.schema import Config
    from hpo_cluster.record.campaign_state import Record
    from hpo_cluster.record.exchange.facts import Outline

#: What can be written, and its default place in the campaign's folder; empty if the tool has one of its own.
FORMATS = {
    "csv": "export/history.csv",
    "parquet": "export/history.parquet",
    "optuna": "export/optuna.db",
    "mlflow": "",
    "tensorboard": "tensorboard",
}
TRACKERS = ("mlflow", "tensorboard")


def export(arguments: Arguments) -> int:
    """Write the trials of a campaign for another tool."""
    from hpo_cluster.objectives import parse_objective
    from hpo_cluster.record.exchange.facts import read_outline
    from hpo_cluster.record.exchange.libraries import library_fault
    from hpo_cluster.record.identity import identity_of_campaign
    from hpo_cluster.record.layout import CampaignLayout

    given = arguments.given
    to, path = given.get("to", ""), given.get("path", "")
    if to not in FORMATS:
        seen = f"to={to}: is not a format; {did_you_mean(to, FORMATS)}" if to else "export needs a format: to=; "
        arguments.faults.append(f"{seen}accepted: {', '.join(FORMATS)}")
    elif fault := library_fault(to):
        arguments.faults.append(f"to={fault}")
    if to in ("csv", "parquet") and path and path.rpartition(".")[2] != to:
        arguments.faults.append(f"path={path}: the name of the file must end with .{to}")
    if "name" in given and to not in ("optuna", "mlflow"):
        arguments.faults.append("name: is the name of a study (to=optuna) or an experiment (to=mlflow)")
    folder = arguments.folder()
    place = path or (str(folder / FORMATS[to]) if FORMATS[to] else "")
    if to in ("csv", "parquet"):
        from hpo_cluster.record.exchange.tables import write_table

        count = write_table(folder, Path(place))
        say(f"{short_path(Path(place))}: {count} trials")
        return OK
    objective = parse_objective(identity_of_campaign(CampaignLayout(folder).identity)["objective"])
    outline, record = read_outline(folder, objective.metric)
    if to == "optuna":
        from hpo_cluster.record.exchange.optuna_study import write_study

        study = given.get("name") or outline.name
        count = write_study(outline, record, place, study)
        look = f"optuna-dashboard {_shown(place, url=True)}"
        say(f"{_shown(place)}: study {study}, {count} trials; look at it with:  {look}")
        return OK
    return _log_all(outline, record, to, place, given.get("name"))


def _log_all(outline: Outline, record: Record, to: str, place: str, name: str | None) -> int:
    """Log all trials to a tracker."""
    from pydantic import ValidationError

    from hpo_cluster.record.exchange.facts import trial_facts
    from hpo_cluster.record.exchange.trackers import Tracking, make_tracker

    try:
        tracking = Tracking.model_validate({"kind": to, "uri": place or None, "experiment": name})
    except ValidationError as error:
        raise ConfigError([str(entry["msg"]).removeprefix("Value error, ") for entry in error.errors()]) from error
    if fault := tracking.place_fault:
        raise ConfigError([f"path={place}: {fault}"], "hpo-cluster export --help")
    try:
        tracker = make_tracker(tracking, outline)
        changed = sum(tracker.log(trial_facts(outline, record, trial)) for trial in record.rows)
        tracker.close(ended=not record.in_flight)
    except (ConfigError, KeyboardInterrupt):
        raise
    except Exception as error:  # of a library: any
        say(f"to={to} {place}: {type(error).__name__}: {error}")
        say("what was written until then stays, and the same command goes on with it")
        return BAD_END
    say(f"{_shown(tracker.place)}: {len(record.rows)} trials, {changed} of them new or changed")
    return OK


def import_evaluations(arguments: Arguments) -> int:
    """Make a campaign of evaluations that were made elsewhere."""
    from hpo_cluster.cli.commands.drive import campaign_spec
    from hpo_cluster.driver.made_elsewhere import write_campaign
    from hpo_cluster.record.exchange.evaluations import ACCEPTED, is_readable, read_evaluations

    files = [word for word in arguments.words if "=" not in word]
    if len(files) != 1:
        arguments.faults.append(f"import needs one file: {ACCEPTED}; seen: {' '.join(files) or 'none'}")
    elif not is_readable(Path(files[0])):
        arguments.faults.append(f"{files[0]}: its name does not say what it holds; accepted: {ACCEPTED}")
    if len(files) != 1 or not is_readable(Path(files[0])):
        raise ConfigError(arguments.faults, "hpo-cluster import --help")
    path = Path(files[0])
    config = _config_of_import(arguments, path)
    settings, objective = config.settings, config.objective
    if config.campaign_dir.exists():
        folder = short_path(config.campaign_dir)
        raise ConfigError([f"campaign={config.campaign}: {folder} is there already; give campaign=NEW_NAME"])
    reading = read_evaluations(
        path,
        config.space,
        metric=objective.metric or "value",
        goals=objective.goals,
        columns=settings.warm_start_columns,
        skip_bad=settings.warm_start_skip_bad,
    )
    if not reading.evaluations:
        raise ConfigError([f"{path}: holds no evaluation that has ended", *reading.notes])
    write_campaign(campaign_spec(config), reading.evaluations, path)
    for note in reading.notes:
        say(f"note   {note}")
    folder = short_path(config.campaign_dir)
    say(f"{folder}: {len(reading.evaluations)} evaluations of {path}; look at them with:  hpo-cluster report {folder}")
    return OK


def _config_of_import(arguments: Arguments, path: Path) -> Config:
    """Return what the campaign is to be: as another one, as an Optuna study says, or as typed."""
    from hpo_cluster.cli.config.compose import compose
    from hpo_cluster.cli.config.recorded import compose_resume
    from hpo_cluster.record.exchange.evaluations import DATABASES, file_and_study
    from hpo_cluster.record.exchange.optuna_study import JOURNAL_ENDS, identity_of_study
    from hpo_cluster.record.identity import identity_of_campaign
    from hpo_cluster.record.layout import CampaignLayout

    overrides = [word for word in arguments.words if "=" in word]
    keys = [word.lstrip("+~").partition("=")[0] for word in overrides]
    file, study = file_and_study(path)
    ends = [end for end in (*DATABASES, *JOURNAL_ENDS) if end not in (".jsonl",)]
    says_itself = file.suffix.lower() in ends and not {key.partition(".")[0] for key in keys} & {
        "space",
        "objective",
        "experiment",
        "optimizer",
    }
    like = arguments.option("--like")
    if not (like or says_itself):
        defaults = [] if "experiment" in keys else ["objective=elsewhere", "optimizer=random"]
        chosen = [word for word in defaults if word.partition("=")[0] not in keys]
        return compose([*chosen, *overrides], check_files=False, faults=arguments.faults, **arguments.files)
    if like and not CampaignLayout(Path(like)).identity.is_file():
        raise ConfigError([*arguments.faults, f"--like {like}: is not a campaign (it has no campaign.yaml)"])
    if not like and not file.is_file():
        raise ConfigError([*arguments.faults, f"{file}: there is no such file"])
    identity = identity_of_campaign(CampaignLayout(Path(like)).identity) if like else identity_of_study(file, study)
    names = {key: word.partition("=")[2] for key, word in zip(keys, overrides, strict=True)}
    folder = Path(names.pop("campaigns_dir", "campaigns")) / names.pop("campaign", file.stem)
    how = {key: names.pop(key) for key in ("warm_start_columns", "warm_start_skip_bad") if key in names}
    rest = [word for key, word in zip(keys, overrides, strict=True) if key in names]
    config = compose_resume(identity, {}, rest, campaign_dir=folder, check_files=False)
    if not how:
        return config
    files = compose([f"{key}={value}" for key, value in how.items()], check_files=False).settings
    return dataclasses.replace(
        config, settings=config.settings.model_copy(update={key: getattr(files, key) for key in how})
    )


def _shown(place: str, *, url: bool = False) -> str:
    """Return a file's short path or a URL; with `url`, the URL of a database for a file of one."""
    if "://" in place:
        return place
    short = str(short_path(Path(place)))
    return f"sqlite:///{short}" if url and not short.endswith((".log", ".journal", ".jsonl")) else short
