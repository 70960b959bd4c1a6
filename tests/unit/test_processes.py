"""The driver's memory is capped; what it starts is not."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
from hpo_cluster.launchers.process import call
from hpo_cluster.processes import cap_memory, uncap_memory

before = call(["sh", "-c", "ulimit -d"], timeout_s=10)
cap_memory(1.0)
try:
    bytearray(2 * 2**30)
except MemoryError:
    print("capped")
cap_memory(0.5)
print(call(["sh", "-c", "ulimit -d"], timeout_s=10) == before)
uncap_memory()
print(len(bytearray(2 * 2**30)) == 2 * 2**30)
"""


def test_the_cap_is_this_process_alone() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["capped", "True", "True"]
