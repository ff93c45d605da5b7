"""What a worker imports ahead of its first cell, beside the plan, is what that cell would wait for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FIRST_CELL = """
import json, sys
from sweeper.launchers.ready import make_ready
from sweeper.sweep.needed import NEEDED
make_ready("cpu", NEEDED["cpu"])
from sweeper.environment import environment
from sweeper.sweep.runner import Runner
from tests.launchers.test_launchers import planned_cells
(planned,) = planned_cells("dtype=bfloat16", "reference={dtype:float32}")
before = set(sys.modules)
record, _ = Runner(environment("cpu"), verdict=False, say=lambda _: None).run(planned)
print(json.dumps([record.status, sorted(set(sys.modules) - before)]))
"""
LIGHT = ("sweeper.", "transformers.models.", "numba.", "cffi", "pycparser", "numpy.ma")
"""What the model alone decides, and numba's own at its first call."""


def test_the_first_cell_imports_no_more_than_its_model() -> None:
    root = Path(__file__).parents[2]
    ran = subprocess.run([sys.executable, "-c", FIRST_CELL], cwd=root, capture_output=True, text=True, check=True)
    status, imported = json.loads(ran.stdout.splitlines()[-1])
    assert status == "ok"
    assert "transformers.models.llama.modeling_llama" in imported
    assert [name for name in imported if not name.startswith(LIGHT)] == []
