"""`sweeper record`, `record=true` and `reference=recording:FILE`, end to end on the tiny Llama."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sweeper.cli import record
from sweeper.cli.main import dispatch
from sweeper.cli.run import carry_out
from sweeper.recordings import taking
from sweeper.recordings.judging import Judged, verdict_on
from sweeper.recordings.log_probabilities import log_probabilities
from sweeper.recordings.own_error import over_own
from sweeper.records.cell import CellRecord
from sweeper.records.recording import Recording
from sweeper.records.sweep import Sweep
from sweeper.sweep.recorded import RecordedReference
from tests.composing import request_of

TINY = ("checkpoint=tiny_llama", "wandb.mode=disabled", "latency_repeats=0")
IDS = "inputs.token_ids=[[5,6,7,8,9,10,11,12,13,14,15,16],[20,21,22,23,24,25,26]]"
TEXTS = ("inputs=token_ids", IDS)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama in bfloat16, by the command."""
    path = tmp_path_factory.mktemp("recorded") / "bf16.safetensors"
    arguments = [str(path), *TINY, *TEXTS, "device=cpu", "dtype=bfloat16", "--modules", "model.layers.*"]
    assert dispatch(["record", *arguments]) == 0
    return path


def changed(recorded: Path, path: Path, **tensors: torch.Tensor | None) -> Path:
    """The recording with other tensors, and no modules."""
    recording = Recording.read(recorded)
    kept = {name: tensor for name, tensor in recording.tensors.items() if ":" not in name} | tensors
    given = {name: tensor for name, tensor in kept.items() if tensor is not None}
    dataclasses.replace(recording, tensors=given).write(path)
    return path


def against(path: Path, folder: Path, *choices: str) -> CellRecord:
    """The record of the one cell that is compared with a recording."""
    request = request_of(*TINY, f"reference=recording:{path}", *choices, f"output_dir={folder}", "sweep=s")
    assert carry_out(request) == 0
    return Sweep.read(folder / "single" / "s").records[0]


def evidence(record: CellRecord) -> dict[str, Any]:
    assert record.verdict is not None
    return {one.name: one.value for one in record.verdict.evidence}


def test_a_recording_says_who_gave_it_and_holds_what_was_asked(recorded: Path) -> None:
    recording = Recording.read(recorded)
    assert {"logits", "log_probabilities", "embeddings"} <= recording.tensors.keys()
    assert recording.about["dtype"] == "bfloat16"
    assert recording.about["environment"]["transformers"]
    assert "model.layers.0.self_attn.q_proj" in recording.modules
    assert "model.norm" not in recording.modules
    assert recording.tensors["logits"].dtype is torch.bfloat16


def test_the_same_cell_is_identical_in_every_module(recorded: Path, tmp_path: Path) -> None:
    record = against(recorded, tmp_path, "dtype=bfloat16")
    assert record.verdict is not None
    assert record.verdict.kind == "identical"
    assert record.first_divergence is None
    assert record.reference_axes["recording"] == recorded.name
    assert len(Sweep.read(tmp_path / "single" / "s").modules(record.cell_id)) == len(Recording.read(recorded).modules)
    assert evidence(record)["mean |Δ log p|"] == 0


def test_another_backend_is_rounding_by_its_own_error(recorded: Path, tmp_path: Path) -> None:
    record = against(recorded, tmp_path, "dtype=bfloat16", "attention=eager")
    assert record.verdict is not None
    assert record.verdict.kind == "rounding"
    assert 0.2 < evidence(record)["recording's error over our own"] < 4
    assert evidence(record)["mean |Δ log p|"] > 0


def test_a_coarser_recording_leaves_a_finer_cell_open(recorded: Path, tmp_path: Path) -> None:
    record = against(recorded, tmp_path, "dtype=float32")
    assert record.verdict is not None
    assert record.verdict.kind == "inconclusive"
    assert record.verdict.decides == "the cell in the recording's dtype: dtype=bfloat16"


