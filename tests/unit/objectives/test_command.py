from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpo_cluster.errors import AttemptError, ConfigError
from hpo_cluster.fidelity import Ladder
from hpo_cluster.objectives.black_box import read_output
from hpo_cluster.objectives.command import CommandObjective
from hpo_cluster.objectives.command_line import render
from hpo_cluster.objectives.registry import parse_objective
from hpo_cluster.record.layout import AttemptLayout, resources_dir
from hpo_cluster.record.processes import process_start
from hpo_cluster.record.rung_files import publish_word
from hpo_cluster.space import Categorical, Float, Integer, Space

SPACE = Space({"lr": Float(1e-5, 1e-1, log=True), "layers": Integer(1, 8), "act": Categorical(("relu", "a b; rm $x"))})


def write_attempt(directory: Path, settings: dict, parameters: dict, **more: object) -> Path:
    directory.mkdir(parents=True)
    params = {"schema": 1, "trial": 7, "attempt": 0, "seed": 11, "parameters": parameters, "settings": settings, **more}
    (directory / "params.json").write_text(json.dumps(params))
    return directory


def run_program(name: str, attempt: Path) -> subprocess.CompletedProcess[str]:
    program = resources_dir() / "jobs" / name
    return subprocess.run([sys.executable, program, attempt], capture_output=True, text=True, timeout=60, check=False)


def evaluate(
    tmp_path: Path, command: str, *, status: int = 0, parameters: dict | None = None, **settings: object
) -> dict:
    objective = CommandObjective(command=command, cwd=str(tmp_path), **settings)
    attempt = write_attempt(tmp_path / "a0", objective.job_settings(Path), parameters or {})
    done = run_program("command.py", attempt)
    assert done.returncode == status, done.stderr
    streams = {"log": done.stdout, "errors": done.stderr}
    return {**streams, **json.loads((attempt / ("error.json" if status else "result.json")).read_text())}


def test_values_are_quoted_and_braces_escape() -> None:
    line = render("f {lr} {act} {{x}} {seed} {flag}", {"lr": 1e-05, "act": "a b; rm $x", "flag": True}, 3)
    assert line == "f 0.00001 'a b; rm $x' {x} 3 true"


def test_a_parameter_named_seed_wins_over_the_trials_seed() -> None:
    assert render("f {seed}", {"seed": 5}, 3) == "f 5"


def test_all_faults_of_a_command_at_once() -> None:
    faults = CommandObjective(command="f {lrr} {lr:.2g} {layers} ${HOME}").space_faults(SPACE)
    text = "\n".join(faults)
    assert len(faults) == 4
    assert "did you mean {lr}?" in text
    assert "without ':.2g'" in text
    assert "{{HOME}}" in text
    assert "space.act: objective.command never uses it" in text


@pytest.mark.parametrize("command", ["f {lr", "f }", "f {lr!}"])
def test_malformed_braces_are_a_fault(command: str) -> None:
    (fault,) = CommandObjective(command=command).space_faults(SPACE)
    assert "{{ and }}" in fault


def test_a_good_command_has_no_fault() -> None:
    assert CommandObjective(command="f {lr} {lr} {layers} {act} {seed} ${{HOME}}").space_faults(SPACE) == []


def test_settings_survive_the_round_trip_and_the_directory_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    objective = parse_objective({"kind": "command", "command": "f", "metric": "score", "direction": "minimize"})
    monkeypatch.chdir("/")
    again = parse_objective(objective.model_dump(mode="json"))
    assert again == objective
    assert objective.metric == "score"
    assert objective.job_settings(Path)["cwd"] == str(tmp_path)
    assert objective.file_faults(Path) == []
    gone = CommandObjective(command="f", cwd=str(tmp_path / "gone"))
    assert "is not a directory" in gone.file_faults(Path)[0]


def test_parse_objective_names_every_fault() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_objective({"kind": "command", "timeout_s": -1, "comand": "f"})
    assert len(caught.value.faults) == 3
    assert "objective.command: has no value" in caught.value.faults
    with pytest.raises(ConfigError, match="did you mean command"):
        parse_objective({"kind": "comand"})


def test_output_fields_become_metrics_and_standard_errors() -> None:
    output = {
        "value": 1,
        "value_stderr": 0.1,
        "loss": 2.5,
        "loss_sem": 0.2,
        "note": "n",
        "ok": True,
        "bad": float("nan"),
    }
    result = read_output(output, "value")
    assert result["metrics"] == {"value": 1.0, "loss": 2.5}
    assert result["sems"] == {"value": 0.1, "loss": 0.2}
    assert result["output"] == {"note": "n", "ok": True}


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        ({"value": float("nan")}, "diverged"),
        ({"value": float("-inf")}, "diverged"),
        ({"other": 1.0}, "bad_result"),
        ({"value": "0.5"}, "bad_result"),
        ({"value": True}, "bad_result"),
        ({"value": None}, "bad_result"),
        ({"error": "out_of_memory"}, "out_of_memory"),
        ({"error": "vanished", "message": "?"}, "code"),
        ({"error": "tired", "message": "?"}, "code"),
    ],
)
def test_what_is_no_result_is_a_typed_error(output: dict, kind: str) -> None:
    with pytest.raises(AttemptError) as caught:
        read_output(output, "value")
    assert caught.value.kind == kind


