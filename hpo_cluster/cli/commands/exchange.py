"""The commands that hand a campaign's trials on to other tools, and take in evaluations that were made elsewhere."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hpo_cluster.cli.arguments import Arguments, short_path
from hpo_cluster.cli.commands import OK, help_of, say
from hpo_cluster.errors import ConfigError, HpoClusterError
from hpo_cluster.text import command_line, counted, instead_of

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
    "wandb": "",
}
#: A place to suggest to users, for each tool.
PLACES = {"optuna": "study.db", "mlflow": "sqlite:///runs.db", "tensorboard": "tb", "wandb": "runs"}


def export(arguments: Arguments) -> int:
    """Write the trials of a campaign for another tool."""
    from hpo_cluster.objectives.registry import parse_objective
    from hpo_cluster.record.exchange.facts import read_outline
    from hpo_cluster.record.exchange.libraries import library_fault
    from hpo_cluster.record.identity import identity_of_campaign
    from hpo_cluster.record.layout import CampaignLayout
    from hpo_cluster.record.writable import writing

    given = arguments.given
    to, path = given.get("to", ""), given.get("path", "")
    if to not in FORMATS:
        seen = f"to={to}: is not a format" if to else "export needs a format: to="
        arguments.faults.append(f"{seen}; {instead_of(to, FORMATS)}")
    elif fault := library_fault(to):
        arguments.faults.append(f"to={fault}")
    if to in ("csv", "parquet") and path and path.rpartition(".")[2] != to:
        arguments.faults.append(f"path={path}: the name of the file must end with .{to}")
    elif to in ("csv", "parquet") and path and Path(path).is_dir():
        arguments.faults.append(f"path={path}: is a folder; give the name of a file in it")
    if "name" in given and to not in ("optuna", "mlflow", "wandb"):
        arguments.faults.append(
            "name: is the name of a study (to=optuna), an experiment (to=mlflow) or a project (to=wandb)"
        )
    folder = arguments.folder()
    place = path or (str(folder / FORMATS[to]) if FORMATS[to] else "")
    label, instead = _label(to, place), _elsewhere(folder, to)
    if to in ("csv", "parquet"):
        from hpo_cluster.record.exchange.tables import write_table

        with writing(label, Path(place).parent, instead):
            count = write_table(folder, Path(place))
        say(f"{short_path(Path(place))}: {counted(count, 'trial')}")
        return OK
    objective = parse_objective(identity_of_campaign(CampaignLayout(folder).identity)["objective"])
    outline, record = read_outline(folder, objective.metric)
    if to == "optuna":
        from hpo_cluster.record.exchange.optuna_study import write_study

        study = given.get("name") or outline.name
        with _library_faults(label, instead), _folder_for(label, place, to, instead):
            count = write_study(outline, record, place, study)
        look = f"optuna-dashboard {shlex.quote(_shown(place, url=True))}"
        say(f"{_shown(place)}: study {study}, {counted(count, 'trial')}; look at it with:  {look}")
        return OK
    with _library_faults(label, instead):
        place, changed = _log_all(outline, record, to, place, given.get("name"), instead)
    upload = f"; upload them with:  wandb sync {shlex.quote(_shown(place))}"
    done = f"{counted(len(record.rows), 'trial')}, {changed} of them new or changed"
    say(f"{_shown(place)}: {done}{upload if to == 'wandb' and '://' not in place else ''}")
    return OK


def _label(to: str, place: str) -> str:
    """Return a place as it was typed, or the format if none was."""
    return f"path={place}" if place else f"to={to}"


def _elsewhere(folder: Path, to: str) -> str:
    """Return what to type if nothing can be written at a place."""
    again = command_line("export", folder, f"to={to}", f"path={PLACES.get(to, f'history.{to}')}")
    return f"Give a place in a folder of yours with path=:  {again}"


@contextlib.contextmanager
def _library_faults(label: str, instead: str) -> Iterator[None]:
    """Say in one sentence what a library could not do; its errors may be of any kind and many pages long."""
    from hpo_cluster.record.exchange.wandb_runs import WandbError, WandbSettingsError

    before, threading.excepthook = threading.excepthook, lambda _: None  # its threads' errors come here as well
    try:
        yield
    except ConfigError as error:
        raise ConfigError(error.faults, error.hint or instead) from error
    except HpoClusterError:
        raise
    except WandbSettingsError as error:
        raise HpoClusterError(f"{label}: {error}") from error
    except WandbError as error:
        raise HpoClusterError(f"{label}: {error}\n{instead}") from error
    except Exception as error:
        what = next((line.strip() for line in str(error).splitlines() if len(line.strip()) > 1), "")
        raise HpoClusterError(
            f"{label}: {type(error).__name__}: {what}\nWhat was written until then stays, and the same command goes on "
            f"with it. {instead}"
        ) from error
    finally:
        threading.excepthook = before


def _folder_for(label: str, place: str, to: str, instead: str) -> contextlib.AbstractContextManager[None]:
    """Return the context in which a library writes to a place; it checks the folder if the place is in a file."""
    from hpo_cluster.record.writable import writing

    scheme, sign, rest = place.partition(":///")
    if to in ("tensorboard", "wandb"):
        return writing(label, Path(place), instead)
    if (sign and scheme != "sqlite") or (not sign and ":" in place):
        return contextlib.nullcontext()
    return writing(label, Path(rest if sign else place).parent, instead)


def _log_all(outline: Outline, record: Record, to: str, place: str, name: str | None, instead: str) -> tuple[str, int]:
    """Log all trials to a tracker; return its place and the number of trials that were new or had changed."""
    from pydantic import ValidationError

    from hpo_cluster.record.exchange.facts import trial_facts
    from hpo_cluster.record.exchange.trackers import Tracking, make_tracker

    try:
        where = ("dir", "project") if to == "wandb" else ("uri", "experiment")
        tracking = Tracking.model_validate({"kind": to, **dict(zip(where, (place or None, name), strict=True))})
    except ValidationError as error:
        raise ConfigError([str(entry["msg"]).removeprefix("Value error, ") for entry in error.errors()]) from error
    if fault := tracking.place_fault:
        raise ConfigError([f"path={place}: {fault}"], "hpo-cluster export --help")
    environment = os.environ.get({"mlflow": "MLFLOW_TRACKING_URI", "wandb": "WANDB_DIR"}.get(to, ""), "")
    default = environment or (str(outline.dir) if to == "wandb" else "")
    with _folder_for(_label(to, place), place or default, to, instead):
        tracker = make_tracker(tracking, outline)
        changed = sum(tracker.log(trial_facts(outline, record, trial)) for trial in record.rows)
        tracker.close(ended=not record.in_flight)
    return tracker.place, changed


def import_evaluations(arguments: Arguments) -> int:
    """Make a campaign of evaluations that were made elsewhere."""
    from hpo_cluster.cli.config.spec import campaign_spec
    from hpo_cluster.driver.made_elsewhere import write_campaign
    from hpo_cluster.record.exchange.evaluations import ACCEPTED, file_and_study, is_readable, read_evaluations
    from hpo_cluster.record.writable import writing
    from hpo_cluster.trial import Origin

    files = [word for word in arguments.words if "=" not in word]
    if len(files) != 1:
        arguments.faults.append(f"import needs one file: {ACCEPTED}; seen: {' '.join(files) or 'none'}")
    elif not is_readable(Path(files[0])):
        arguments.faults.append(f"{files[0]}: its name does not say what it holds; accepted: {ACCEPTED}")
    if len(files) != 1 or not is_readable(Path(files[0])):
        raise ConfigError(arguments.faults, "hpo-cluster import --help")
    path = Path(files[0])
    if not file_and_study(path)[0].is_file():
        arguments.faults.append(f"{path}: there is no such file")
    with help_of("import"):
        config = _config_of_import(arguments, path)
        if arguments.faults:
            raise ConfigError(arguments.faults)
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
    place = config.campaign_dir.parent
    with (
        _removed_if_cut(config.campaign_dir),
        writing(str(place), place, "Give a folder of yours:  campaigns_dir=FOLDER"),
    ):
        write_campaign(campaign_spec(config), reading.evaluations, path)
    for note in reading.notes:
        say(f"note   {note}")
    folder = short_path(config.campaign_dir)
    look = command_line("report", folder)
    settled = sum(e.origin not in (Origin.EVALUATED, Origin.BASELINE) for e in reading.evaluations)
    more = f" and {counted(settled, 'value')} that no job measured" if settled else ""
    count = counted(len(reading.evaluations) - settled, "evaluation")
    say(f"{folder}: {count}{more} of {path}; look at them with:  {look}")
    return OK


@contextlib.contextmanager
def _removed_if_cut(folder: Path) -> Iterator[None]:
    """Remove a new folder that was not written to its end, so that the same command can write it again."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


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
        raise ConfigError(arguments.faults)
    identity = identity_of_campaign(CampaignLayout(Path(like)).identity) if like else identity_of_study(file, study)
    names = {key: word.partition("=")[2] for key, word in zip(keys, overrides, strict=True)}
    folder = Path(names.pop("campaigns_dir", "campaigns")) / names.pop("campaign", file.stem)
    how = {key: names.pop(key) for key in ("warm_start_columns", "warm_start_skip_bad") if key in names}
    rest = [word for key, word in zip(keys, overrides, strict=True) if key in names]

    def instead(word: str) -> str:
        chosen = "'space={...}' objective.metric=NAME objective.direction=maximize"
        again = f"{command_line('import', path, word)} {chosen}"
        return f"is taken from {like or 'the study'}; to choose it, say what was evaluated instead:  {again}"

    config = compose_resume(identity, {}, rest, campaign_dir=folder, check_files=False, instead=instead)
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
