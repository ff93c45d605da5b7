"""What is made ready ahead may fail: the first cell says so, as it would have."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sweeper.launchers.ready import make_ready


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_it_imports_what_can_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    (tmp_path / "ready_broken.py").write_text("raise OSError('a library is missing')")
    (tmp_path / "ready_whole.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    make_ready(device, ["ready_not_there", "ready_broken", "ready_whole"])
    assert [name for name in sys.modules if name.startswith("ready_")] == ["ready_whole"]
    del sys.modules["ready_whole"]
