"""Safe display of text that jobs wrote: on a terminal and in Markdown it is data, and never a command or markup."""

from __future__ import annotations

import codecs
import difflib
import re
import shlex
import statistics
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import pairwise
from typing import TypeAlias

#: How far long work is: called with what is done now, how many are done, and how many there are.
Progress: TypeAlias = Callable[[str, int, int], object]

#: Characters that a terminal would obey or hide: control characters (except newline and tab), marks that change the
#: direction of writing, line separators of Unicode, lone surrogates.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|~$&])")

#: Replacements for the signs in our own output that a terminal without Unicode cannot show.
_PLAIN = {"·": "-", "±": "+-", "…": "...", "×": "x", "→": "->", "−": "-", "–": "-", "—": "-"}


def untold(what: str, done: int, total: int) -> None:
    """Tell nobody of progress (`Progress`)."""


def visible(text: str, keep: str = "") -> str:
    """Return `text` with every character that a terminal would obey as an escape sequence: ESC becomes ``\\x1b``.

    Args:
        text: text from any source.
        keep: control characters to leave as they are.
    """
    return _UNSEEN.sub(lambda found: found[0] if found[0] in keep else _written_out(found[0]), text)


def _written_out(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def in_markdown(text: str) -> str:
    """Return `text` as one line of Markdown in which nothing is markup, HTML, a link or a table separator."""
    line = " ".join(visible(text).split())
    return _MARKDOWN.sub(r"\\\1", line).replace("\\<", "&lt;").replace("\\>", "&gt;").replace("\\&", "&amp;")


def in_code(text: str) -> str:
    """Return `text` as inline code of Markdown that is also safe in a table."""
    line = " ".join(visible(text).split()).replace("|", "\\|")
    return f"`` {line} ``" if "`" in line else f"`{line}`"


#: Characters that LaTeX would obey, and what prints them.
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"}
_LATEX |= {">": r"\textgreater{}", "|": r"\textbar{}"}
_LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}


def in_latex(text: str) -> str:
    """Return `text` as one line of LaTeX in which nothing is a command, a comment or a formula."""
    line = " ".join(visible(text).split())
    return "".join(_LATEX.get(character, character) for character in line)


def counted(count: float | str, noun: str) -> str:
    """Return ``1 trial`` or ``3 trials``, the number with four significant digits or as it is written already."""
    text = f"{count:.4g}" if isinstance(count, float) else str(count)
    return f"{text} {noun}" if text == "1" else f"{text} {noun}s"


def in_bytes(count: int) -> str:
    """Return a size such as ``1.5 MB``."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return counted(count, "byte")


def listed(items: Sequence[str]) -> str:
    """Return ``a, b and c``."""
    return " and ".join([*([", ".join(items[:-1])] if len(items) > 1 else []), *items[-1:]])


def first_line(text: str) -> str:
    """Return the first line of a text that is not empty; empty if there is none."""
    return next(iter(text.strip().splitlines()), "")


def cut(text: str, width: int | None) -> str:
    """Return a text that is `width` characters long at most, with ``…`` at its end if it was longer; None: no limit."""
    return text if width is None or len(text) <= width else f"{text[: width - 1]}…"


def command_line(*words: object) -> str:
    """Return ``hpo-cluster WORD ...`` as it is typed in a shell: a folder with spaces is quoted."""
    return shlex.join(["hpo-cluster", *map(str, words)])


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``did you mean WORD? `` with the known word closest to the one typed; empty if no word is close."""
    close = nearest(word, known)
    return f"did you mean {close}? " if close else ""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the known word closest to the one typed; empty if no word is close.

    The last parts of keys with dots or slashes must be close too. If no word is close, take a key with the same last
    part (`optimizer.initial` for `initial`, `task/acc` for `acc`), or a word that begins with the one typed.
    """
    known = list(known) if word else []
    tail = _last_part(word)
    alike = difflib.get_close_matches(word, known, n=3)
    close = [other for other in alike if difflib.get_close_matches(tail, [_last_part(other)])] or [
        other for other in known if _last_part(other) == tail or other.startswith(word)
    ]
    return close[0] if close else ""


#: Most characters of a list of names in a message: some three lines of a terminal.
LIST_WIDTH = 220


def some_of(names: Iterable[str]) -> str:
    """Return ``a, b, c``; of a list that is too long for a message its first names, and how many there are."""
    listed = list(names)
    whole = ", ".join(listed)
    if len(whole) <= LIST_WIDTH:
        return whole
    begun = whole[:LIST_WIDTH]
    return f"{begun.rpartition(', ')[0] or begun}, … ({len(listed)} in all)"


def few_of(texts: Iterable[str]) -> str:
    """Return the first three texts, and how many more there are: a list of which a few say what is wrong with all."""
    listed = list(texts)
    return f"{', '.join(listed[:3])} and {len(listed) - 3} more" if len(listed) > 3 else ", ".join(listed)


def instead_of(word: str, known: Iterable[str], label: str = "accepted") -> str:
    """Return what to type in place of a word: ``did you mean WORD? accepted: WORD, OTHER``.

    A list that is too long for a message is left out if a word is close, and cut if none is.

    Args:
        word: as it was typed.
        known: the words that are accepted, in the order in which they are listed.
        label: what stands before the list.
    """
    known = list(known)
    close = did_you_mean(word, known)
    if close and len(", ".join(known)) > LIST_WIDTH:
        return close.strip()
    return f"{close}{label}: {some_of(known)}"


def _last_part(key: str) -> str:
    return re.split(r"[./]", key)[-1]


def _in_plain_signs(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    piece = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in piece), error.end


#: Name of the codec error handler that replaces what an encoding lacks: ``stream.reconfigure(errors=PLAIN_SIGNS)``.
PLAIN_SIGNS = "hpo_cluster_plain_signs"
codecs.register_error(PLAIN_SIGNS, _in_plain_signs)


def test_metrics(optimised: str, tests: Iterable[str], names: Collection[str]) -> list[str]:
    """Return the test tasks' metrics to show next to the optimised one: the same metric of each task, or else all.

    Args:
        optimised: name of the metric that is optimised; ``TASK/METRIC`` if it is the metric of a task.
        tests: names of the test tasks.
        names: all metrics that were measured.
    """
    of_tests = [name for task in tests for name in names if name.startswith(f"{task}/")]
    same = [name for name in of_tests if name.partition("/")[2] == optimised.partition("/")[2]]
    return same or of_tests


BLOCKS, BLOCKS_WIDE = "▁▂▃▄▅▆▇█", 40


def in_blocks(values: Sequence[float], width: int = BLOCKS_WIDE, blocks: str = BLOCKS) -> str:
    """Draw values as a line of blocks, the lowest value as the lowest block.

    Args:
        values: the values, in order.
        width: maximum number of blocks; each is a mean of neighbouring values if there are more.
        blocks: characters from the lowest to the highest.
    """
    width = min(width, len(values))
    ends = [len(values) * number // width for number in range(width + 1)] if width else [0]
    means = [statistics.fmean(values[begin:end]) for begin, end in pairwise(ends)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    scale = (len(blocks) - 1) / (high - low) if high > low else 0.0
    return "".join(blocks[round((mean - low) * scale)] for mean in means)
