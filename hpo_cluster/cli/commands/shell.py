"""The command that lets a shell complete what is typed."""

from __future__ import annotations

from hpo_cluster.cli.arguments import Arguments
from hpo_cluster.cli.commands import OK, say
from hpo_cluster.cli.completion import SCRIPTS, candidates
from hpo_cluster.errors import ConfigError
from hpo_cluster.text import instead_of


def completion(arguments: Arguments) -> int:
    """Print the script of a shell or, when that script asks, the words that complete a command line."""
    shell, *rest = arguments.words or [""]
    if shell == "candidates" and len(rest) == 1:
        for candidate in candidates(rest[0]):
            say(candidate)
        return OK
    faults = list(arguments.faults)
    if shell not in SCRIPTS:
        what = f"{shell!r}: is not a shell that is known; " if shell else "completion needs a shell; "
        faults.append(f"{what}{instead_of(shell, SCRIPTS)}")
    if faults:
        raise ConfigError(faults, 'In ~/.bashrc: eval "$(hpo-cluster completion bash)"')
    say(SCRIPTS[shell].strip())
    return OK
