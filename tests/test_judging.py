from __future__ import annotations

from pathlib import Path

import pytest

from sweeper.environment import environment
from sweeper.judging import telling_texts
from sweeper.plan import make_plan
from sweeper.results import TextFigures, VerdictRecord
from sweeper.runner import Runner
from tests.composing import request_of


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def verdict(tmp_path: Path, *arguments: str) -> VerdictRecord:
    tiny = ("checkpoint=tiny_llama", "inputs=report_2", "wandb.mode=disabled", f"output_dir={tmp_path}")
    plan = make_plan(request_of(*tiny, *arguments), environment("cpu"))
    (planned,) = plan.cells
    record, _ = Runner(plan.environment, say=print).run(planned)
    assert record.verdict is not None, record.reason
    return record.verdict


def figures(*moved: float) -> list[TextFigures]:
    rest = {"tokens": 1, "output_equal_fraction": 0.5, "output_cosine": 1.0}
    embedding = {"embedding_cosine": 1.0, "embedding_max_abs": 0.0, "embedding_mean_abs": 0.0}
    return [TextFigures(text=i, output_max_abs=max_abs, **rest, **embedding) for i, max_abs in enumerate(moved)]


@pytest.mark.parametrize(
    ("moved", "batch_size", "expected"),
    [
        ((1.0,), 8, [(0,)]),
        ((3.0, 1.0), 8, [(0, 1)]),
        ((3.0, 1.0, 2.0), 8, [(0, 2), (0, 1, 2)]),
        ((0.0, 1.0, 2.0, 9.0), 2, [(0, 3), (0, 1)]),
        ((0.0, 1.0, float("nan"), 9.0), 2, [(0, 2), (0, 1)]),
    ],
)
def test_two_texts_first_then_the_batch(
    moved: tuple[float, ...], batch_size: int, expected: list[tuple[int, ...]]
) -> None:
    assert telling_texts(figures(*moved), batch_size) == expected


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("load_strategy=cast_after_load", "reference={load_strategy:dtype_at_load}"), "policy"),
        (("layout=packed", "use_cache=true", "reference={layout:padded_left,use_cache:false}"), "semantic"),
        (("dtype=bfloat16",), "rounding"),
        (("load_strategy=autocast",), "rounding"),
        (("attention=sdpa_math", "reference={attention:eager}"), "rounding"),
        (("dtype=float32", "attention=eager"), "identical"),
    ],
)
def test_the_verdict_of_a_cell(tmp_path: Path, arguments: tuple[str, ...], kind: str) -> None:
    found = verdict(tmp_path, *arguments)
    assert found.kind == kind
    assert bool(found.evidence) is (kind != "identical")


def test_a_cell_whose_judging_fails_keeps_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: object) -> None:
        raise MemoryError("no room for a second model")

    monkeypatch.setattr(Runner, "comparison", out_of_memory)
    found = verdict(tmp_path)
    assert (found.kind, found.reason) == (
        "inconclusive",
        "could not be judged: MemoryError: no room for a second model",
    )
