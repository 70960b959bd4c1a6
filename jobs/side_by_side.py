"""Evaluate several attempts in one job: ``side_by_side.py --gpus 1 lora.py ATTEMPT_DIR ATTEMPT_DIR …``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hpo_cluster.objectives import side_by_side

if __name__ == "__main__":
    sys.exit(side_by_side.main())
