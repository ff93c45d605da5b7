from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest

from sweeper.records.cell import CellRecord, ModuleRecord, PairMeasures, Status, TokenFigures
from sweeper.records.store import Store

MEASURES = PairMeasures(
    numel=6,
    finite=5,
    equal_fraction=0.5,
    max_abs=0.25,
    mean_abs=0.1,
    rms=0.125,
    rel_l2=0.01,
    sqnr_db=math.inf,
    cosine=0.999,
    min_token_cosine=math.nan,
    max_ulp=3.0,
    allclose=False,
    rtol=1e-3,
    atol=1e-5,
    reference_nan=0,
    candidate_nan=1,
    reference_inf=0,
    candidate_inf=0,
    nonfinite_mismatch=1,
    worst_token=2,
    worst_feature=1,
    worst_reference=1.0,
    worst_candidate=1.25,
)
MODULE = ModuleRecord(
    order=0,
    name="model.layers.0.self_attn.q_proj",
    module_type="Linear",
    layer=0,
    kind="self_attn.q_proj",
    reference_dtype="float32",
    candidate_dtype="bfloat16",
    worst_text=0,
    worst_position=2,
    measures=MEASURES,
)


def record(status: Status = Status.OK, attempt: str = "a1") -> CellRecord:
    return CellRecord(
        cell_id="0123456789ab",
        status=status,
        reason="boom" if status is Status.FAILED else None,
        attempt=attempt,
        started_at="2026-01-01T00:00:00+00:00",
        axes={"dtype": "bfloat16"},
        choices={"dtype": "bfloat16"},
        reference_id="ba9876543210",
        reference_axes={"dtype": "float32"},
        environment={"torch": "2.13.0"},
        output=MEASURES,
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "sweep")
    store.open({"grid": "g"})
    return store


def test_what_is_written_is_read_back(store: Store) -> None:
    folder = store.cells_folder / store.write(record(), [MODULE]).cell_id
    assert sorted(path.name for path in folder.iterdir()) == ["SHA256SUMS", "cell.json", "modules.parquet"]
    read = store.finished("0123456789ab")
    assert read is not None
    assert read.output is not None
    assert read.output.sqnr_db == math.inf
    assert math.isnan(read.output.min_token_cosine)
    (row,) = store.modules("0123456789ab")
    assert row.name == MODULE.name
    assert row.measures.worst_candidate == 1.25
    assert math.isnan(row.measures.min_token_cosine)


def test_figures_by_token_lie_in_a_file_of_their_own(store: Store) -> None:
    tokens = TokenFigures(text=(1, 1, 0), position=(0, 1, 0), max_abs=(0.1, math.inf, 0.0), rel_l2=(0.2, math.nan, 0.0))
    layers = [MODULE.model_copy(update={"name": f"model.layers.{i}", "tokens": tokens}) for i in (0, 1)]
    folder = store.cells_folder / store.write(record(), [layers[0], MODULE, layers[1]]).cell_id
    assert sorted(path.name for path in folder.iterdir()) == [
        "SHA256SUMS",
        "cell.json",
        "modules.parquet",
        "tokens.parquet",
    ]
    read = store.tokens("0123456789ab")
    assert list(read) == ["model.layers.0", "model.layers.1"]
    assert repr(read["model.layers.1"]) == repr(tokens)
    assert all(module.tokens is None for module in store.modules("0123456789ab"))


def test_reading_starts_no_thread(store: Store) -> None:
    """One of Arrow's own that still ran when Python ended made the process abort, behind all that it had printed."""
    cell_id = store.write(record(), [MODULE]).cell_id
    code = (
        "import sys, psutil, pyarrow.parquet\n"
        "from pathlib import Path\n"
        "from sweeper.records.store import Store\n"
        "before = psutil.Process().num_threads()\n"
        "assert Store(Path(sys.argv[1])).modules(sys.argv[2])\n"
        "print(psutil.Process().num_threads() - before)"
    )
    words = [sys.executable, "-c", code, str(store.folder), cell_id]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_cell_json_is_strict_json(store: Store) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    folder = store.cells_folder / store.write(record(), [MODULE]).cell_id
    parsed = json.loads((folder / "cell.json").read_text(), parse_constant=refuse)
    assert parsed["output"]["sqnr_db"] == "Infinity"
    assert parsed["schema_version"] == 1


def test_a_cell_without_modules_has_the_same_columns(store: Store) -> None:
    folder = store.cells_folder / store.write(record(Status.UNSUPPORTED), []).cell_id
    schema = pyarrow.parquet.read_schema(folder / "modules.parquet")
    assert schema.names[:3] == ["order", "name", "module_type"]
    assert schema.metadata[b"schema_version"] == b"1"


def test_a_failed_cell_runs_again_and_its_place_is_taken(store: Store) -> None:
    store.write(record(Status.FAILED, attempt="first"), [])
    assert store.finished("0123456789ab") is None
    store.write(record(Status.OK, attempt="second"), [MODULE])
    assert [r.attempt for r in store.records()] == ["second"]
    assert [path.name for path in store.cells_folder.iterdir()] == ["0123456789ab"]


def test_a_finished_cell_is_never_replaced(store: Store) -> None:
    store.write(record(attempt="first"), [MODULE])
    assert store.write(record(attempt="second"), []).attempt == "first"
    assert [r.attempt for r in store.records()] == ["first"]
    assert len(store.modules("0123456789ab")) == 1


def test_a_write_that_fails_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        store.write(record(), [MODULE])
    assert list(store.cells_folder.iterdir()) == []


def _write_forever(folder: Path) -> None:
    store = Store(folder)
    for attempt in range(10**6):
        store.write(record().model_copy(update={"cell_id": f"{attempt:012d}"}), [MODULE] * 400)


def test_a_killed_writer_leaves_only_whole_cells(store: Store) -> None:
    writer = multiprocessing.get_context("spawn").Process(target=_write_forever, args=(store.folder,))
    writer.start()
    deadline = time.monotonic() + 60
    while not any(store.cells_folder.glob("0*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    Store(store.folder).open({"grid": "g"})
    names = [path.name for path in store.cells_folder.iterdir()]
    assert names
    assert not any(name.startswith(".") for name in names)
    assert all(len(store.modules(name)) == 400 and store.finished(name) for name in names)


def test_a_record_with_the_older_name_of_a_field_is_read(store: Store) -> None:
    told = record().model_copy(update={"without_effect": {"matmul_tf32": "cuda only"}})
    path = store.cells_folder / store.write(told, ()).cell_id / "cell.json"
    path.write_text(path.read_text().replace('"without_effect"', '"numerics_without_effect"'))
    path.with_name("SHA256SUMS").unlink()  # as old as that
    found = store.read(told.cell_id)
    assert found is not None
    assert found.without_effect == {"matmul_tf32": "cuda only"}
