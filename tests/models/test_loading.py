"""What the pool hands out is, bit for bit, what a user's own calls give; nothing is read twice."""

from __future__ import annotations

import contextlib
import functools
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from sweeper.checkpoints import prepare
from sweeper.config import Cell, Dtype, LoadStrategy
from sweeper.models import loading
from sweeper.models.loading import ModelPool, cast_copy
from sweeper.models.state import state_of
from sweeper.models.weights import WeightsKey
from tests.composing import request_of

STRATEGIES = [strategy for strategy in LoadStrategy if strategy is not LoadStrategy.AUTOCAST]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@functools.cache
def composed() -> Cell:
    return request_of("checkpoint=tiny_llama", "wandb.mode=disabled").cells[0]


def cell_of(strategy: LoadStrategy = LoadStrategy.DTYPE_AT_LOAD, dtype: Dtype = Dtype.FLOAT32) -> Cell:
    return composed().model_copy(update={"load_strategy": strategy, "dtype": dtype})


def folder() -> Path:
    return prepare(cell_of().checkpoint, device="cpu", say=print).folder


@functools.cache
def users_model(strategy: LoadStrategy, dtype: torch.dtype) -> Any:
    """Not to be changed: it is loaded once for all tests."""

    def from_pretrained(asked: torch.dtype | str, **options: Any) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder(), dtype=asked, **options)

    match strategy:
        case LoadStrategy.DTYPE_AT_LOAD:
            return from_pretrained(dtype).to("cpu")
        case LoadStrategy.CAST_AFTER_LOAD:
            return from_pretrained(torch.float32).to("cpu").to(dtype)
        case LoadStrategy.CAST_BEFORE_MOVE:
            return from_pretrained(torch.float32).to(dtype).to("cpu")
        case LoadStrategy.AUTO_THEN_CAST:
            return from_pretrained("auto").to("cpu").to(dtype)
        case _:
            return from_pretrained(dtype, device_map="cpu")


def same_state(one: nn.Module, other: nn.Module) -> bool:
    left, right = state_of(one), state_of(other)
    return list(left) == list(right) and all(
        entry.kind == right[name].kind
        and entry.tensor.dtype == right[name].tensor.dtype
        and torch.equal(entry.tensor, right[name].tensor)
        for name, entry in left.items()
    )


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[WeightsKey]:
    keys = []
    original = loading.load

    def load(folder: Path, key: WeightsKey, attention: str) -> nn.Module:
        keys.append(key)
        return original(folder, key, attention)

    monkeypatch.setattr(loading, "load", load)
    return keys


@pytest.mark.parametrize("order", [1, -1])
def test_every_strategy_in_every_dtype_has_the_state_of_the_users_calls(order: int, reads: list[WeightsKey]) -> None:
    pool = ModelPool()
    dtypes = (Dtype.FLOAT32, Dtype.BFLOAT16, Dtype.FLOAT64)
    pairs = [(strategy, dtype) for dtype in dtypes for strategy in STRATEGIES][::order]
    for _ in range(2):  # the second time round what was derived must not have changed what it came from
        for strategy, dtype in pairs:
            pooled = pool.get(cell_of(strategy, dtype), folder())[0].model
            assert same_state(pooled, users_model(strategy, loading.TORCH_DTYPES[dtype])), (strategy, dtype)
    assert len(reads) == len(set(reads)) == 2 * len(dtypes) + 1  # dtype_at_load and device_map in each, and auto


def test_a_cast_copy_leaves_its_source_alone_and_shares_no_objects_with_it() -> None:
    source = users_model.__wrapped__(LoadStrategy.DTYPE_AT_LOAD, torch.float32)
    before = {name: entry.tensor.clone() for name, entry in state_of(source).items()}
    copied = cast_copy(source, torch.float32)
    rounded = cast_copy(source, torch.bfloat16)
    assert rounded.lm_head.weight is rounded.model.embed_tokens.weight  # still tied
    for tensor in [*copied.parameters(), *copied.buffers()]:
        tensor.data = torch.zeros_like(tensor)  # as whoever puts back a value does
    assert all(torch.equal(entry.tensor, before[name]) for name, entry in state_of(source).items())


