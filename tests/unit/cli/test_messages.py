"""What messages have in common: commands that can be typed as they stand, numbers with their nouns, help by name."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from support.compared import campaign

from hpo_cluster.cli.arguments import parse
from hpo_cluster.cli.command_table import COMMANDS
from hpo_cluster.cli.completion import candidates
from hpo_cluster.cli.main import main
from hpo_cluster.text import command_line, counted

PACKAGE = Path(__file__).resolve().parents[3] / "hpo_cluster"


def test_a_command_in_a_message_can_be_typed_as_it_stands() -> None:
    line = command_line("export", Path("my campaigns/the first"), "to=csv", "path=it's.csv")
    assert shlex.split(line) == ["hpo-cluster", "export", "my campaigns/the first", "to=csv", "path=it's.csv"]
    assert command_line("resume", "campaigns/x", 7) == "hpo-cluster resume campaigns/x 7"


def test_no_message_pastes_a_folder_into_a_command() -> None:
    pasted = re.compile(r"hpo-cluster (?!run)[a-z-]+ \{(?!shlex\.join)|hpo-cluster [a-z-]+ \"? ?\+")
    sources = list(PACKAGE.rglob("*.py"))
    assert len(sources) > 100
    lines = [(path.name, line) for path in sources for line in path.read_text(encoding="utf-8").splitlines()]
    assert [found for found in lines if pasted.search(found[1]) and "help {words" not in found[1]] == []


def test_hints_quote_a_folder_with_a_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    campaign(Path("my campaigns/a b"), [1.0], budget=4)
    assert main(["status", "my campaigns/a b"]) == 0
    out = capsys.readouterr().out
    assert "hpo-cluster confirm 'my campaigns/a b'" in out
    assert "1 evaluation with new seeds" not in out  # three replicates
    assert main(["watch", "my campaigns/a b"]) == 0
    assert "'my campaigns/a b'" in capsys.readouterr().out
    assert main(["cancel", "my campaigns/a b", "0"]) == 2
    assert "hpo-cluster status 'my campaigns/a b'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 trials"), (1, "1 trial"), (2, "2 trials"), (1.0, "1 trial"), (0.25, "0.25 trials"), ("1", "1 trial")],
)
def test_numbers_agree_with_their_nouns(count: float | str, text: str) -> None:
    assert counted(count, "trial") == text


def test_no_command_says_1_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    campaign(Path("one"), [1.0], imported=[0.5])
    campaign(Path("two"), [2.0, None], seed=1)
    simulate = ["simulate", "objective=synthetic", "optimizer=random", "budget=1", "workers=1", "simulate.repeats=1"]
    for words in (["status", "one"], ["watch", "one"], ["describe", "one"], ["export", "one", "to=csv"], simulate):
        assert main(words) == 0
    assert main(["compare", "one", "two"]) == 0
    assert main(["report", "one"]) == 0
    printed = capsys.readouterr()
    said = printed.out + printed.err + Path("one/report/report.md").read_text(encoding="utf-8")
    assert "1 trial" in said
    assert (
        re.findall(r"(?<![\d.,])1 (?:trial|evaluation|campaign|seed|GPU-hour|whole evaluation|line|row)s\b", said) == []
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_by_its_name(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    whole = capsys.readouterr().out
    assert main(["help", command]) == 0
    assert capsys.readouterr().out == whole
    assert f"usage: hpo-cluster {command} " in whole


def test_help_of_something_else_names_the_nearest_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "comapre"]) == 2
    assert "'comapre': is not a command; did you mean compare?" in capsys.readouterr().err
    assert main(["help", "compare", "status"]) == 2
    assert "'status': is too much, help takes one command\nType:  hpo-cluster help compare" in capsys.readouterr().err
    assert main(["help"]) == 0
    assert "usage: hpo-cluster COMMAND" in capsys.readouterr().out
    assert candidates("hpo-cluster help comp") == ["compare ", "completion "]


OWN_KEYS = [(name, key) for name, command in COMMANDS.items() for key in command.keys]


@pytest.mark.parametrize(("command", "key"), OWN_KEYS)
def test_a_misspelt_key_of_a_command_names_the_one_that_is_meant(command: str, key: str) -> None:
    wrong = key[:-1]
    arguments = parse([command, "campaigns/x", f"{wrong}=3", f"{key}=3", "budget=3"])
    assert arguments.faults == [f"{wrong}: is not a key; did you mean {key}?"]
    assert arguments.words == ["campaigns/x", f"{key}=3", "budget=3"]


def test_a_key_of_a_campaign_is_no_misspelt_key_of_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r=1").mkdir()
    assert parse(["compare", "r=1"]).faults == []
    assert {"confirm", "best", "compare", "export", "simulate"} == {command for command, _ in OWN_KEYS}
    words = ["objective=synthetic", "space.start=[]", "workers=3", "campaign=top2"]
    for command in ("confirm", "simulate"):
        assert (parsed := parse([command, *words])).words == words
        assert not parsed.faults
    assert parse(["compare", "campaigns/out=3"]).faults == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["status", "campagns/x"],
            "campagns/x: is not a campaign (it has no campaign.yaml); did you mean campaigns/x?",
        ),
        (["compare", "campagns/x"], "campagns/x: is not a folder; did you mean campaigns/x? there are: campaigns/x"),
        (["report", "campaigns/x", "json"], "'json': report takes nothing but a folder"),
        (["status", "campaigns/x", "json"], "'json': did you mean --json? status takes nothing but a folder"),
        (["resume", "campaigns/x", "--tke-over", "retry=3"], "retry: is not a key; did you mean retries?"),
        (["resume", "campaigns/x", "--tke-over", "retry=3"], "did you mean --take-over?"),
        (["resume", "campaigns/x", "colour=3"], " in all)"),
        (["confirm", "campaigns/x", "replicate=3", "budgt=4"], "budgt: is not a key; did you mean budget?"),
        (["confirm", "campaigns/x", "replicate=3", "budgt=4"], "replicate: is not a key; did you mean replicates?"),
        (["hlp"], "'hlp': is not a command; did you mean help?"),
    ],
)
def test_what_is_close_is_named_whatever_the_command(
    words: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    campaign(Path("campaigns/x"), [1.0])
    assert main(words) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert max(map(len, said.splitlines())) < 420
