"""What is read of an attempt's logs."""

from __future__ import annotations

from pathlib import Path

from hpo_cluster.record.attempt_files import program_output
from hpo_cluster.record.layout import AttemptLayout

ERRORS = """careful
2026-11-29 08:48:44,928 INFO hpo_cluster.objectives.climbing rung=0 of 2 share=0.1111 go_on=true
2026-11-29 08:48:45,001 WARNING hpo_cluster.objectives.worker progress not written: no space
2026-11-29 08:48:45,002 INFO hpo_cluster.objectives.lora.inputs 12 rows
10%\r20%\r30%
attempt failed: code: ValueError: no
"""


def test_the_end_of_both_streams_without_what_the_runtime_says(tmp_path: Path) -> None:
    files = AttemptLayout(tmp_path)
    assert program_output(files, 3) == []
    files.job_dir.mkdir()
    out, err = files.job_dir / "7_log.out", files.job_dir / "7_log.err"
    out.write_text("one\n\ntwo\nthree\n")
    err.write_text(ERRORS.splitlines()[1])
    assert program_output(files, 2) == [(out, ["two", "three"])]
    err.write_text(ERRORS)
    kept = [line for line in ERRORS.splitlines(keepends=False) if "WARNING" in line or "rows" in line]
    assert program_output(files, 9)[1] == (err, ["careful", *kept, "30%"])
