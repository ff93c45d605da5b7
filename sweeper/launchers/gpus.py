"""`launcher=gpus`: a worker a GPU of this machine, each in a process that sees no other."""

from __future__ import annotations

import os
from collections.abc import Mapping

from sweeper.config import GpusLauncherSettings, Settings
from sweeper.errors import ConfigError
from sweeper.launchers.processes import ProcessLauncher
from sweeper.launchers.worker_process import VISIBLE_GPUS


def make_gpus_launcher(settings: Settings) -> ProcessLauncher:
    """As many workers as there are GPUs for, or as were asked for.

    Raises:
        ConfigError: there are not enough GPUs.
    """
    assert isinstance(settings.launcher, GpusLauncherSettings)
    return ProcessLauncher(places(settings.launcher, visible_gpus()), settings.cell_timeout_s)


def places(asked: GpusLauncherSettings, gpus: list[str]) -> list[Mapping[str, str]]:
    """What each worker sees, as environment variables; without GPUs, workers on the CPU.

    Raises:
        ConfigError: there are not enough GPUs.
    """
    if not gpus:
        return [{} for _ in range(asked.workers or 1)]
    enough = len(gpus) // asked.gpus_a_worker
    workers = enough if asked.workers is None else asked.workers
    if not workers or workers > enough:
        needed = f"launcher.workers={workers or 1} of {asked.gpus_a_worker} GPUs each"
        raise ConfigError(
            f"{needed}: there are {len(gpus)} ({VISIBLE_GPUS}, or all); ask for {enough} or fewer workers"
        )
    share = asked.gpus_a_worker
    return [{VISIBLE_GPUS: ",".join(gpus[start : start + share])} for start in range(0, workers * share, share)]


def visible_gpus() -> list[str]:
    """The GPUs as CUDA_VISIBLE_GPUS_DEVICES names them. Counting them through NVML starts none of them."""
    import torch

    named = os.environ.get(VISIBLE_GPUS)
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named is not None else [str(index) for index in range(count)]
