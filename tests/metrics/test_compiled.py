"""numba's cache of compiled code may be cut or unwritable: only time is lost."""

from __future__ import annotations

import errno
import importlib.util
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numba")

from numba.core import caching

from sweeper.metrics.cpu.compiled import entry

CODE = "def twice(x):\n    return 2 * x\n"


def twice(folder: Path) -> Any:
    """The function of a file, compiled as if it had just been imported."""
    path = folder / "module_of_a_loop.py"
    if not path.exists():
        path.write_text(CODE)
    spec = importlib.util.spec_from_file_location("module_of_a_loop", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return entry(module.twice)


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize("left", [0, 40])
def test_a_cut_file_of_the_cache_is_compiled_again(tmp_path: Path, kind: str, left: int) -> None:
    assert twice(tmp_path)(4) == 8
    kept = list(tmp_path.rglob(f"*.{kind}"))
    assert kept
    for file in kept:
        file.write_bytes(file.read_bytes()[:left])
    assert twice(tmp_path)(5) == 10
    assert sum(twice(tmp_path).stats.cache_hits.values()) == 0  # counted when it is called
    again = twice(tmp_path)
    assert again(6) == 12
    assert sum(again.stats.cache_hits.values()) == 1  # what was damaged has been written anew


def test_a_full_disk_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "_save_data", full)
    assert twice(tmp_path)(4) == 8
