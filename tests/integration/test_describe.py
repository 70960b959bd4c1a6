"""`hpo-cluster describe`: the facts of real and simulated campaigns, as Markdown, LaTeX, BibTeX and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.journals import simulated_campaign, write_campaign

from hpo_cluster.cli.main import main
from hpo_cluster.report.appendix import appendix
from hpo_cluster.report.facts import facts_of
from hpo_cluster.report.markup import Latex, Markdown
from hpo_cluster.space import Categorical, Float, Integer, Prior, Space

ODD = r"50%_of $\frac{1}{2}$ & #1 | <script> ~^"
RICH = Space(
    {
        "learning_rate": Float(1e-5, 1e-1, log=True, prior=Prior(center=1e-3, spread=0.2)),
        "rank": Integer(2, 64, step=2, when={"scheme": ["a_b", ODD]}),
        "scheme": Categorical(("a_b", "c", ODD), prior=(1.0, 2.0, 1.0)),
        "epochs": Integer(3, 3),
    },
    ["learning_rate * rank <= 5"],
    [{"scheme": "c"}],
)


def outcome(number: int, configuration: Mapping[str, Any]) -> tuple[str, float | None]:
    """Return a value, or every fourth time a divergence."""
    return ("diverged", None) if number % 4 == 3 else ("completed", float(number))


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


def test_a_campaign_of_real_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["run", "objective=synthetic", "optimizer=lhs", "campaign=c", "poll_s=0.05", "workers=2", "retries=0"]
    words += ["objective.duration_s=0.1"]  # seconds are told to a tenth: on a fast machine there would be none
    assert main([*words, "budget=3", "seed=7"]) == 0
    assert main(["resume", "campaigns/c", "budget=4"]) == 0
    capsys.readouterr()
    before = {path: path.read_bytes() for path in Path("campaigns").rglob("*") if path.is_file()}
    facts = json.loads(said(["describe", "campaigns/c", "--json"], capsys))
    assert facts["trials"] == {"completed": 4}
    assert (facts["budget"], facts["workers"], facts["seed"]) == (4, 2, 7)
    assert facts["time"]["starts"] == 2
    assert 0 < facts["time"]["evaluations_s"] < 8 * facts["time"]["wall_s"]
    assert sum(facts["hardware"]["nodes"].values()) == 4
    assert facts["hardware"]["launcher"] == "local"
    assert facts["failures"] == {"attempts": {}, "retries": 0}
    assert facts["references"] == {"project": ["hpo_cluster"], "optimizer": ["mckay1979lhs"], "objective": []}
    assert "numpy" in facts["versions"]
    text = said(["describe", "campaigns/c"], capsys)
    assert "The objective `synthetic`, measured by `value` (minimised), was optimised over 2 hyperparameters" in text
    assert "`lhs` [@mckay1979lhs] of `hpo_cluster` [@hpo_cluster]." in text
    assert "The budget was 4 evaluations, at most 2 at the same time" in text
    assert "| `x1` | -5 to 5 | linear |  |" in text
    assert "@article{mckay1979lhs," in text
    assert text.count("```") == 2
    latex = said(["describe", "campaigns/c", "--latex"], capsys)
    assert r"\texttt{lhs}~\cite{mckay1979lhs} of \texttt{hpo\_cluster}~\cite{hpo_cluster}." in latex
    bib = said(["describe", "campaigns/c", "--bibtex"], capsys)
    assert bib.startswith("@misc{hpo_cluster,")
    assert "VERSION" not in bib
    assert {path: path.read_bytes() for path in Path("campaigns").rglob("*") if path.is_file()} == before


def test_rungs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["run", "objective=synthetic", "optimizer=asha", "fidelity=share", "fidelity.rule=asha", "campaign=c"]
    assert main([*words, "poll_s=0.05", "budget=1", "workers=1"]) == 0
    capsys.readouterr()
    text = said(["describe", "campaigns/c"], capsys)
    assert "The budget was 1 whole evaluation, at most 1" in text
    assert "Evaluations were scored early, after 1/9 and 1/3 of an evaluation, where the rule `asha` (eta 3)" in text
    facts = json.loads(said(["describe", "campaigns/c", "--json"], capsys))
    assert facts["rungs"] == {"kind": "share", "shares": ["1/9", "1/3", "1"], "rule": "asha", "eta": 3.0}


def test_a_space_of_all_kinds_and_odd_names(tmp_path: Path) -> None:
    objective = {"kind": "command", "direction": "maximize", "command": f"run {ODD}", "metric": "acc_%"}
    folder = simulated_campaign(tmp_path / "my_campaign", "optuna", RICH, outcome, evaluations=6, objective=objective)
    facts = facts_of(folder)
    assert facts["references"]["optimizer"] == ["akiba2019optuna"]
    markdown = "\n".join(appendix(facts, Markdown()))
    assert "# Campaign my\\_campaign" in markdown
    assert "over 3 hyperparameters and 1 fixed one" in markdown
    assert "| `learning_rate` | 1e-05 to 0.1 | log | prior around 0.001, spread 0.2 |" in markdown
    assert "| `rank` | 2 to 64 | linear, integer, step 2 | if scheme is a\\_b or 50%\\_of" in markdown
    assert "<script>" not in markdown
    assert "Trials by state: 5 completed and 1 diverged." in markdown
    assert "Configurations had to satisfy `learning_rate * rank <= 5`." in markdown
    assert "The search began with 1 given configuration." in markdown
    latex = "\n".join(appendix(facts, Latex()))
    escaped = r"50\%\_of \$\textbackslash{}frac\{1\}\{2\}\$ \& \#1 \textbar{} \textless{}script\textgreater{} "
    assert escaped + r"\textasciitilde{}\textasciicircum{}" in latex
    assert r"\texttt{acc\_\%}" in latex
    rows = [line for line in latex.splitlines() if line.endswith(r"\\")]
    for row in rows:  # as many columns as the table has, whatever the cells hold
        assert row.replace(r"\&", "").count("&") in (1, 3)
    plain = latex.replace(r"\{", "").replace(r"\}", "")
    assert plain.count("{") == plain.count("}")


def test_failures_retries_gpus_and_energy(tmp_path: Path) -> None:
    def event(seq: int, kind: str, minute: int, **fields: Any) -> dict[str, Any]:
        return {
            "seq": seq,
            "at": f"2026-11-01T0{minute // 60}:{minute % 60:02d}:00Z",
            "epoch": 1,
            "event": kind,
            **fields,
        }

    def submitted(seq: int, attempt: int, minute: int) -> list[dict[str, Any]]:
        at = f"2026-11-01T0{minute // 60}:{minute % 60:02d}:00Z"
        job = {"backend": "slurm", "job_id": "1", "token": "t", "submitted_at": at, "host": "front"}
        names = {"trial": 0, "attempt": attempt}
        return [
            event(seq, "intent", minute, **names, token="t", code="c"),
            event(seq + 1, "submitted", minute, **names, job=job, gpus=4),
            event(seq + 2, "running", minute, **names, started_at=at, node=f"gpu_{attempt}"),
        ]

    row = {"trial": 0, "seed": 1, "origin": "evaluated", "parameters": {"x": 1.0}}
    launcher = {"kind": "slurm", "partition": "gpu_p", "cpus_per_trial": 8}
    start = {"operation": {"budget": 1, "workers": 1}, "settings": {"launcher": launcher}, "code": "c", "versions": {}}
    ended = {"state": "completed", "value": 0.5, "value_sem": 0.01, "metrics": {"value": 0.5, "energy_wh": 250.0}}
    events = [
        event(0, "created", 0),
        event(1, "started", 0, **start),
        event(2, "asked", 0, trials=[row], decision={}),
        *submitted(3, 0, 0),
        event(6, "attempt_failed", 60, trial=0, attempt=0, error={"kind": "node", "message": "gone"}),
        *submitted(7, 1, 60),
        event(10, "ended", 90, trial=0, attempt=1, **ended),
    ]
    write_campaign(tmp_path / "c", events, Space({"x": Float(0.0, 1.0)}), {"name": "random"})
    facts = facts_of(tmp_path / "c")
    assert (facts["gpu_hours"], facts["energy_kwh"]) == (6.0, 0.25)
    text = "\n".join(appendix(facts, Markdown()))
    assert "Evaluations were run by Slurm (`gpu_p`) on 2 nodes (`gpu_0`, `gpu_1`)." in text
    assert "An evaluation had 4 GPUs." in text
    assert "The evaluations took 90 min in all. They used 6 GPU-hours and 0.25 kWh." in text
    assert "1 attempt failed (1 `node`); 1 further attempt began." in text
    assert "The best value measured was 0.5 (trial 0, standard error 0.01)." in text


@pytest.mark.parametrize("lines", [0, 1, 2, 3, 5])
def test_a_campaign_that_has_hardly_begun(lines: int, tmp_path: Path) -> None:
    folder = simulated_campaign(tmp_path / "c", "random", RICH, outcome, evaluations=2)
    journal = folder / "events.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:lines]))
    text = "\n".join(appendix(facts_of(folder), Markdown()))
    assert ("No trial has been proposed yet." in text) == (lines < 3)


def test_several_objectives(tmp_path: Path) -> None:
    metrics = [{"name": "acc", "direction": "maximize"}, {"name": "s", "direction": "minimize"}]
    objective = {"kind": "command", "command": "x", "direction": "maximize", "metric": "value", "metrics": metrics}
    objective["constraints"] = [{"name": "memory_gb", "at_most": 40.0, "at_least": 8.0}]
    row = {"trial": 0, "seed": 1, "origin": "evaluated", "parameters": {"x": 1.0}}
    at = {"at": "2026-11-01T00:00:00Z", "epoch": 1}
    ended = {"state": "completed", "value": 0.5, "metrics": {"acc": 0.5, "s": 2.0, "memory_gb": 30.0}}
    events = [
        {"seq": 0, **at, "event": "created"},
        {"seq": 1, **at, "event": "asked", "trials": [row]},
        {"seq": 2, **at, "event": "ended", "trial": 0, **ended},
    ]
    write_campaign(tmp_path / "c", events, Space({"x": Float(0.0, 1.0)}), {"name": "random"}, objective)
    text = "\n".join(appendix(facts_of(tmp_path / "c"), Markdown()))
    assert "measured by `acc` (maximised) and `s` (minimised)" in text
    assert "Results had to satisfy `memory_gb` at least 8 and `memory_gb` at most 40." in text
    assert "The Pareto front has 1 trial." in text
    assert "| `metric` |" not in text


def test_one_format_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = simulated_campaign(tmp_path / "c", "random", RICH, outcome, evaluations=1)
    assert main(["describe", str(folder), "--latex", "--json"]) == 2
    assert "--latex --json: choose one format" in capsys.readouterr().err
