"""The wheel, built by pip as a user's pip would: what it carries, and that it runs away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.composing import write_grid

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={folder}", ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed, which comes before an editable installation on the path."""
    folder = tmp_path_factory.mktemp("site")
    run("-m", "pip", "install", "--quiet", "--no-deps", f"--target={folder}", wheel, cwd=folder)
    return folder


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


def test_it_carries_the_package_its_configs_and_the_plugin_and_nothing_else(wheel: Path) -> None:
    sources = files_below(ROOT / "sweeper") | files_below(ROOT / "hydra_plugins")
    expected = {str(path.relative_to(ROOT)) for path in sources}
    expected |= {str("sweeper" / path.relative_to(ROOT)) for path in files_below(ROOT / "conf")}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected
    assert {"sweeper/conf/config.yaml", "hydra_plugins/sweeper_grid/__init__.py"} <= names
    assert "hydra_plugins/__init__.py" not in names  # it would hide other people's plugins


def test_it_states_its_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (licence,) = (name for name in archive.namelist() if name.endswith("licenses/LICENSE"))
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()


def test_help_of_the_installed_wheel_lists_its_own_grids(site: Path, tmp_path: Path) -> None:
    found = run("-c", "import sweeper; print(sweeper.__file__)", cwd=tmp_path, PYTHONPATH=str(site))
    assert Path(found.strip()).is_relative_to(site)
    shown = run("-m", "sweeper", "--help", cwd=tmp_path, PYTHONPATH=str(site))
    assert all(path.stem in shown for path in (site / "sweeper/conf/grid").glob("*.yaml"))


@pytest.mark.parametrize("grid", ["load_strategy", "my_own"])
def test_the_installed_wheel_plans_its_grids_and_the_users(site: Path, tmp_path: Path, grid: str) -> None:
    mine = write_grid(tmp_path, "my_own", "hydra: {sweeper: {params: {dtype: 'float32,float16'}}}\n")
    options = ["--config-dir", mine, f"+grid={grid}", "checkpoint=tiny_llama", "device=cpu", "dry_run=true"]
    planned = run("-m", "sweeper", *options, cwd=tmp_path, PYTHONPATH=str(site))
    assert {"load_strategy": "6 cells to run", "my_own": "2 cells to run"}[grid] in planned
