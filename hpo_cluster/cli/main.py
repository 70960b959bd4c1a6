"""The entry point of the command line: it finds the command, runs it and returns the exit status."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import hpo_cluster
from hpo_cluster.cli.arguments import parse
from hpo_cluster.cli.command_table import COMMANDS
from hpo_cluster.cli.commands import BAD_END, BAD_INPUT, INTERRUPTED, OK, fill_closed_streams, flush, say, tell
from hpo_cluster.cli.help import command_help, main_help, short_help
from hpo_cluster.errors import ConfigError, HpoClusterError, IdentityError, JournalError, LockedError
from hpo_cluster.record.files import IN_THE_WAY, PASSING
from hpo_cluster.text import PLAIN_SIGNS, command_line

#: Threads that numpy and torch may take here, unless the user says otherwise; jobs get their own number.
THREADS = "2"
#: Words that ask for help in the place of a command.
HELP = ("-h", "--help", "help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return 0, or 1 for a campaign that ended badly, 2 for bad input, 130 when interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("OMP_NUM_THREADS", THREADS)  # before numpy is imported
    fill_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=PLAIN_SIGNS)  # a sign that the locale cannot print does not end a command
    status = _end_of(words)
    if trouble := flush(sys.stdout):
        tell(f"standard output: {trouble.strerror}; part of the output is missing", file=sys.stderr)
        status = status or BAD_END
    flush(sys.stderr)
    return status


def _end_of(words: list[str]) -> int:
    """Carry out a command, print what went wrong as a sentence, and return the exit status."""
    try:
        return _dispatch(words)
    except (ConfigError, IdentityError, LockedError, JournalError) as error:
        tell(error, file=sys.stderr)
        return BAD_INPUT
    except HpoClusterError as error:
        tell(error, file=sys.stderr)
        return BAD_END
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough
        return OK
    except OSError as error:
        if error.errno in IN_THE_WAY and error.filename:
            place = error.filename2 or error.filename
            tell(
                f"{place}: {error.strerror}. Move away what is in the way there, and type the command again",
                file=sys.stderr,
            )
            return BAD_END
        if error.errno not in PASSING:
            raise
        where = f"{error.filename}: " if error.filename else ""
        tell(
            f"{where}{error.strerror}. No campaign loses anything by it: jobs run on, and their results are taken in "
            "later. Type the command again when that is fixed",
            file=sys.stderr,
        )
        return BAD_END


def _named_command(words: list[str]) -> list[str]:
    """Return the command that ``help COMMAND`` asks about. Raises ConfigError if there are more words."""
    if words[1:] and words[0] in COMMANDS:
        fault = f"{' '.join(words[1:])!r}: is too much, help takes one command"
        raise ConfigError([fault], f"Type:  {command_line('help', words[0])}")
    return words[:1]


def _dispatch(words: list[str]) -> int:
    if words[1:] and words[0] in HELP:
        words = [*_named_command(words[1:]), "--help"]
    if not words:
        say(short_help())
        return BAD_INPUT
    if words[0] in HELP:
        say(main_help(Path.cwd()))
        return OK
    if words[0] in ("--version", "-V"):
        say(f"hpo-cluster {hpo_cluster.__version__}")
        return OK
    arguments = parse(words)
    if arguments.options.help:
        say(command_help(arguments.command, Path.cwd(), arguments.files.get("config_dir")))
        return OK
    module, _, function = COMMANDS[arguments.command].runs.partition(".")
    status: int = getattr(importlib.import_module(f"hpo_cluster.cli.commands.{module}"), function)(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())
