from __future__ import annotations

import numpy as np
import pytest
import torch

from sweeper import devices as transfer


@pytest.fixture(autouse=True)
def fresh_staging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_staging", transfer._Staging())


def test_pieces_keep_their_numbers_whatever_is_put_behind_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_BLOCK", 10)
    put = [np.arange(size).reshape(-1, 2) + 100 * size for size in (2, 4, 6, 30, 8)]
    pieces = [transfer._staging.put(numbers) for numbers in put]
    for numbers, piece in zip(put, pieces, strict=True):
        assert torch.equal(piece, torch.from_numpy(numbers))


def test_a_block_of_inference_mode_can_be_written_to_outside_of_it() -> None:
    with torch.inference_mode():
        transfer._staging.put(np.arange(3))
    assert transfer._staging.put(np.arange(4)).add_(1).tolist() == [1, 2, 3, 4]


def test_on_the_cpu_nothing_is_staged() -> None:
    assert torch.equal(transfer.to_device([3, 1, 2], "cpu"), torch.tensor([3, 1, 2]))
    assert transfer._staging._used == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_run_behind_the_device_and_are_right() -> None:
    busy = torch.cuda.Event()
    torch.cuda._sleep(200_000_000)
    copies = [transfer.to_device(np.full((1000, 3), number), "cuda") for number in range(300)]  # several blocks
    busy.record()
    assert not busy.query(), "a copy waited for the device"
    assert [int(copy.unique()) for copy in copies] == list(range(300))
