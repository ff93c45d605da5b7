"""`launcher=gpus`: a worker a GPU of this machine, each in a process that sees no other."""

from __future__ import annotations

import os
from collections.abc import Mapping

from sweeper.config import GpusLauncherSettings, Settings
from sweeper.errors import ConfigError
from sweeper.launchers.processes import ProcessLauncher
from sweeper.launchers.worker_process import VISIBLE_GPUS
from sweeper.planning.grid import SweepRequest
from sweeper.planning.plan import Plan


class GpusLauncher(ProcessLauncher):
    """A worker a GPU. A plan names one kind of GPU, that of the first: the others have to be of it."""

    def plan(self, request: SweepRequest) -> Plan:
        plan = super().plan(request)
        if plan.environment["device"] == "cuda":
            _of_one_kind(gpu_names())
        return plan


def make_gpus_launcher(settings: Settings) -> GpusLauncher:
    """A launcher of as many workers as there are GPUs for, or as were asked for.

    Raises:
        ConfigError: there are not enough GPUs.
    """
    assert isinstance(settings.launcher, GpusLauncherSettings)
    gpus = visible_gpus()
    share = settings.launcher.gpus_a_worker or (max(1, len(gpus)) if settings.weights == "spread" else 1)
    return GpusLauncher(places(settings.launcher.workers, share, gpus), settings.cell_timeout_s)


def places(workers: int | None, share: int, gpus: list[str]) -> list[Mapping[str, str]]:
    """What each worker sees, as environment variables; without GPUs, workers on the CPU.

    Args:
        workers: how many; None is as many as there is a share of the GPUs for.

    Raises:
        ConfigError: there are not enough GPUs.
    """
    if not gpus:
        return [{} for _ in range(workers or 1)]
    enough = len(gpus) // share
    count = enough if workers is None else workers
    if not count or count > enough:
        needed = f"launcher.workers={count or 1} of {share} GPUs each"
        fewer = f"{enough} or fewer workers" if enough else f"launcher.gpus_a_worker={len(gpus)} or fewer"
        raise ConfigError(f"{needed}: there are {len(gpus)} ({VISIBLE_GPUS}, or all); ask for {fewer}")
    return [{VISIBLE_GPUS: ",".join(gpus[start : start + share])} for start in range(0, count * share, share)]


def visible_gpus() -> list[str]:
    """The GPUs as CUDA_VISIBLE_DEVICES names them. Counting them through NVML starts none of them."""
    import torch

    named = os.environ.get(VISIBLE_GPUS)
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named is not None else [str(index) for index in range(count)]


def gpu_names() -> dict[str, str]:
    """What each visible GPU is, by its name in CUDA_VISIBLE_DEVICES: planning has started CUDA in this process."""
    import torch

    return {gpu: torch.cuda.get_device_name(index) for index, gpu in enumerate(visible_gpus())}


def _of_one_kind(names: Mapping[str, str]) -> None:
    kinds: dict[str, list[str]] = {}
    for gpu, name in names.items():
        kinds.setdefault(name, []).append(gpu)
    if len(kinds) > 1:
        found = ", ".join(f"{','.join(gpus)} {name}" for name, gpus in kinds.items())
        one_kind = " or ".join(f"{VISIBLE_GPUS}={','.join(gpus)}" for gpus in kinds.values())
        raise ConfigError(
            f"launcher=gpus: the GPUs are of {len(kinds)} kinds ({found}), a sweep is of one: set {one_kind}"
        )
