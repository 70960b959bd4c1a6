"""The commands that check and fetch what a campaign needs, and the one that rebuilds its journal."""

from __future__ import annotations

from hpo_cluster.cli.arguments import Arguments
from hpo_cluster.cli.commands import BAD_END, OK, say
from hpo_cluster.cli.commands.drive import print_configs
from hpo_cluster.cli.config.spec import campaign_spec
from hpo_cluster.text import command_line


def doctor(arguments: Arguments) -> int:
    """Check all that a campaign needs, and print each finding."""
    from hpo_cluster.cli.config.compose import compose
    from hpo_cluster.driver.doctor import examine

    config = compose(arguments.words, check_files=False, faults=arguments.faults, **arguments.files)
    faults = 0
    for finding in examine(campaign_spec(config, arguments.words)):
        say(f"{'ok   ' if finding.ok else 'FAULT'}  {finding.what}", flush=True)
        if not finding.ok:
            faults += 1
            say(f"       -> {finding.remedy}", flush=True)
    say("all is well" if not faults else f"{faults} to fix")
    return BAD_END if faults else OK


def repair(arguments: Arguments) -> int:
    """Rebuild a campaign's journal, and print what was found and what comes next."""
    from hpo_cluster.record.repair import repair as rebuild
    from hpo_cluster.trial import trial_label

    folder = arguments.folder()
    done = rebuild(folder)
    if done.damaged is None:
        say("the journal is whole: nothing was changed")
        return OK

    def labels(numbers: list[int]) -> str:
        more = f" and {len(numbers) - 10} more" if len(numbers) > 10 else ""
        return ", ".join(map(trial_label, numbers[:10])) + more

    say(f"rebuilt; the old journal is {done.damaged}")
    if done.lost_lines:
        say(f"  lines that could not be used: {done.lost_lines}")
    if done.rebuilt:
        say(f"  trials known from their folders alone: {labels(done.rebuilt)}")
    if done.gaps:
        say(f"  trials of which nothing is left, whose numbers stay empty: {labels(done.gaps)}")
    if done.waiting:
        say(f"  trials whose results are taken in when the campaign goes on: {labels(done.waiting)}")
    again = "" if done.has_start else " budget=... workers=... launcher=...   (these settings were lost)"
    say(f"Go on with:\n  {command_line('resume', folder)}{again}")
    return OK


def prepare(arguments: Arguments) -> int:
    """Fetch what the jobs need: model, data, tasks."""
    from hpo_cluster.cli.config.compose import compose

    config = compose(arguments.words, check_files=False, faults=arguments.faults, **arguments.files)
    if arguments.option("--cfg"):
        return print_configs(arguments, [config])
    config.objective.prepare(config.resolve, lambda line: say(line, flush=True))
    return OK
