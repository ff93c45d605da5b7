from __future__ import annotations

import getpass
import json
import os
import socket
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch.utils import collect_env

from sweeper.environment import _driver_version, default_device, environment, identity, version

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_versions_are_those_that_are_imported() -> None:
    seen = environment("cpu")
    # some builds leave "+cu130" out of their metadata
    assert seen["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert seen["hydra_core"] == metadata.version("hydra-core")
    assert seen["threads"] == torch.get_num_threads()
    assert seen["cpu_capability"] == torch.backends.cpu.get_cpu_capability()


def test_a_package_that_is_not_installed_has_no_version() -> None:
    assert version("no-such-distribution") is None


def test_an_environment_is_plain_data_without_host_user_or_paths() -> None:
    text = json.dumps(environment("cpu"))
    values = {str(value) for value in environment("cpu").values()}
    assert json.loads(text) == environment("cpu")
    assert socket.gethostname() not in values
    assert getpass.getuser() not in values
    assert os.path.expanduser("~") not in text
    assert os.getcwd() not in text


def test_identity_follows_what_can_change_a_result_and_nothing_else() -> None:
    seen = environment("cpu")
    for key in ("torch", "transformers", "cpu", "cpu_capability", "threads", "device"):
        assert identity({**seen, key: "another"}) != identity(seen), key
    for key in ("python", "hydra_core", "safetensors", "accelerate"):
        assert identity({**seen, key: "another"}) == identity(seen), key


def test_threads_are_part_of_the_identity_because_they_split_sums() -> None:
    threads = torch.get_num_threads()
    before = identity(environment("cpu"))
    try:
        torch.set_num_threads(threads + 1)
        assert identity(environment("cpu")) != before
    finally:
        torch.set_num_threads(threads)


def test_the_default_device_is_cuda_only_where_there_is_a_gpu() -> None:
    assert default_device() == ("cuda" if torch.cuda.device_count() else "cpu")


COMPILER = "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n"


@pytest.mark.parametrize(
    "module",
    [
        "NVIDIA UNIX x86_64 Kernel Module  580.159.04  Tue Jun  9 17:31:04 UTC 2026",
        "NVIDIA UNIX x86_64 Kernel Module  580.159.04  Release Build  (dvs-builder@U22-I3-B17-02-5)  Tue Jun  9",
        "NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (archlinux-builder@)  Tue Jun  9",
    ],
)
def test_the_driver_is_read_from_the_kernel_module(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect_env, "run", lambda _command: pytest.fail("nvidia-smi was started"))
    told = tmp_path / "version"
    told.write_text(f"NVRM version: {module}\n{COMPILER}")
    assert _driver_version(told) == "580.159.04"


@pytest.mark.parametrize("told", [None, "", f"NVRM version: another driver\n{COMPILER}"])
def test_nvidia_smi_tells_the_driver_where_the_kernel_module_does_not(
    told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = "| NVIDIA-SMI 580.159.04             Driver Version: 580.159.04     CUDA Version: 13.0     |\n"
    monkeypatch.setattr(collect_env, "run", lambda _command: (0, header, ""))
    path = tmp_path / "version"
    if told is not None:
        path.write_text(told)
    assert _driver_version(path) == "580.159.04"


@needs_gpu
def test_a_gpu_is_described() -> None:
    seen = environment("cuda")
    assert seen["gpu"] == torch.cuda.get_device_name()
    assert seen["cuda"] == torch.version.cuda
    assert seen["driver"] == collect_env.get_nvidia_driver_version(collect_env.run)
    assert seen["cublas"].split(".")[0] == torch.version.cuda.split(".")[0]


@needs_gpu
def test_nvidias_own_tf32_switch_is_part_of_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    before = identity(environment("cuda"))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert identity(environment("cuda")) != before
