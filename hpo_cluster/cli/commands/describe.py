"""The command that writes what a paper's appendix says of a campaign."""

from __future__ import annotations

import json

from hpo_cluster.cli.arguments import Arguments
from hpo_cluster.cli.commands import OK, say
from hpo_cluster.errors import ConfigError

FORMATS = ("--latex", "--bibtex", "--json")


def describe(arguments: Arguments) -> int:
    """Print the description of a campaign: Markdown, LaTeX, its BibTeX entries, or JSON."""
    from hpo_cluster.report.appendix import appendix
    from hpo_cluster.report.facts import facts_of
    from hpo_cluster.report.markup import Latex, Markdown

    chosen = [option for option in FORMATS if arguments.option(option)]
    if len(chosen) > 1:
        arguments.faults.append(f"{' '.join(chosen)}: choose one format")
    folder = arguments.folder()
    try:
        facts = facts_of(folder)
    except ConfigError as error:
        raise ConfigError(error.faults, f"{folder}/campaign.yaml cannot be read by this version") from error
    if chosen == ["--json"]:
        say(json.dumps(facts, indent=2))
    elif chosen == ["--bibtex"]:
        say(facts["bibtex"])
    elif chosen == ["--latex"]:
        say("\n".join([*appendix(facts, Latex()), "% hpo-cluster describe DIR --bibtex > references.bib"]))
    else:
        say("\n".join([*appendix(facts, Markdown()), "```bibtex", facts["bibtex"], "```"]))
    return OK