def test_the_last_line_is_the_result_and_the_rest_is_in_the_log(tmp_path: Path) -> None:
    command = """echo training; pwd; echo warning >&2; printf '{{"value": %s, "seed": {seed}}}\\n\\n' {lr}"""
    result = evaluate(tmp_path, command, parameters={"lr": 0.25})
    assert result["metrics"] == {"value": 0.25, "seed": 11.0}
    assert f"training\n{tmp_path}\n" in result["log"]
    assert "printf" in result["command"]
    assert "command" in result["seconds"]


def test_the_command_may_write_beside_its_result(tmp_path: Path) -> None:
    evaluate(tmp_path, 'touch "$HPO_CLUSTER_ATTEMPT_DIR/weights"; echo "{{\\"value\\": 1}}"')
    assert (tmp_path / "a0" / "weights").exists()


def test_a_failing_command_is_named_by_the_last_line_of_its_errors(tmp_path: Path) -> None:
    command = "seq 100; seq 100 >&2; echo no such file >&2; exit 3"
    error = evaluate(tmp_path, command, status=1)
    assert (error["kind"], error["message"]) == ("code", f"no such file (exit status 3: {command})")


def test_a_failing_command_is_named_by_its_exception_whatever_follows(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("raise RuntimeError('CUDA error: no device\\nCompile with TORCH_USE_CUDA_DSA')")
    error = evaluate(tmp_path, f"{sys.executable} train.py", status=1)
    assert error["message"] == f"RuntimeError: CUDA error: no device (exit status 1: {sys.executable} train.py)"
    assert error["errors"].count("Traceback") == 1  # the program's, without the job's own
    assert error["errors"].splitlines()[-1] == f"attempt failed: code: {error['message']}"


def test_a_failing_command_whose_disk_is_full_is_tried_again(tmp_path: Path) -> None:
    error = evaluate(tmp_path, "echo weights > /dev/full", status=1)
    assert error["kind"] == "disk"
    assert "No space left on device" in error["message"]


@pytest.mark.parametrize("lines", [1, 50_000])
def test_a_result_counts_although_the_disk_of_the_log_is_full(tmp_path: Path, lines: int) -> None:
    command = f"seq {lines}; seq {lines} >&2; " + """echo '{{"value": 0.5}}'"""
    objective = CommandObjective(command=command, cwd=str(tmp_path))
    attempt = write_attempt(tmp_path / "a0", objective.job_settings(Path), {})
    program = [sys.executable, resources_dir() / "jobs" / "command.py", attempt]
    with Path("/dev/full").open("w") as full:
        subprocess.run(program, stdout=full, stderr=full, timeout=60, check=False)
    assert json.loads((attempt / "result.json").read_text())["metrics"] == {"value": 0.5}


def test_a_failing_command_may_say_why_itself(tmp_path: Path) -> None:
    command = """echo '{{"error": "out_of_memory", "message": "80 GB"}}'; exit 1"""
    error = evaluate(tmp_path, command, status=1)
    assert (error["kind"], error["message"]) == ("out_of_memory", "80 GB")


def test_a_killed_command_is_named_by_its_signal(tmp_path: Path) -> None:
    error = evaluate(tmp_path, "kill -9 $$", status=1)
    assert error["message"] == "killed by SIGKILL (out of memory?): no output (kill -9 $$)"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("echo step 3; kill -9 $$", "killed by SIGKILL (out of memory?): its last line was 'step 3' ("),
        ("echo RuntimeError: lost >&2; kill -6 $$", "killed by SIGABRT: RuntimeError: lost ("),
    ],
)
def test_what_a_killed_command_had_printed_is_not_told_as_the_cause(tmp_path: Path, command: str, message: str) -> None:
    assert evaluate(tmp_path, command, status=1)["message"].startswith(message)


@pytest.mark.parametrize("command", ["true", "echo done", "echo [1]", """printf '{{\\n"value": 1\\n}}'"""])
def test_a_last_line_that_is_no_object_is_a_bad_result(tmp_path: Path, command: str) -> None:
    error = evaluate(tmp_path, command, status=1)
    assert error["kind"] == "bad_result"
    assert "must be a JSON object" in error["message"]


def test_nan_is_divergence(tmp_path: Path) -> None:
    assert evaluate(tmp_path, """echo '{{"value": NaN}}'""", status=1)["kind"] == "diverged"


