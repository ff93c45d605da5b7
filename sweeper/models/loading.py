"""Loads a model from a folder of safetensors, and keeps a pool so that no weight is loaded twice."""

from __future__ import annotations

import dataclasses
import functools
import gc
import time
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sweeper.config import Cell, Dtype
from sweeper.devices import free_bytes, synchronize
from sweeper.errors import UnsupportedError
from sweeper.models.backends import implementation
from sweeper.models.checks import state_mismatch, switch_attention
from sweeper.models.copying import copied_model
from sweeper.models.pretrained import whole_model
from sweeper.models.swapping import sharing_parameter
from sweeper.models.weights import Read, WeightsKey

TORCH_DTYPES: dict[Dtype, torch.dtype] = {
    Dtype.FLOAT32: torch.float32,
    Dtype.BFLOAT16: torch.bfloat16,
    Dtype.FLOAT16: torch.float16,
    Dtype.FLOAT64: torch.float64,
}


def load(folder: Path, key: WeightsKey, attention: str) -> nn.Module:
    """Loads a model in `eval()` mode with the calls that a user of its load strategy would make.

    Raises:
        UnsupportedError: transformers refuses the attention implementation, or lacks a package.
        CheckpointError: the files lack weights that the model needs, or hold some that it has no place for.

    Args:
        folder: `config.json` and safetensors weights.
        key: what is read, and the cast behind it.
        attention: transformers' name of the attention implementation.
    """
    model = _read(folder, key.read, attention)
    return model if key.cast is None else _to(model, TORCH_DTYPES[key.cast])


def _to(model: nn.Module, place: torch.dtype | str) -> nn.Module:
    """`model.to(place)`.

    Raises:
        UnsupportedError: quantised weights cannot be cast or moved so; transformers' own reason.
    """
    try:
        return model.to(place)
    except ValueError as error:
        raise UnsupportedError(
            f'the weights cannot go to {place}: transformers says "{" ".join(str(error).split())}"'
        ) from None


def _read(folder: Path, read: Read, attention: str) -> nn.Module:
    options = {
        "dtype": "auto" if read.dtype is None else TORCH_DTYPES[read.dtype],
        "attn_implementation": attention,
        "use_safetensors": True,
        "local_files_only": True,
        **({"device_map": read.device} if read.device_map else {}),
    }
    model = whole_model(folder, read.checkpoint, options)
    return model.eval() if read.device_map else _moved(model, read)


def _moved(model: nn.Module, read: Read) -> nn.Module:
    """The model on the read's device, cast before."""
    if read.cast_before_move is not None:
        model = _to(model, TORCH_DTYPES[read.cast_before_move])
    return _to(model, read.device).eval()


def cast_copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """What `model.to(dtype)` makes of the model, which stays as it is. Tensors that are of that dtype are shared."""
    return _to(sharing_copy(model), dtype)


def sharing_copy(model: nn.Module) -> nn.Module:
    """A model of its own on the same memory, with its own attention backend.

    Its parameters and buffers are objects of their own, so that `.data` can be exchanged on one of the two.
    """
    own: dict[int, Any] = {id(parameter): sharing_parameter(parameter) for parameter in model.parameters()}
    own |= {id(buffer): buffer.detach() for buffer in model.buffers()}
    copied = copied_model(model, own)
    for name in ("to", "cuda"):  # accelerate gives a model on several GPUs functions that hold the model itself
        vars(copied).pop(name, None)
    return copied


@dataclass
class LoadedModel:
    """A model in memory, and what it cost to get it there.

    Attributes:
        fits: what cells asked of its parameters, and was found.
    """

    model: nn.Module
    key: WeightsKey
    load_time_s: float
    fits: set[Hashable] = field(default_factory=set)

    @functools.cached_property
    def nbytes(self) -> int:
        """The bytes of all parameters and buffers, tied ones once."""
        return sum(tensor.nbytes for tensor in [*self.model.parameters(), *self.model.buffers()])


def _check_fits(loaded: LoadedModel, cell: Cell) -> None:
    """Looks once at the parameters for all cells that ask the same of them.

    Raises:
        UnsupportedError: they are not of the cell's dtype or on its device.
    """
    asked = cell.dtype, cell.load_strategy, cell.device
    if asked not in loaded.fits and (mismatch := state_mismatch(loaded.model, cell)):
        raise UnsupportedError(mismatch)
    loaded.fits.add(asked)


_Slot = tuple[WeightsKey, str]
"""What is in memory, and the backend that it alone serves; empty for a model that is switched between backends."""


