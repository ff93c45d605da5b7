"""From a folder of safetensors to a model: a function a load strategy, a pool so that no weight is loaded twice."""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sweeper.attention import implementation
from sweeper.checkpoints.folder import no_progress_bars
from sweeper.config import Cell, Checkpoint, Dtype, Head, LoadStrategy

TORCH_DTYPES: dict[Dtype, torch.dtype] = {
    Dtype.FLOAT32: torch.float32,
    Dtype.BFLOAT16: torch.bfloat16,
    Dtype.FLOAT16: torch.float16,
    Dtype.FLOAT64: torch.float64,
}

FromPretrained = Callable[..., nn.Module]


@dataclass(frozen=True)
class WeightsKey:
    """What decides the weights in memory. Attention, flags and layout are switched on a loaded model."""

    checkpoint: Checkpoint
    load_strategy: LoadStrategy
    dtype: Dtype
    device: str

    @classmethod
    def of(cls, cell: Cell) -> WeightsKey:
        # autocast keeps float32 weights: the same call, hence the same model, as dtype_at_load in float32
        if cell.load_strategy is LoadStrategy.AUTOCAST:
            return cls(cell.checkpoint, LoadStrategy.DTYPE_AT_LOAD, Dtype.FLOAT32, cell.device)
        return cls(cell.checkpoint, cell.load_strategy, cell.dtype, cell.device)


def load(folder: Path, key: WeightsKey, attention: str) -> nn.Module:
    """Loads a model in `eval()` mode, as a user of this load strategy would.

    Args:
        folder: `config.json` and safetensors weights.
        key: load strategy, dtype and device.
        attention: transformers' name of the attention implementation.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    auto_class = AutoModelForCausalLM if key.checkpoint.head is Head.CAUSAL_LM else AutoModel

    def from_pretrained(dtype: torch.dtype | str, **options: Any) -> nn.Module:
        model: nn.Module = auto_class.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            **options,
        )
        return model

    with no_progress_bars():
        return _STRATEGIES[key.load_strategy](from_pretrained, TORCH_DTYPES[key.dtype], key.device).eval()


def _dtype_at_load(from_pretrained: FromPretrained, dtype: torch.dtype, device: str) -> nn.Module:
    return from_pretrained(dtype).to(device)


def _cast_after_load(from_pretrained: FromPretrained, dtype: torch.dtype, device: str) -> nn.Module:
    return from_pretrained(torch.float32).to(device).to(dtype)


def _cast_before_move(from_pretrained: FromPretrained, dtype: torch.dtype, device: str) -> nn.Module:
    return from_pretrained(torch.float32).to(dtype).to(device)


def _auto_then_cast(from_pretrained: FromPretrained, dtype: torch.dtype, device: str) -> nn.Module:
    return from_pretrained("auto").to(device).to(dtype)


def _device_map(from_pretrained: FromPretrained, dtype: torch.dtype, device: str) -> nn.Module:
    return from_pretrained(dtype, device_map=device)


_STRATEGIES: dict[LoadStrategy, Callable[[FromPretrained, torch.dtype, str], nn.Module]] = {
    LoadStrategy.DTYPE_AT_LOAD: _dtype_at_load,
    LoadStrategy.CAST_AFTER_LOAD: _cast_after_load,
    LoadStrategy.CAST_BEFORE_MOVE: _cast_before_move,
    LoadStrategy.AUTO_THEN_CAST: _auto_then_cast,
    LoadStrategy.DEVICE_MAP: _device_map,
}


def autocast(cell: Cell) -> contextlib.AbstractContextManager[Any]:
    """The context of a forward: `torch.autocast` for that load strategy, nothing otherwise."""
    if cell.load_strategy is LoadStrategy.AUTOCAST:
        return torch.autocast(cell.device, TORCH_DTYPES[cell.dtype])
    return contextlib.nullcontext()


@dataclass
class LoadedModel:
    """A model in memory, and what it cost to get it there."""

    model: nn.Module
    key: WeightsKey
    load_time_s: float


class ModelPool:
    """The models in memory: by default two, a reference's and a candidate's; the least recently used one goes first."""

    def __init__(self, capacity: int = 2) -> None:
        self._capacity = capacity
        self._models: OrderedDict[WeightsKey, LoadedModel] = OrderedDict()

    def get(self, cell: Cell, folder: Path) -> tuple[LoadedModel, bool]:
        """The cell's model with the cell's attention backend, and whether it had to be loaded."""
        key = WeightsKey.of(cell)
        attention = implementation(cell.attention)
        loaded = self._models.get(key)
        if loaded is not None:
            self._models.move_to_end(key)
            loaded.model.set_attn_implementation(attention)  # type: ignore[operator]
            return loaded, False
        while len(self._models) >= self._capacity:
            self._models.popitem(last=False)
        start = time.perf_counter()
        model = load(folder, key, attention)
        synchronize(cell.device)
        loaded = LoadedModel(model, key, time.perf_counter() - start)
        self._models[key] = loaded
        return loaded, True

    def keep(self, cell: Cell) -> None:
        """Makes the cell's model, if it is here, the last to go."""
        if (key := WeightsKey.of(cell)) in self._models:
            self._models.move_to_end(key)

    def clear(self) -> None:
        self._models.clear()


def synchronize(device: str) -> None:
    """Waits for the device, so that a host clock read next means something."""
    if device == "cuda":
        torch.cuda.synchronize()
