"""What workers on other machines have in common: the environment that the plan was made for, and theirs."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from sweeper.environment import environment, identity
from sweeper.errors import ConfigError, SweeperError
from sweeper.launchers.launcher import MakeWorker
from sweeper.launchers.messages import Message, Speaker


def threads_here() -> int:
    """How many threads torch uses in this process."""
    import torch

    return torch.get_num_threads()


def with_threads(threads: int) -> dict[str, str]:
    """The variables of a worker that computes with so many threads, whatever its scheduler has in mind."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    inherited = {name: os.environ[name] for name in ("GOMP_SPINCOUNT", "SWEEPER_CACHE") if name in os.environ}
    return {**inherited, **dict.fromkeys(names, str(threads))}


def compute_with(threads: int) -> None:
    """Makes this process compute with so many threads, whatever its scheduler had in mind."""
    os.environ.update(with_threads(threads))
    import torch

    torch.set_num_threads(threads)  # it may have been loaded before this was called


def checked_speaker(make_worker: MakeWorker, planned_for: dict[str, Any], say: Callable[[Message], None]) -> Speaker:
    """What runs cells in this process, if it is what the cells' ids say.

    Raises:
        ConfigError: another GPU, another version: the records would claim what is not so.
    """
    here = identity(environment(planned_for["device"]))
    other = {key: value for key, value in here.items() if planned_for.get(key) != value}
    if other:
        key, value = next(iter(other.items()))
        raise ConfigError(
            f"a worker has {key}={value!r} and the plan was made for {planned_for.get(key)!r}: give all workers the "
            "same machines, packages and threads"
        )
    return Speaker(make_worker, say)


def missing_package(launcher: str, error: ImportError) -> SweeperError:
    """The error where the extra of a launcher is not installed."""
    return ConfigError(f"launcher={launcher} needs its packages ({error.name}): pip install 'sweeper[{launcher}]'")