class ModelPool:
    """The models in memory: as many as half of the memory that is not taken otherwise holds, at least two.

    A reference's and a candidate's are always there; the least recently used one goes first. What differs in the last
    cast alone is read once, and so is what differs in a cast before the move, where the host has memory for it.
    """

    def __init__(self) -> None:
        self._models: OrderedDict[_Slot, LoadedModel] = OrderedDict()
        self._on_host: tuple[Read, nn.Module] | None = None  # the last one that was moved, as it was read

    def get(self, cell: Cell, folder: Path) -> tuple[LoadedModel, bool]:
        """The cell's model with the cell's attention backend, and whether its weights had to be read.

        Raises:
            UnsupportedError: the backend is not in effect, however the model is loaded; or the parameters are not of
                the cell's dtype or on its device.
        """
        key = WeightsKey.of(cell)
        attention = implementation(cell.attention)
        was_read, reason = False, None
        for own in ("", attention):  # one model for all backends, where it can be switched; else one each
            slot = key, own
            if is_new := slot not in self._models:
                start = time.perf_counter()
                model, was_read = self._load(folder, key, attention, own)
                synchronize(cell.device)
                self._models[slot] = LoadedModel(model, key, time.perf_counter() - start)
            self._models.move_to_end(slot)
            loaded = self._models[slot]
            reason = switch_attention(loaded.model, attention)
            if reason is None:
                _check_fits(loaded, cell)
                return loaded, was_read
            if is_new and was_read:  # it was loaded for this backend
                break
        raise UnsupportedError(reason)

    def _load(self, folder: Path, key: WeightsKey, attention: str, own: str) -> tuple[nn.Module, bool]:
        """The model, and whether its weights had to be read."""
        read = WeightsKey(key.read), own
        wanted = _estimated_bytes(folder, key)
        self._make_room(key.read.device, wanted)
        if key.cast is None:
            return self._read(folder, key.read, attention, own)
        must_read = read not in self._models
        if must_read:
            if not self._has_room(key.read.device, wanted + _estimated_bytes(folder, read[0])):
                return load(folder, key, attention), True
            model, _ = self._read(folder, key.read, attention, own)
            self._models[read] = LoadedModel(model, read[0], 0)
            self._models.move_to_end(read, last=False)  # nobody's model: the first to go
        return cast_copy(self._models[read].model, TORCH_DTYPES[key.cast]), must_read

    def _read(self, folder: Path, read: Read, attention: str, own: str) -> tuple[nn.Module, bool]:
        """The model, and whether its files had to be read; without, with the backend of whom they were read for."""
        as_read = dataclasses.replace(read, cast_before_move=None)
        stays = not (own or read.device_map or read.device == "cpu") and read.dtype is Dtype.FLOAT32
        if not stays or _estimated_bytes(folder, WeightsKey(as_read)) > free_bytes("cpu") // 8:
            return load(folder, WeightsKey(read), attention), True
        must_read = self._on_host is None or self._on_host[0] != as_read
        if must_read:
            self._on_host = None
            self._on_host = as_read, load(folder, WeightsKey(dataclasses.replace(as_read, device="cpu")), attention)
        assert self._on_host is not None, "it was there, or was read"
        return _moved(sharing_copy(self._on_host[1]), read), must_read

    def _make_room(self, device: str, wanted: int) -> None:
        while len(self._models) > 1 and not self._has_room(device, wanted):
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, loaded = self._models.popitem(last=False)
        model = weakref.ref(loaded.model)
        del loaded
        if model() is not None:  # someone else's still, or in a circle (`device_map`, adapters)
            gc.collect()

    def _has_room(self, device: str, wanted: int) -> bool:
        held = sum(loaded.nbytes for loaded in self._models.values())
        return held + wanted <= (held + free_bytes(device)) / 2

    def room_beside(self, cell: Cell, folder: Path) -> bool:
        """Whether the cell's model is here, or can be without another one's going."""
        key = WeightsKey.of(cell)
        here = any((key, own) in self._models for own in ("", implementation(cell.attention)))
        wanted = _estimated_bytes(folder, key) + (_estimated_bytes(folder, WeightsKey(key.read)) if key.cast else 0)
        return here or self._has_room(key.read.device, wanted)

    def keep(self, cell: Cell) -> None:
        """Makes the cell's model, if it is here, the last to go."""
        for slot in ((WeightsKey.of(cell), own) for own in ("", implementation(cell.attention))):
            if slot in self._models:
                self._models.move_to_end(slot)

    def clear(self) -> None:
        self._models.clear()
        self._on_host = None


class SpreadPool(ModelPool):
    """Models that lie on all GPUs, as `device_map="auto"` spreads them."""

    def _load(self, folder: Path, key: WeightsKey, attention: str, own: str) -> tuple[nn.Module, bool]:
        place = "auto" if key.read.device == "cuda" else key.read.device  # "auto" is the GPUs wherever there are any
        read = dataclasses.replace(key.read, device=place, device_map=True)
        model, was_read = super()._load(folder, WeightsKey(read, key.cast), attention, own)
        places = {str(place) for place in getattr(model, "hf_device_map", {}).values()}
        if key.read.device == "cuda" and (off := places & {"cpu", "disk"}):
            raise UnsupportedError(
                f"weights=spread: the GPUs together have no room, part of the model was put on the {min(off)}; "
                "type weights=streamed"
            )
        return model, was_read

    def _has_room(self, device: str, wanted: int) -> bool:
        if device == "cpu":
            return super()._has_room(device, wanted)
        free = sum(torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count()))
        unused = sum(
            torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu)
            for gpu in range(torch.cuda.device_count())
        )
        held = sum(loaded.nbytes for loaded in self._models.values())
        return held + wanted <= (held + free + unused) / 2


def _estimated_bytes(folder: Path, key: WeightsKey) -> int:
    """Estimates the model in memory as if the file had 16 bits a number: what has 32 is overestimated."""
    in_file = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    dtype = key.cast or key.read.cast_before_move or key.read.dtype
    return in_file if dtype is None else in_file * TORCH_DTYPES[dtype].itemsize // 2
