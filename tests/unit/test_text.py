from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo_cluster.text import LIST_WIDTH, PLAIN_SIGNS, did_you_mean, in_bytes, in_code, in_markdown, instead_of, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("a\rb\b\x9b", "a\\rb\\x08\\x9b"),
        ("x\u202etxt\u2066", "x\\u202etxt\\u2066"),
        ("\ud800", "\\ud800"),
        ("two\nlines\tand é · 日本", "two\nlines\tand é · 日本"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_size_has_the_unit_that_fits() -> None:
    shown = [in_bytes(count) for count in (1, 999, 1500, 3_210_000_000)]
    assert shown == ["1 byte", "999 bytes", "1.5 kB", "3.2 GB"]


@given(st.text())
def test_any_text_can_be_shown_and_does_nothing(text: str) -> None:
    for shown in (visible(text), in_markdown(text), in_code(text)):
        shown.encode()
        assert not any(ord(sign) < 32 and sign not in "\n\t" for sign in shown)
    assert "\n" not in in_markdown(text)
    assert "<" not in in_markdown(text)


def test_markdown_shows_markup_as_it_is() -> None:
    assert in_markdown("<script>alert(1)</script>") == "&lt;script&gt;alert\\(1\\)&lt;/script&gt;"
    assert in_markdown("![x](http://evil) a|b\n# head") == "\\!\\[x\\]\\(http://evil\\) a\\|b \\# head"
    assert in_code("a`b|c") == "`` a`b\\|c ``"


def test_signs_that_an_encoding_lacks_have_plain_ones() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors=PLAIN_SIGNS)
    stream.write("0.5 ± 0.1 · trial 3 …é")
    stream.flush()
    assert stream.buffer.getvalue() == b"0.5 +- 0.1 - trial 3 ...?"  # type: ignore[attr-defined]


@pytest.mark.parametrize("variables", [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "ascii"}])
def test_no_command_ends_because_of_a_locale(tmp_path: Path, variables: dict[str, str]) -> None:
    environment = {**os.environ, "PYTHONCOERCECLOCALE": "0", **variables}
    hpo = [sys.executable, "-m", "hpo_cluster"]
    words = ["objective=synthetic", "optimizer=random", "campaign=c", "budget=3", "poll_s=0.1"]
    for command in (["run", *words], ["status", "campaigns/c"], ["why", "campaigns/c", "0"], ["report", "campaigns/c"]):
        done = subprocess.run(
            [*hpo, *command], cwd=tmp_path, env=environment, capture_output=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        assert b"Traceback" not in done.stderr
        done.stdout.decode("ascii")


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        ("wrokers", ["budget", "workers"], "did you mean workers? "),
        ("initial", ["budget", "optimizer.initial"], "did you mean optimizer.initial? "),
        ("optimizer.initail", ["optimizer.initial", "optimizer.outcome"], "did you mean optimizer.initial? "),
        ("space.warmup", ["space.start", "space.lora_rank"], ""),
        ("llama", ["village", "llama-3.2-1b"], "did you mean llama-3.2-1b? "),
        ("x", ["budget"], ""),
    ],
)
def test_the_word_that_is_meant(word: str, known: list[str], meant: str) -> None:
    assert did_you_mean(word, known) == meant


def test_a_list_that_fits_no_message_is_cut_or_left_out() -> None:
    known = [f"parameter_{number}" for number in range(40)]
    assert instead_of("b", ["a", "b", "c"]).endswith("accepted: a, b, c")
    assert instead_of("xyz", ["a", "b"], "there are") == "there are: a, b"
    cut = instead_of("xyz", known)
    assert cut.startswith("accepted: parameter_0, parameter_1, ")
    assert cut.endswith(", … (40 in all)")
    assert len(cut) < LIST_WIDTH + 40
    assert instead_of("paramter_7", known) == "did you mean parameter_7?"
    assert did_you_mean("", known) == ""
