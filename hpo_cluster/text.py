"""Text that jobs wrote is data: how it is shown on a terminal and in Markdown without doing anything there."""

from __future__ import annotations

import codecs
import difflib
import re
from collections.abc import Collection, Iterable

#: What a terminal would obey or hide: control characters but newline and tab, marks that turn the direction of writing
#: around, line separators of Unicode, halves of characters.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|~$&])")

#: Signs of our own that a terminal without Unicode has no place for.
_PLAIN = {"·": "-", "±": "+-", "…": "...", "×": "x", "→": "->", "−": "-", "–": "-", "—": "-"}


def visible(text: str, keep: str = "") -> str:
    """Return `text` with everything that a terminal would obey written out: ESC becomes ``\\x1b``.

    Args:
        text: of any origin.
        keep: control characters that are left as they are.
    """
    return _UNSEEN.sub(lambda found: found[0] if found[0] in keep else _written_out(found[0]), text)


def _written_out(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def in_markdown(text: str) -> str:
    """Return `text` as one line that a renderer of Markdown shows as it is: no markup, HTML, link or table cell."""
    line = " ".join(visible(text).split())
    return _MARKDOWN.sub(r"\\\1", line).replace("\\<", "&lt;").replace("\\>", "&gt;").replace("\\&", "&amp;")


def in_code(text: str) -> str:
    """Return `text` as code of Markdown, in a table too."""
    line = " ".join(visible(text).split()).replace("|", "\\|")
    return f"`` {line} ``" if "`" in line else f"`{line}`"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``did you mean WORD? `` with the known word that is most like the one typed; empty if none is.

    Dotted keys must be alike in their last part too. If none is spelt alike, it is a key with the same last part
    (`initial`: `optimizer.initial`), or a word that begins with the one typed.
    """
    known = list(known)
    tail = _last_part(word)
    alike = difflib.get_close_matches(word, known, n=3)
    close = [other for other in alike if difflib.get_close_matches(tail, [_last_part(other)])] or [
        other for other in known if _last_part(other) == tail or other.startswith(word)
    ]
    return f"did you mean {close[0]}? " if close else ""


def _last_part(key: str) -> str:
    return key.rpartition(".")[2]


def _in_plain_signs(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    piece = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in piece), error.end


#: Name of the way to print what an encoding lacks: ``stream.reconfigure(errors=PLAIN_SIGNS)``.
PLAIN_SIGNS = "hpo_cluster_plain_signs"
codecs.register_error(PLAIN_SIGNS, _in_plain_signs)


def test_metrics(optimised: str, tests: Iterable[str], names: Collection[str]) -> list[str]:
    """Return the metrics of the test tasks to show next to the optimised one: the same of each, or else all of theirs.

    Args:
        optimised: name of the metric that is optimised; ``TASK/METRIC`` if it is a task's.
        tests: the test tasks.
        names: the metrics that there are.
    """
    of_tests = [name for task in tests for name in names if name.startswith(f"{task}/")]
    same = [name for name in of_tests if name.partition("/")[2] == optimised.partition("/")[2]]
    return same or of_tests
