"""What is made ready ahead may fail: who needs it says so, as it would have."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sweeper.launchers.ready import make_ready, start_driver


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_it_imports_what_can_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    (tmp_path / "ready_broken.py").write_text("raise OSError('a library is missing')")
    (tmp_path / "ready_whole.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    make_ready(device, ["ready_not_there", "ready_broken", "ready_whole"])
    assert [name for name in sys.modules if name.startswith("ready_")] == ["ready_whole"]
    del sys.modules["ready_whole"]


def test_the_driver_is_called_once_and_need_not_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[str, int]] = []

    def loaded(name: str) -> SimpleNamespace:
        return SimpleNamespace(cuInit=lambda flags: called.append((name, flags)))

    def missing(name: str) -> SimpleNamespace:
        raise OSError(f"{name}: cannot open shared object file")

    for library in (loaded, missing):
        monkeypatch.setattr(ctypes, "CDLL", library)
        start_driver().join()
    assert called == [("libcuda.so.1", 0)]