def test_a_timeout_ends_the_command_with_everything_it_started(tmp_path: Path) -> None:
    error = evaluate(tmp_path, "sleep 321 & echo $! > child; sleep 321; echo", status=1, timeout_s=0.5)
    assert error["kind"] == "code"
    assert "timeout_s=0.5" in error["message"]
    assert process_start(int((tmp_path / "child").read_text())) is None


def test_a_command_that_is_stopped_may_tidy_up(tmp_path: Path) -> None:
    (tmp_path / "train.sh").write_text("trap 'sleep 0.3; touch tidied; exit' TERM; while true; do sleep 0.05; done")
    evaluate(tmp_path, "bash train.sh; true", status=1, timeout_s=0.5)
    assert (tmp_path / "tidied").exists()


def test_ending_the_job_ends_its_command(tmp_path: Path) -> None:
    objective = CommandObjective(command="sleep 321 & echo $! > child; wait", cwd=str(tmp_path))
    attempt = write_attempt(tmp_path / "a0", objective.job_settings(Path), {})
    with subprocess.Popen([sys.executable, resources_dir() / "jobs" / "command.py", attempt]) as job:
        deadline = time.monotonic() + 20
        while not (tmp_path / "child").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.2)
        job.terminate()
    assert process_start(int((tmp_path / "child").read_text())) is None
    assert not (attempt / "result.json").exists()


def test_an_inactive_parameter_is_an_empty_text() -> None:
    assert render("train --kind {kind} --rate {rate}", {"kind": "plain"}, 0) == "train --kind plain --rate ''"


def test_a_standard_error_below_zero_is_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    result = read_output({"value": 1.0, "value_sem": -0.1}, "value")
    assert result == {"metrics": {"value": 1.0}, "sems": {}}
    assert "value_sem=-0.1 is left out" in caplog.text


# --- rungs -----------------------------------------------------------------------------------------------------------

LADDER = Ladder("share", (1 / 9, 1 / 3, 1.0))


def rungs(goal: int, linger_s: float = 0.0) -> dict:
    return {"kind": "share", "shares": LADDER.shares, "goal": goal, "first": 0, "linger_s": linger_s}


def test_without_rungs_the_share_is_one(tmp_path: Path) -> None:
    result = evaluate(tmp_path, 'echo "{{\\"value\\": {fidelity}}}"; touch {checkpoint}/state')
    assert result["command"].startswith('echo "{\\"value\\": 1}"')
    assert not (tmp_path / "checkpoint").exists(), "removed with the result"


def test_a_command_goes_on_at_the_next_rung_from_its_checkpoint_in_another_attempt(tmp_path: Path) -> None:
    command = 'echo {fidelity} >> {checkpoint}/seen; echo "{{\\"value\\": $(wc -l < {checkpoint}/seen)}}"'
    settings = CommandObjective(command=command, cwd=str(tmp_path)).job_settings(Path)
    folders = [tmp_path / "t0007" / f"a{number}" for number in range(2)]
    first = write_attempt(folders[0], settings, {}, rungs=rungs(0))
    assert run_program("command.py", first).returncode == 0
    assert json.loads((first / "rung-0.json").read_text())["metrics"] == {"value": 1.0}
    assert json.loads((first / "result.json").read_text())["rung"] == 0
    assert (tmp_path / "t0007" / "checkpoint" / "seen").read_text() == "0.1111111111111111\n"

    second = write_attempt(folders[1], settings, {}, rungs=rungs(1), previous=[str(first)])
    publish_word(AttemptLayout(second), 1, go_on=True)  # as if the driver were quick
    assert run_program("command.py", second).returncode == 0
    result = json.loads((second / "result.json").read_text())
    assert (result["metrics"], "rung" in result) == ({"value": 3.0}, False)
    assert [each["metrics"]["value"] for each in result["rungs"]] == [1, 2]
    assert not (tmp_path / "t0007" / "checkpoint").exists()


def test_a_command_is_told_what_it_lacks_for_rungs() -> None:
    good = CommandObjective(command="f {lr} {layers} {act} {fidelity} {checkpoint}")
    assert good.space_faults(SPACE) == good.fidelity_faults(LADDER, SPACE) == []
    (fault,) = CommandObjective(command="f {lr} {checkpoint}").fidelity_faults(LADDER, SPACE)
    assert fault == (
        "fidelity=share: objective.command never uses the share; put {fidelity} in it: the share of a whole "
        "evaluation to do, such as 0.1 or 1"
    )
    (fault,) = good.fidelity_faults(LADDER, Space({"fidelity": Float(0.0, 1.0)}))
    assert "rename the parameter" in fault
    assert render("f {fidelity}", {"fidelity": 5}, 3, 0.5) == "f 5", "without rungs such a parameter is as good as any"