def test_log_probabilities_at_a_temperature_are_found_out(recorded: Path, tmp_path: Path) -> None:
    recording = Recording.read(recorded)
    hot_N = log_probabilities(recording.tensors["logits"].double() / 0.7, recording.token_ids)
    path = changed(recorded, tmp_path / "hot.safetensors", logits=None, embeddings=None, log_probabilities=hot_N)
    record = against(path, tmp_path, "dtype=bfloat16")
    assert record.verdict is not None
    assert record.verdict.cause is not None
    assert record.verdict.kind == "semantic"
    assert record.verdict.cause.what == "in the recording logits were divided by a temperature of 0.7"
    assert evidence(record)["tried: temperature"] < 4 < evidence(record)["recording's error over our own"]


def test_a_beginning_token_that_was_not_recorded_is_found_out(recorded: Path, tmp_path: Path) -> None:
    path = tmp_path / "bos.safetensors"
    ids = [[257, *ids] for ids in Recording.read(recorded).token_ids]  # the tiny Llama's beginning token
    written = f"inputs.token_ids={json.dumps(ids, separators=(',', ':'))}"
    assert record.main([str(path), *TINY, "inputs=token_ids", written, "device=cpu", "dtype=bfloat16"]) == 0
    with_bos = Recording.read(path)
    kept_N = torch.cat([torch.arange(len(row)) > 0 for row in with_bos.token_ids])
    tensors = {"log_probabilities": with_bos.tensors["log_probabilities"][kept_N]}
    without = Recording(token_ids=[row[1:] for row in with_bos.token_ids], tensors=tensors, about={"dtype": "bfloat16"})
    without.write(path)
    found = against(path, tmp_path, "dtype=bfloat16")
    assert found.verdict is not None
    assert found.verdict.cause is not None
    assert found.verdict.cause.what == "in the recording a beginning token (257) was put before each text"


def test_rows_that_stand_one_token_off_are_found_out(recorded: Path, tmp_path: Path) -> None:
    lengths = [len(ids) for ids in Recording.read(recorded).token_ids]
    own_N = Recording.read(recorded).tensors["log_probabilities"]
    early_N = torch.cat([piece.roll(-1) for piece in own_N.split(lengths)])
    path = changed(recorded, tmp_path / "early.safetensors", logits=None, embeddings=None, log_probabilities=early_N)
    found = against(path, tmp_path, "dtype=bfloat16")
    assert found.verdict is not None
    assert found.verdict.cause is not None
    assert found.verdict.cause.what == "in the recording each row stands at the token before its own"


