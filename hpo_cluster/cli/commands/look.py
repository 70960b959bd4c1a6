"""The commands that show a campaign and change nothing."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

from hpo_cluster.cli.arguments import Arguments, short_path
from hpo_cluster.cli.commands import OK, progress_bar, say, terminal_width
from hpo_cluster.errors import ConfigError
from hpo_cluster.record.files import matching, read_bytes
from hpo_cluster.text import command_line


def status(arguments: Arguments) -> int:
    """Print where a campaign is."""
    from hpo_cluster.cli.display import status_lines
    from hpo_cluster.record.status import campaign_status

    status = campaign_status(arguments.folder())
    lines = status_lines(status, terminal_width())
    say(json.dumps(status, indent=2) if arguments.option("--json") else "\n".join(lines))
    return OK


def best(arguments: Arguments) -> int:
    """Print the best trial for a preference."""
    import yaml

    from hpo_cluster.cli.display import number, parameters_text
    from hpo_cluster.goals import Goals
    from hpo_cluster.objectives.registry import parse_objective
    from hpo_cluster.record.campaign_state import Record
    from hpo_cluster.record.identity import identity_of_campaign
    from hpo_cluster.record.layout import CampaignLayout
    from hpo_cluster.record.looks import count_look, looks_in_words
    from hpo_cluster.record.preference import preferred, read_preference, with_full_names
    from hpo_cluster.record.status import shown_trial
    from hpo_cluster.trial import trial_label

    layout = CampaignLayout(arguments.folder())
    parts, faults = {}, []
    for word in arguments.words[1:]:
        key, _, text = word.partition("=")
        try:
            parts[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            faults.append(f"{word!r}: cannot be read; put quotes around it: {key}='{{gpu_seconds: 30}}'")
    if faults:
        raise ConfigError(faults, "hpo-cluster best --help")
    identity = identity_of_campaign(layout.identity)
    goals, record = Goals.of(identity["objective"]), Record.read(layout.events)
    tests: Sequence[str] = ()
    needed = goals.names if goals is not None else ()
    with contextlib.suppress(ConfigError):  # perhaps written by another version
        objective = parse_objective(identity["objective"])
        tests, needed = objective.test_tasks or (), needed or (objective.metric or "value",)
    preference = with_full_names(read_preference(parts), needed)
    measured = {name for trial in record.rows for name in trial.metrics}
    looked = ""
    if any(name in measured and name.startswith(f"{task}/") for name in preference.names for task in tests):
        looked = looks_in_words(
            count_look(layout, record, tests)
        )  # also if no trial is within the bounds: it says theirs
    trial = preferred(record, goals, identity["direction"], preference)
    if arguments.option("--json"):
        say(json.dumps(shown_trial(trial), indent=2))
        return OK
    names = [*(goals.names if goals is not None else ()), *preference.names]
    values = [f"{name} {number(trial.metrics[name])}" for name in dict.fromkeys(names)]
    say(f"{trial_label(trial.number)}  {'  '.join(values) or number(trial.value)}")
    say(f"       {parameters_text(trial.parameters)}")
    if looked:
        say(f"       {looked}")
    return OK


def why(arguments: Arguments) -> int:
    """Print the story of trials."""
    from hpo_cluster.report.trial import trial_story

    folder = arguments.folder()
    for number in arguments.trials():
        say("\n".join(trial_story(folder, number)))
    return OK


def tail(arguments: Arguments) -> int:
    """Print the log of a trial as it grows, until the trial ends, or waits for a driver while none is at work."""
    from hpo_cluster.record.campaign_state import Record
    from hpo_cluster.record.layout import CampaignLayout
    from hpo_cluster.record.status import waits_for_driver
    from hpo_cluster.report.trial import find_trial
    from hpo_cluster.trial import trial_label

    folder, number = arguments.folder(), arguments.trials()[0]
    layout = CampaignLayout(folder)
    seen: dict[Path, int] = {}
    while True:
        record = Record.read(layout.events)
        trial, waits = find_trial(record, folder, number), waits_for_driver(record, layout, number)
        for attempt in trial.attempts[-1:]:
            for path in matching(layout.attempt(number, attempt.number).job_dir, "*log*"):
                text = read_bytes(path, seen.get(path, 0))
                seen[path] = seen.get(path, 0) + len(text)
                say(text.decode(errors="replace").replace("\r", "\n"), end="", flush=True)
        if trial.state.ended or waits:
            more = f"; no driver runs. Go on with:  {command_line('resume', folder)}" if waits else ""
            say(f"{trial_label(number)} is {trial.state}{more}")
            return OK
        time.sleep(1.0)


def export_adapter(arguments: Arguments) -> int:
    """Write the model that a trial has fine-tuned as a Hugging Face model."""
    import yaml

    from hpo_cluster.record.campaign_state import Record
    from hpo_cluster.record.layout import CampaignLayout
    from hpo_cluster.report.trial import find_trial
    from hpo_cluster.trial import trial_label

    folder, number = arguments.folder(), arguments.trials()[0]
    layout, faults = CampaignLayout(folder), []
    trial = find_trial(Record.read(layout.events), folder, number)
    attempts = (layout.attempt(number, attempt.number).adapter_dir for attempt in reversed(trial.attempts))
    adapter = next((path for path in attempts if (path / "lit_model.pth.lora").is_file()), None)
    if adapter is None:
        faults.append(
            f"{trial_label(number)} is {trial.state} and keeps no adapter (they are kept by trials of objective=lora "
            "that were trained to the end, with objective.keep_adapter=true)"
        )
    else:
        base = Path(yaml.safe_load((adapter / "hyperparameters.yaml").read_text(encoding="utf-8"))["checkpoint_dir"])
        if not (base / "lit_model.pth").is_file():
            faults.append(f"the base model is no longer in {base}; run hpo-cluster prepare, or put it back")
    target = Path(arguments.option("--to") or "")
    if not arguments.option("--to"):
        faults.append("export-adapter needs the folder to write: --to NEW_DIR")
    elif target.exists():
        faults.append(f"--to {target}: is there already; give a folder that does not exist")
    elif not target.absolute().parent.is_dir():
        faults.append(f"--to {target}: {target.absolute().parent} is not a folder")
    if len(arguments.words) > 2:
        faults.append(f"{' '.join(arguments.words[2:])}: export-adapter takes one trial")
    if faults or adapter is None:
        raise ConfigError(faults, "hpo-cluster export-adapter --help")
    say(f"merging {adapter} into its base model", flush=True)
    from hpo_cluster.objectives.lora.adapter import export_adapter as write

    write(adapter.absolute(), target.absolute())
    say(f"written: {target}. In Python:  AutoModelForCausalLM.from_pretrained({str(target)!r})")
    return OK


def report(arguments: Arguments) -> int:
    """Write a campaign's page and figures."""
    from hpo_cluster.report import write_report

    with progress_bar() as progress:
        files = write_report(arguments.folder(), progress)
    for path in files:
        say(short_path(path))
    return OK
