from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from sweeper.config import Numerics, parse
from sweeper.models.flags import CUBLAS_WORKSPACE_CONFIG, SETTERS, chosen, has_splitk_switch, switches, without_effect

CONFIGS = sorted((Path(__file__).parents[2] / "conf" / "numerics").glob("*.yaml"))

VALUES: dict[str, tuple[Any, ...]] = {
    "matmul_tf32": (True, False),
    "cudnn_tf32": (True, False),
    "bf16_reduction": ("on", "off", "off_no_splitk"),
    "fp16_reduction": ("on", "off", "off_no_splitk"),
    "fp16_accumulation": (True, False),
    "blas": ("cublas",),
    "deterministic": (True, False),
}
SETTINGS = [(flag, value) for flag, values in VALUES.items() for value in values]

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@contextmanager
def numerics(flags: Numerics, device: str) -> Iterator[dict[str, str]]:
    """The flags as a cell with them has them. Yields what has no effect there, and why."""
    cell: Any = SimpleNamespace(numerics=flags, device=device)
    with ExitStack() as stack:
        for switch in switches(cell).values():
            stack.enter_context(switch.context())
        yield without_effect(cell)


def read(getter: Any) -> Any:
    try:
        return getter()
    except RuntimeError:
        return "raises"


def state() -> dict[str, Any]:
    """All global state that a flag may touch, by both of torch's APIs."""
    matmul, cudnn, mkldnn = torch.backends.cuda.matmul, torch.backends.cudnn, torch.backends.mkldnn
    return {
        "matmul.allow_tf32": read(lambda: matmul.allow_tf32),
        "matmul.fp32_precision": matmul.fp32_precision,
        "float32_matmul_precision": read(torch.get_float32_matmul_precision),
        "mkldnn.matmul": mkldnn.matmul.fp32_precision,
        "cudnn.allow_tf32": read(lambda: cudnn.allow_tf32),
        "cudnn": cudnn.fp32_precision,
        "cudnn.conv": cudnn.conv.fp32_precision,
        "cudnn.rnn": cudnn.rnn.fp32_precision,
        "generic": torch.backends.fp32_precision,
        "bf16_reduction": torch._C._get_cublas_allow_bf16_reduced_precision_reduction(),
        "fp16_reduction": torch._C._get_cublas_allow_fp16_reduced_precision_reduction(),
        "fp16_accumulation": matmul.allow_fp16_accumulation,
        "blas": torch.backends.cuda.preferred_blas_library(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "workspace": os.environ.get(CUBLAS_WORKSPACE_CONFIG),
    }


def set_older(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)


def set_newer(owner: Any, precision: str) -> None:
    owner.fp32_precision = precision


# What the calling process may have done before: nothing, the older TF32 API, the newer one, or both.
CALLERS: dict[str, Any] = {
    "nothing": lambda: None,
    "older medium": lambda: set_older("medium"),
    "older high": lambda: set_older("high"),
    "newer tf32": lambda: set_newer(torch.backends.cuda.matmul, "tf32"),
    "newer ieee": lambda: set_newer(torch.backends.cuda.matmul, "ieee"),
    "newer generic tf32": lambda: set_newer(torch.backends, "tf32"),
    "newer generic ieee": lambda: set_newer(torch.backends, "ieee"),
    "newer conv": lambda: set_newer(torch.backends.cudnn.conv, "ieee"),
    "older, then newer": lambda: (set_older("high"), set_newer(torch.backends.cuda.matmul, "ieee")),
    "cudnn older off": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "warn only": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "no reduction": lambda: setattr(torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False),
}


@pytest.fixture(autouse=True)
def _clean_torch() -> Any:
    """The state that a fresh process has, before and after every test."""
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    for owner in (torch.backends, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul, torch.backends.cudnn):
        set_newer(owner, "none")
    for owner in (torch.backends.cudnn.conv, torch.backends.cudnn.rnn):
        set_newer(owner, "tf32")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
    torch.use_deterministic_algorithms(False)


def test_every_field_has_a_setter_and_a_case() -> None:
    fields = set(Numerics.model_fields) - {"name"}
    assert fields == set(SETTERS) == set(VALUES)


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize(("flag", "value"), SETTINGS)
def test_a_flag_is_set_and_restored_whatever_the_caller_did_before(caller: str, flag: str, value: Any) -> None:
    if value == "off_no_splitk" and not has_splitk_switch():
        pytest.skip("this torch has no switch for split-K")
    CALLERS[caller]()
    before = state()
    with ExitStack() as undo:
        SETTERS[flag](value, undo)
        during = state()
    assert state() == before
    assert in_force(during, flag) == value


def in_force(seen: dict[str, Any], flag: str) -> Any:
    """The value of a flag of `Numerics` that a state amounts to."""
    if flag == "matmul_tf32":
        return seen["matmul.fp32_precision"] == "tf32"
    if flag == "cudnn_tf32":
        assert seen["cudnn.conv"] == seen["cudnn.rnn"]
        return seen["cudnn.conv"] == "tf32"
    if flag.endswith("_reduction"):
        return {(True, True): "on", (False, True): "off", (False, False): "off_no_splitk"}[seen[flag]]
    if flag == "blas":
        return seen["blas"].name.lower()
    return seen[flag]


@pytest.mark.parametrize("caller", ["nothing", "older high"])
@pytest.mark.parametrize("allow", [True, False])
def test_the_older_tf32_api_can_be_read_inside(caller: str, allow: bool) -> None:
    CALLERS[caller]()
    with ExitStack() as undo:
        SETTERS["matmul_tf32"](allow, undo)
        SETTERS["cudnn_tf32"](allow, undo)
        assert torch.backends.cuda.matmul.allow_tf32 is allow
        assert torch.backends.cudnn.allow_tf32 is allow


def test_deterministic_is_strict_inside_and_warn_only_again_after() -> None:
    CALLERS["warn only"]()
    with numerics(Numerics(name="deterministic", deterministic=True), "cpu"):
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
            torch.zeros(4).put_(torch.tensor([0, 0]), torch.ones(2))
    assert torch.is_deterministic_algorithms_warn_only_enabled()


def test_the_cublas_workspace_is_set_when_unset_and_kept_when_set(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = Numerics(name="deterministic", deterministic=True)
    monkeypatch.delenv(CUBLAS_WORKSPACE_CONFIG, raising=False)
    with numerics(flags, "cpu"):
        assert os.environ[CUBLAS_WORKSPACE_CONFIG] == ":4096:8"
    assert CUBLAS_WORKSPACE_CONFIG not in os.environ
    monkeypatch.setenv(CUBLAS_WORKSPACE_CONFIG, ":16:8")
    with numerics(flags, "cpu"):
        assert os.environ[CUBLAS_WORKSPACE_CONFIG] == ":16:8"
    assert os.environ[CUBLAS_WORKSPACE_CONFIG] == ":16:8"


def test_everything_is_restored_when_the_body_raises() -> None:
    before = state()
    flags = Numerics(name="deterministic", deterministic=True)

    def fail() -> None:
        with numerics(flags, "cpu"):
            assert torch.are_deterministic_algorithms_enabled()
            raise KeyError("a forward that fails")

    with pytest.raises(KeyError, match="a forward that fails"):
        fail()
    assert state() == before


@pytest.mark.skipif(torch.version.cuda is not None, reason="only a CPU build refuses cuBLASLt")
def test_everything_is_restored_when_setting_itself_raises_half_way() -> None:
    before = state()

    def fail() -> None:
        with ExitStack() as undo:
            SETTERS["matmul_tf32"](True, undo)
            SETTERS["bf16_reduction"]("off", undo)
            SETTERS["blas"]("cublaslt", undo)

    with pytest.raises(RuntimeError, match="cuBLASLt"):
        fail()
    assert state() == before


def test_contexts_nest() -> None:
    outside = state()
    with ExitStack() as outer:
        SETTERS["matmul_tf32"](True, outer)
        SETTERS["deterministic"](True, outer)
        between = state()
        with ExitStack() as inner:
            SETTERS["matmul_tf32"](False, inner)
            SETTERS["deterministic"](False, inner)
            assert state() != between
        assert state() == between
    assert state() == outside


def test_flags_at_their_default_are_not_chosen() -> None:
    assert chosen(Numerics(name="default")) == {}
    assert chosen(Numerics(name="off", matmul_tf32=False, bf16_reduction="off")) == {
        "matmul_tf32": False,
        "bf16_reduction": "off",
    }


@pytest.mark.parametrize(("flag", "value"), SETTINGS)
def test_on_the_cpu_only_deterministic_is_applied(flag: str, value: Any) -> None:
    before = state()
    with numerics(parse(Numerics, {"name": "x", flag: value}), "cpu") as without_effect:
        if flag == "deterministic":
            assert without_effect == {}
            assert torch.are_deterministic_algorithms_enabled() is value
        else:
            assert without_effect == {flag: "cuda only"}
            assert state() == before
    assert state() == before


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_validates_under_its_own_name(path: Path) -> None:
    assert parse(Numerics, yaml.safe_load(path.read_text())).name == path.stem


def test_the_configs_cover_every_value_of_every_flag() -> None:
    flags = [parse(Numerics, yaml.safe_load(path.read_text())) for path in CONFIGS]
    covered = {item for numerics_ in flags for item in chosen(numerics_).items()}
    # no config asks for what torch does by default, and cublaslt cannot be set in a CPU build
    unasked = {("fp16_accumulation", False), ("deterministic", False)}
    assert covered == {*SETTINGS, ("blas", "cublaslt")} - unasked


@needs_gpu
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_applied_on_a_gpu_and_restored(path: Path) -> None:
    before = state()
    wanted = parse(Numerics, yaml.safe_load(path.read_text()))
    with numerics(wanted, "cuda") as without_effect:
        during = state()
        applied = {flag: value for flag, value in chosen(wanted).items() if flag not in without_effect}
        assert {flag: in_force(during, flag) for flag in applied} == applied
    assert state() == before
