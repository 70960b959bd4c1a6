"""The TAB key: what is offered, and the scripts in real shells."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpo_cluster.cli.command_table import COMMANDS
from hpo_cluster.cli.completion import PARAMETER_FIELDS, SCRIPTS, candidates
from hpo_cluster.cli.main import main
from hpo_cluster.space import PARAMETER_FIELDS as FIELDS_OF_A_PARAMETER

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a campaign of three trials, and a command of that name on the path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "campaigns" / "first").mkdir(parents=True)
    (tmp_path / "campaigns" / "first" / "campaign.yaml").touch()
    for number in range(3):
        (tmp_path / "campaigns" / "first" / "trials" / f"t{number:04d}").mkdir(parents=True)
    program = tmp_path / "bin" / "hpo-cluster"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m hpo_cluster "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("re", ["resume ", "retry ", "report ", "repair "]),
        ("run --c", ["--cfg ", "--config-dir ", "--config-name "]),
        ("run --cfg ", ["job "]),
        ("run --info defaults-", ["defaults-tree "]),
        ("run opt", ["optimizer=", "optimizer."]),
        ("run optimizer=so", ["optimizer=sobol", "optimizer=soo"]),
        ("run -m optimizer=lhs,so", ["optimizer=lhs,sobol", "optimizer=lhs,soo"]),
        ("run +experiment=q", ["+experiment=quick"]),
        ("run optimizer=lhs optimizer.", ["optimizer.points=", "optimizer.optimization="]),
        ("run experiment=ola2025_lhs optimizer.p", ["optimizer.points="]),
        ("run launcher=oar_chuc launcher.q", ["launcher.queue="]),
        ("run launcher=oar_chuc launcher.wall", ["launcher.walltime_min="]),
        ("run space.weight_decay.l", ["space.weight_decay.low=", "space.weight_decay.log="]),
        ("run ~space.w", ["~space.weight_decay "]),
        ("run failures.p", ["failures.preempted="]),
        ("run baseline=", ["baseline=true", "baseline=false"]),
        ("run budget=", []),
        ("run -cn con", ["config "]),
        ("run -cd camp", ["campaigns/"]),
        ("status ", ["campaigns/first "]),
        ("status c", ["campaigns/first ", "campaigns/"]),
        ("status campaigns/", ["campaigns/first "]),
        ("resume campaigns/first bud", ["budget="]),
        ("resume campaigns/first s", ["storage_dir=", "stalled_after_s=", "stop_after_failures="]),
        ("resume campaigns/first l", ["launcher=", "launcher."]),
        ("resume campaigns/first o", []),
        ("why campaigns/first ", ["t0000 ", "t0001 ", "t0002 "]),
        ("cancel campaigns/first t0001 t0002", ["t0002 "]),
        ("completion f", ["fish "]),
        ("nothing ", []),
    ],
)
def test_what_is_offered(line: str, expected: list[str]) -> None:
    assert candidates(f"hpo-cluster {line}") == expected


def test_commands_and_users_files_are_offered(here: Path) -> None:
    offered = candidates("hpo-cluster ")
    assert {word.strip() for word in offered} == {*COMMANDS, "--help", "--version"}
    (here / "conf" / "optimizer").mkdir(parents=True)
    (here / "conf" / "optimizer" / "mine.yaml").write_text("# Mine\ndefaults:\n  - lhs\npoints: 9  # points\n")
    assert candidates("hpo-cluster run optimizer=min") == ["optimizer=mine"]
    assert candidates("hpo-cluster run optimizer=mine optimizer.") == ["optimizer.points=", "optimizer.optimization="]


def test_fields_of_a_parameter_are_those_of_the_space() -> None:
    assert set(PARAMETER_FIELDS) == set(FIELDS_OF_A_PARAMETER)


@pytest.mark.parametrize("shell", SCRIPTS)
def test_a_script_is_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "completion candidates" in capsys.readouterr().out


def shell_says(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_bash_completes_words_that_it_breaks_at_signs() -> None:
    script = """
    eval "$(hpo-cluster completion bash)"
    complete -p hpo-cluster
    for COMP_LINE in "hpo-cluster sta" "hpo-cluster run optimizer=so" "hpo-cluster run ~space.weight"; do
        COMP_POINT=${#COMP_LINE}; _hpo_cluster hpo-cluster; (IFS=,; echo "${COMPREPLY[*]}")
    done
    """
    assert shell_says("bash", "--norc", "-c", script) == [
        "complete -o nospace -F _hpo_cluster hpo-cluster",
        "status ",
        "sobol,soo",  # bash takes what follows the sign for a word of its own
        "~space.weight_decay ",
    ]


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes() -> None:
    script = "hpo-cluster completion fish | source"
    for line in ("hpo-cluster run optimizer=so", "hpo-cluster sta"):
        script += f'; complete -C "{line}"'
    assert shell_says("fish", "--no-config", "-c", script) == ["optimizer=sobol", "optimizer=soo", "status"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_completes() -> None:
    script = """
    compdef() { print -r -- "compdef $*" }
    compadd() { print -r -- "${(j:,:)@[4,-1]}" }
    eval "$(hpo-cluster completion zsh)"
    words=(hpo-cluster run optimizer=so) CURRENT=3 PREFIX=optimizer=so
    _hpo_cluster
    """
    assert shell_says("zsh", "-f", "-c", script) == [
        "compdef _hpo_cluster hpo-cluster",
        "--,optimizer=sobol,optimizer=soo",
    ]
