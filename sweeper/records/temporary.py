"""What is being written has a name that says who writes it, so that what a killed process left can be removed."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import time
import uuid
from functools import cache
from pathlib import Path

ABANDONED_S = 3600.0
"""Nothing takes so long to write. It decides where the writer's process cannot be looked up from here."""
_PREFIX = ".tmp-"


@cache
def machine() -> str:
    """One running kernel, which all its containers share."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else f"{platform.node()}-{uuid.getnode():x}"


def temporary_prefix() -> str:
    """How names begin that this process gives to what it is writing."""
    return f"{_PREFIX}{_processes()}-{os.getpid()}-"


def remove_abandoned(folder: Path) -> None:
    """Removes what killed processes were writing in a folder."""
    for path in folder.glob(f"{_PREFIX}*"):
        if _is_abandoned(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _is_abandoned(path: Path) -> bool:
    _, processes, number, *_ = [*path.name.removeprefix(".").split("-"), "", ""]
    if processes == _processes() and number.isdecimal():
        import psutil  # only where a run was killed

        return not psutil.pid_exists(int(number))
    try:
        return time.time() - path.lstat().st_mtime > ABANDONED_S
    except FileNotFoundError:
        return False  # its writer is done with it


@cache
def _processes() -> str:
    """Stands for all processes that can be looked up from here: those of this machine, or of this container."""
    namespace = Path("/proc/self/ns/pid")
    seen = os.readlink(namespace) if namespace.is_symlink() else ""
    return hashlib.sha256(f"{machine()}{seen}".encode()).hexdigest()[:8]
