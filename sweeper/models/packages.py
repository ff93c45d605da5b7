"""Installed packages, besides torch and transformers, that can change what a checkpoint computes. Imports neither.

What cannot be looked at (a model of the hub, which may not be here yet) counts as if it used all of them.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from sweeper.config import Cell, Checkpoint, FolderCheckpoint, SeededCheckpoint, WheelCheckpoint

# transformers' `quant_method` -> the distributions that store or multiply such weights
QUANTIZERS: dict[str, tuple[str, ...]] = {
    "aqlm": ("aqlm",),
    "auto-round": ("auto-round",),
    "awq": ("gptqmodel", "autoawq"),
    "bitnet": (),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed-tensors",),
    "eetq": ("kernels",),
    "fbgemm_fp8": ("fbgemm-gpu", "kernels"),
    "fp8": ("kernels", "triton"),
    "fp_quant": ("fp-quant", "qutlass"),
    "gptq": ("gptqmodel", "optimum"),
    "higgs": ("flute-kernel", "fast-hadamard-transform"),
    "hqq": ("hqq",),
    "mxfp4": ("kernels", "triton"),
    "quanto": ("optimum-quanto",),
    "quark": ("amd-quark",),
    "spqr": ("spqr-quant",),
    "torchao": ("torchao",),
    "vptq": ("vptq",),
}
ADAPTERS = ("peft",)
# what transformers' recurrent and convolutional models take in place of their plain code, where it is installed
KERNELS = ("kernels", "causal-conv1d", "mamba-ssm", "flash-linear-attention")
_TAKES_KERNELS = re.compile(r"lazy_load_kernel|causal_conv1d|mamba_ssm|flash_linear_attention")
_EVERYTHING = tuple(dict.fromkeys([*(name for names in QUANTIZERS.values() for name in names), *ADAPTERS, *KERNELS]))


def packages(cell: Cell) -> tuple[str, ...]:
    """The distributions that can change what the cell's checkpoint computes."""
    checkpoint: Checkpoint = cell.checkpoint
    match checkpoint:
        case SeededCheckpoint():
            return _of_architecture(checkpoint.architecture)
        case WheelCheckpoint(format="gguf"):
            return ("gguf",)  # dequantises it
        case FolderCheckpoint():
            return _of_place(Path(checkpoint.path).expanduser(), checkpoint.base)
    return _EVERYTHING


def _of_place(place: Path, base: str | None) -> tuple[str, ...]:
    """Those of a folder, which an adapter's base may be in; of a GGUF file what dequantises it."""
    if place.suffix == ".gguf" or (any(place.glob("*.gguf")) and not any(place.glob("*.safetensors"))):
        return ("gguf",)
    if base is not None:
        in_base = _of_place(Path(base), None) if Path(base).is_absolute() else _EVERYTHING
        return tuple(dict.fromkeys([*in_base, *ADAPTERS]))
    config = place / "config.json"
    return _of_config(config, config.stat().st_mtime_ns) if config.is_file() else _EVERYTHING


@lru_cache(maxsize=64)
def _of_config(path: Path, _mtime_ns: int) -> tuple[str, ...]:
    """Reads a folder's `config.json` and its neighbours; time is there so that a changed file is read again."""
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        method = (config.get("quantization_config") or {}).get("quant_method")
        found = list(_of_architecture(str(config.get("model_type"))))
        if method is not None:
            found += next((names for key, names in QUANTIZERS.items() if str(method).startswith(key)), _EVERYTHING)
    except (OSError, ValueError, AttributeError):  # what it is, is said when it is loaded
        return _EVERYTHING
    adapters = ADAPTERS if (path.parent / "adapter_config.json").is_file() else ()
    return tuple(dict.fromkeys([*found, *adapters]))


@lru_cache(maxsize=64)
def _of_architecture(model_type: str) -> tuple[str, ...]:
    """`KERNELS`, where transformers' own code of the architecture looks for them; or where there is no such code."""
    from importlib.util import find_spec  # 10 ms that --help does not need

    found = find_spec("transformers")
    roots = list(found.submodule_search_locations or ()) if found is not None else []
    folder = Path(roots[0] if roots else ".", "models", model_type.replace("-", "_"))
    code = [path.read_text(encoding="utf-8") for path in folder.glob("modeling_*.py")]
    return () if code and not any(map(_TAKES_KERNELS.search, code)) else KERNELS