def test_what_nothing_closes_is_semantic_with_all_that_was_tried(recorded: Path, tmp_path: Path) -> None:
    noise_N = torch.randn(19, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 5
    path = changed(recorded, tmp_path / "noise.safetensors", logits=None, embeddings=None, log_probabilities=noise_N)
    found = against(path, tmp_path, "dtype=bfloat16")
    assert found.verdict is not None
    assert found.verdict.cause is not None
    assert found.verdict.kind == "semantic"
    assert found.verdict.cause.what is None
    tried = ["temperature", "rows one before", "rows one behind", "processed log-probabilities", "beginning token"]
    assert [name for name in tried if name not in found.verdict.cause.tried] == []
    assert {"positions", "packed as one text"} <= set(found.verdict.cause.tried)


def test_texts_that_differ_behind_the_first_batch_are_what_is_judged(tmp_path: Path) -> None:
    path, alone = tmp_path / "alone.safetensors", ("device=cpu", "dtype=bfloat16", "layout=single")
    assert dispatch(["record", str(path), *TINY, *TEXTS, *alone]) == 0
    logits_NV = Recording.read(path).tensors["logits"].clone()
    logits_NV[12:] += 1 + torch.arange(logits_NV.shape[1]) % 2
    found = against(changed(path, path, logits=logits_NV), tmp_path, *alone, "inputs.batch_size=1")
    assert found.verdict is not None
    assert (found.verdict.kind, found.verdict.texts) == ("semantic", (1,))


def test_where_nothing_is_finite_nothing_is_known() -> None:
    rows_NF = torch.ones(3, 4)
    found = over_own(rows_NF, rows_NF * torch.nan, rows_NF, [3])
    assert (found.same, found.counted) == (False, 0)
    verdict = verdict_on(Judged(quantity="logits", found=found, own_dtype="float16"), (0,), "id", None)
    assert verdict.kind == "inconclusive"
    assert "no row of logits is finite in our own run" in verdict.reason


def test_what_a_batch_lacks_is_left_out_of_a_recording() -> None:
    pieces = {name: [torch.ones(1, 2), torch.ones(1, 2)] for name in ("embeddings", "float64:embeddings")}
    pieces["float64:embeddings"].pop()
    kept = taking._Kept(pieces=pieces)
    assert [name for name, _ in taking._joined(kept, [[1, 2], [3, 4, 5]])] == ["embeddings"]
    assert kept.left_out == {"float64:embeddings": "not in every batch, or of another shape"}


def test_embeddings_alone_are_compared(recorded: Path, tmp_path: Path) -> None:
    path = changed(recorded, tmp_path / "embeddings.safetensors", logits=None, log_probabilities=None)
    found = against(path, tmp_path, "dtype=bfloat16")
    assert found.output_kind == "embeddings"
    assert found.verdict is not None
    assert found.verdict.kind == "identical"


def test_a_recording_of_something_else_is_said_in_one_line(recorded: Path, tmp_path: Path) -> None:
    N = len(Recording.read(recorded).tensors["logits"])
    path = changed(
        recorded,
        tmp_path / "h.safetensors",
        logits=None,
        log_probabilities=None,
        embeddings=None,
        hidden_states=torch.ones(N, 4),
    )
    request = request_of(*TINY, f"reference=recording:{path}", f"output_dir={tmp_path}", "sweep=s")
    assert carry_out(request) == 1
    found = Sweep.read(tmp_path / "single" / "s").records[0]
    assert found.reason == ("the recording holds hidden_states, and this cell gives logits; type checkpoint.head=base")


def test_a_sweep_keeps_recordings_within_their_bound(tmp_path: Path) -> None:
    choices = (*TINY, *TEXTS, "dtype=bfloat16", "record=true", "verdict=false", f"output_dir={tmp_path}", "sweep=s")
    assert carry_out(request_of(*choices)) == 0
    folder = tmp_path / "single" / "s"
    (path,) = (folder / "recordings").iterdir()
    whole = Recording.read(path)
    assert {"float64:logits", "module:model.norm", "float64:module:model.norm"} <= whole.tensors.keys()
    assert whole.about["floor"] > 0
    assert whole.about["floors"]["model.norm"] > 0
    assert 0 < whole.about["float64"]["noise"] < 1e-12
    path.unlink()
    assert carry_out(request_of(*choices, "record_mib=0.01")) == 0  # a finished cell without a recording runs again
    small = Recording.read(path)
    assert path.stat().st_size < 30_000
    assert small.token_ids == whole.token_ids[:1]
    assert small.about["left_out"]["modules"].endswith("from module:model.embed_tokens on: more than 0.01 MiB")
    assert small.about["left_out"]["texts"] == "1 of 2: more than 0.01 MiB"


def test_a_recording_is_read_once(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    original = RecordedReference.__init__

    def counted(self: RecordedReference, path: Path) -> None:
        reads.append(path)
        original(self, path)

    monkeypatch.setattr(RecordedReference, "__init__", counted)
    request = request_of(
        *TINY, f"reference=recording:{recorded}", "attention=eager,sdpa", "verdict=false", f"output_dir={tmp_path}"
    )
    assert carry_out(request) == 0
    assert len(reads) == 1
