"""The commands that see to it that all is there before a campaign starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpo_cluster.commands import BAD_END, OK
from hpo_cluster.commands.arguments import Arguments, collecting
from hpo_cluster.commands.drive import campaign_spec, print_configs

if TYPE_CHECKING:
    pass


def doctor(arguments: Arguments) -> int:
    """Check all that a campaign needs, and print each finding."""
    from hpo_cluster.compose import compose
    from hpo_cluster.doctor import examine

    config = collecting(arguments, lambda: compose(arguments.words, config_dir=arguments.config_dir, check_files=False))
    faults = 0
    for finding in examine(campaign_spec(config, arguments.words)):
        print(f"{'ok   ' if finding.ok else 'FAULT'}  {finding.what}", flush=True)
        if not finding.ok:
            faults += 1
            print(f"       -> {finding.remedy}", flush=True)
    print("all is well" if not faults else f"{faults} to mend")
    return BAD_END if faults else OK


def prepare(arguments: Arguments) -> int:
    """Fetch what the jobs need: model, data, tasks."""
    from hpo_cluster.compose import compose

    config = collecting(arguments, lambda: compose(arguments.words, config_dir=arguments.config_dir, check_files=False))
    if "--cfg" in arguments.flags:
        return print_configs([config])
    from hpo_cluster.objectives.lora import LoraObjective
    from hpo_cluster.prepare import prepare

    if isinstance(config.objective, LoraObjective):
        prepare(config.objective, config.resolve, lambda line: print(line, flush=True))
    else:
        print(f"objective={config.objective.kind} needs nothing prepared")
    return OK
