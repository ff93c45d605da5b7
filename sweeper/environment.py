"""What this machine and its packages are. No host name, no user, no paths: records are made to be shared."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from sweeper._version import __version__
from sweeper.errors import ConfigError

PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "hydra-core")

# Cannot change a result: which Python and which Hydra ran it, how the weights' bytes were read, how many GPUs lie idle.
_IRRELEVANT = frozenset({"commit", "python", "accelerate", "safetensors", "hydra_core", "gpu_count"})

_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def default_device() -> Literal["cpu", "cuda"]:
    """`cuda` where torch sees a GPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def environment(device: str) -> dict[str, Any]:
    """Versions of the packages that every cell runs on, and what `device` is; without a GPU what the CPU is, on which
    the cells run that can."""
    device = device if device == "cpu" else default_device()
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "sweeper": __version__,
        **_commit(),
        **versions(PACKAGES),
        "device": device,
        **(_gpu() if device == "cuda" else _cpu()),
    }


def identity(environment: dict[str, Any]) -> dict[str, Any]:
    """The part of an environment that can change any result: it is hashed into the id of every cell."""
    return {key: value for key, value in environment.items() if key not in _IRRELEVANT}


def versions(distributions: Iterable[str]) -> dict[str, str | None]:
    """The versions as an environment has them; None for a package that is not installed."""
    return {name.replace("-", "_"): version(name) for name in distributions}


def version(distribution: str) -> str | None:
    """The installed version, without importing the package."""
    from importlib import metadata  # 10 ms that --help does not need

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


@cache
def _commit() -> dict[str, str]:
    """The commit of the checkout that this package runs from; nothing where it was installed as a wheel."""
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / ".git").exists():
        return {}
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {"commit": found.stdout.strip()} if found.returncode == 0 else {}


def needed(module: str, *, extra: str, what: str) -> ModuleType:
    """A module of a package that only some need.

    Raises:
        ConfigError: it is not installed; says what to install.
    """
    try:
        return import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise ConfigError(
            f"{what} needs the package {package}, which is not installed: pip install 'sweeper[{extra}]' (or {package})"
        ) from None


def _gpu() -> dict[str, Any]:
    import torch

    return {
        "gpu": torch.cuda.get_device_name(),
        "compute_capability": "{}.{}".format(*torch.cuda.get_device_capability()),
        "gpu_count": torch.cuda.device_count(),
        "driver": _driver_version(_NVIDIA_DRIVER),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "cublas": _cublas_version(torch.version.cuda or ""),
        # NVIDIA's libraries obey it whatever torch's own flags say
        "nvidia_tf32_override": os.environ.get("NVIDIA_TF32_OVERRIDE"),
    }


def _driver_version(path: Path) -> str | None:
    """The version of NVIDIA's driver, from the kernel module or else nvidia-smi, which is slow; None: neither tells it.

    Args:
        path: where the kernel module says it, on Linux.
    """
    try:
        told = re.search(r"^NVRM version:.*?\s(\d+(?:\.\d+)+)\s", path.read_text(encoding="utf-8"), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        told = None
    if told is not None:
        return told[1]
    from torch.utils import collect_env

    version: str | None = collect_env.get_nvidia_driver_version(collect_env.run)
    return version


def _cublas_version(cuda_version: str) -> str | None:
    """The version of the loaded library; None where it does not go by its Linux name. torch has no call for it."""
    import ctypes

    try:
        library = ctypes.CDLL(f"libcublas.so.{cuda_version.split('.')[0]}")
    except OSError:
        return None
    numbers = []
    for part in range(3):  # cublasGetProperty: MAJOR_VERSION, MINOR_VERSION, PATCH_LEVEL
        number = ctypes.c_int()
        library.cublasGetProperty(part, ctypes.byref(number))
        numbers.append(str(number.value))
    return ".".join(numbers)


def _cpu() -> dict[str, Any]:
    import torch

    return {
        "cpu": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "mkldnn": torch.backends.mkldnn.is_available(),
    }


def _cpu_model() -> str:
    """The model's name on Linux; elsewhere what the platform calls its processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