def test_without_room_two_models_stay_and_a_cast_is_loaded_by_itself(
    monkeypatch: pytest.MonkeyPatch, reads: list[WeightsKey]
) -> None:
    monkeypatch.setattr(loading, "free_bytes", lambda _device: 0)
    pool = ModelPool()
    reference = cell_of()
    rounded, auto = (cell_of(strategy, Dtype.BFLOAT16) for strategy in (STRATEGIES[0], LoadStrategy.AUTO_THEN_CAST))
    for cell in (reference, rounded, reference, auto, reference, rounded):
        model = pool.get(cell, folder())[0].model
        assert same_state(model, users_model(cell.load_strategy, loading.TORCH_DTYPES[cell.dtype]))
    keys = [WeightsKey.of(cell) for cell in (reference, rounded, auto, rounded)]
    assert reads == keys


@contextlib.contextmanager
def nothing_collected_by_itself() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def test_a_model_that_the_pool_drops_is_freed_without_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, alive = ModelPool(), dict[Dtype, weakref.ref[nn.Module]]()
    cells = [cell_of(dtype=dtype) for dtype in (Dtype.FLOAT32, Dtype.BFLOAT16, Dtype.FLOAT16)]
    cells.append(cell_of(LoadStrategy.CAST_AFTER_LOAD, Dtype.BFLOAT16))
    with nothing_collected_by_itself():
        for cell in cells:
            model = weakref.ref(pool.get(cell, folder())[0].model)
            alive[cell.dtype] = model
        monkeypatch.setattr(loading, "free_bytes", lambda _device: 0)
        monkeypatch.setattr(gc, "collect", lambda: pytest.fail("the collector was needed"))
        pool.get(cell_of(dtype=Dtype.FLOAT64), folder())
        assert [dtype for dtype, model in alive.items() if model()] == [Dtype.BFLOAT16]  # two stay, the last used


def test_a_dropped_model_that_refers_to_itself_is_freed_before_the_next_is_read(
    monkeypatch: pytest.MonkeyPatch, reads: list[WeightsKey]
) -> None:
    monkeypatch.setattr(loading, "free_bytes", lambda _device: 0)
    pool = ModelPool()
    first: Any = pool.get(cell_of(), folder())[0].model
    vars(first)["itself"] = first  # as a model that accelerate spread does
    dropped = weakref.ref(first)
    del first
    with nothing_collected_by_itself():
        for dtype in (Dtype.BFLOAT16, Dtype.FLOAT16):
            assert dropped() is not None
            pool.get(cell_of(dtype=dtype), folder())
        assert dropped() is None
    assert len(reads) == 3


def test_reading_is_told_and_a_cast_of_what_is_there_is_none() -> None:
    pool = ModelPool()
    asked = [cell_of(), cell_of(LoadStrategy.CAST_AFTER_LOAD, Dtype.BFLOAT16), cell_of()]
    assert [pool.get(cell, folder())[1] for cell in asked] == [True, False, False]


def places(model: nn.Module) -> list[tuple[str, torch.dtype, str]]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [(name, tensor.dtype, tensor.device.type) for name, tensor in tensors]


@pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=needs_gpu)])
@pytest.mark.parametrize("order", [1, -1])
def test_a_cast_before_the_move_is_made_of_what_was_read_for_others(
    device: str, order: int, reads: list[WeightsKey]
) -> None:
    pool = ModelPool()
    strategies = (LoadStrategy.DTYPE_AT_LOAD, LoadStrategy.CAST_BEFORE_MOVE)
    pairs = [(strategy, dtype) for dtype in (Dtype.FLOAT32, Dtype.BFLOAT16) for strategy in strategies][::order]
    for strategy, dtype in [*pairs, *pairs]:
        cell = cell_of(strategy, dtype).model_copy(update={"device": device})
        pooled = pool.get(cell, folder())[0].model
        expected = users_model.__wrapped__(strategy, loading.TORCH_DTYPES[dtype]).to(device)
        assert places(pooled) == places(expected)
        assert device == "meta" or same_state(pooled, expected)
    # float32 on the host once for all that is made of it, and bfloat16 at load
    assert sorted((key.read.dtype, key.read.device) for key in reads) == [
        (Dtype.BFLOAT16, device),
        (Dtype.FLOAT32, "cpu"),
    ]


def test_where_the_host_has_no_room_for_it_a_cast_before_the_move_is_read_by_itself(
    monkeypatch: pytest.MonkeyPatch, reads: list[WeightsKey]
) -> None:
    monkeypatch.setattr(loading, "free_bytes", lambda _device: 0)
    pool = ModelPool()
    for strategy, dtype in ((STRATEGIES[0], Dtype.FLOAT32), (LoadStrategy.CAST_BEFORE_MOVE, Dtype.BFLOAT16)):
        pool.get(cell_of(strategy, dtype).model_copy(update={"device": "meta"}), folder())
    assert [key.read.device for key in reads] == ["meta", "meta"]
