"""A reference that is kept and one that runs in step give the same records, bit for bit, whatever the two sides do; and
both, however texts are batched, what each text alone gives."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sweeper.comparator import passes
from sweeper.comparator.comparer import Comparer
from sweeper.comparator.forwards import side_of
from sweeper.config import Layout
from sweeper.environment import environment
from sweeper.inputs.texts import batches
from sweeper.planning.plan import Plan, make_plan
from sweeper.records.cell import Status
from sweeper.sweep import reference_runs
from sweeper.sweep.runner import Runner
from tests import small_models
from tests.composing import request_of

TINY = (
    "checkpoint=tiny_llama",
    "inputs=sentences",
    "inputs.max_tokens=12",
    "inputs.batch_size=3",
    "wandb.mode=disabled",
)
PAIRS = {
    "layouts": ("layout=single,packed", "reference={layout:padded_right}"),
    "a text at a time against all at once": ("layout=packed", "reference={layout:single}"),
    "dtypes": ("dtype=float16", "reference={dtype:float32}"),
    "casts": ("dtype=bfloat16", "load_strategy=cast_after_load,autocast", "reference={load_strategy:dtype_at_load}"),
    "autocast on one side": ("dtype=bfloat16", "reference={load_strategy:autocast}"),
    "attention, one model": ("attention=sdpa,sdpa_math", "reference={attention:eager}"),
    "flags, one model": ("numerics=deterministic", "reference={numerics:default}"),
    "itself": ("dtype=float32",),
    "cache": ("layout=packed", "use_cache=true", "reference={use_cache:false}"),
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def records(plan: Plan, kept_bytes: int, *, together: bool = False, **options: Any) -> list[dict[str, Any]]:
    """Everything that must not depend on how the two sides met."""
    running = Runner(plan.environment, latency_repeats=1, verdict=False, kept_bytes=kept_bytes, say=print, **options)
    found = []
    for place, planned in enumerate(plan.cells):
        record, modules = running.run(planned, plan.cells[place + 1 :] if together else ())
        assert record.status is Status.OK, record.traceback
        figures = record.model_dump(exclude={"cost", "attempt", "started_at"}, mode="json")
        found.append({**figures, "modules": [module.model_dump_json() for module in modules]})
    return found


@pytest.mark.parametrize(
    ("pair", "turn_bytes"), [*((pair, 20_000) for pair in PAIRS), ("layouts", 1), ("autocast on one side", 2**30)]
)
def test_in_step_gives_the_records_of_a_kept_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: str, turn_bytes: int
) -> None:
    plan = make_plan(request_of(*TINY, f"output_dir={tmp_path}", *PAIRS[pair]), environment("cpu"))
    kept = records(plan, 2**30)
    ran = []

    def compare_in_step(*arguments: Any, **options: Any) -> Any:
        ran.append(arguments)
        return passes.compare_in_step(*arguments, **options, turn_bytes=turn_bytes)

    monkeypatch.setattr(reference_runs, "compare_in_step", compare_in_step)
    assert records(plan, 1000) == kept
    assert len(ran) == len(plan.cells)


@pytest.mark.parametrize("pair", ["layouts", "casts", "attention, one model"])
def test_cells_that_share_a_run_of_their_reference_get_the_records_of_each_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: str
) -> None:
    plan = make_plan(request_of(*TINY, f"output_dir={tmp_path}", *PAIRS[pair]), environment("cpu"))
    kept = records(plan, 2**30)
    ran = []

    def compare_in_step(reference: Any, candidates: Any, *arguments: Any, **options: Any) -> Any:
        ran.append(len(candidates))
        return passes.compare_in_step(reference, candidates, *arguments, **options)

    monkeypatch.setattr(reference_runs, "compare_in_step", compare_in_step)
    assert records(plan, 1000, together=True) == kept
    assert ran == [len(plan.cells)] == [2]


@pytest.mark.parametrize("in_reference", [False, True])
def test_where_memory_runs_out_with_several_candidates_each_runs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_reference: bool
) -> None:
    plan = make_plan(request_of(*TINY, f"output_dir={tmp_path}", *PAIRS["casts"]), environment("cpu"))
    kept = records(plan, 2**30)
    ran = []

    def compare_in_step(reference: Any, candidates: Any, *arguments: Any, **options: Any) -> Any:
        ran.append(len(candidates))
        left, ended = passes.compare_in_step(reference, candidates, *arguments, **options)
        full = torch.OutOfMemoryError("CUDA out of memory")
        if in_reference and len(candidates) > 1:  # nobody gets to the end without it
            raise full
        return left, [full if len(candidates) > 1 else one for one in ended]

    monkeypatch.setattr(reference_runs, "compare_in_step", compare_in_step)
    assert records(plan, 1000, together=True) == kept
    assert ran == [2, 1, 1]


def test_a_streamed_model_meets_its_twin_in_step(tmp_path: Path) -> None:
    plan = make_plan(request_of(*TINY, f"output_dir={tmp_path}", *PAIRS["attention, one model"]), environment("cpu"))
    assert records(plan, 1000, weights="streamed") == records(plan, 2**30)


CLOSE = 1e-5  # transformers' norms and softmax are float32 in a float64 model too
LENGTHS = [5, 1, 9, 2, 7, 7, 3, 12, 1, 4, 8]


@pytest.fixture(scope="module")
def models() -> tuple[nn.Module, nn.Module]:
    # eager attention gives NaN under left padding: its mask is too low for a softmax in float32
    reference = small_models.llama(torch.float64, "sdpa")
    candidate = copy.deepcopy(reference)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in candidate.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    return reference, candidate


@pytest.fixture(scope="module")
def token_ids() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(1, 128, (length,), generator=generator).tolist() for length in LENGTHS]


@pytest.fixture(scope="module")
def directly(models: tuple[nn.Module, nn.Module], token_ids: list[list[int]]) -> tuple[list[Tensor], list[Tensor]]:
    """The logits of each text alone, of both models."""
    with torch.inference_mode():
        reference, candidate = ([model(torch.tensor([ids])).logits[0] for ids in token_ids] for model in models)
    return reference, candidate


def test_a_reference_that_several_cells_name_is_kept_and_runs_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(request_of(*TINY, f"output_dir={tmp_path}", *PAIRS["layouts"]), environment("cpu"))
    (reference_id,) = {planned.reference_id for planned in plan.cells}
    ran = Counter[str]()
    for name in ("keep_reference", "compare_kept", "compare_in_step"):
        pass_of = getattr(passes, name)

        def counted(*arguments: Any, name: str = name, pass_of: Any = pass_of, **options: Any) -> Any:
            ran[name] += 1
            return pass_of(*arguments, **options)

        monkeypatch.setattr(reference_runs, name, counted)
    running = Runner(plan.environment, verdict=False, kept_bytes=1, shared={reference_id}, say=print)
    assert [running.run(planned)[0].status for planned in plan.cells] == [Status.OK, Status.OK]
    assert ran == {"keep_reference": 1, "compare_kept": 2}


@pytest.mark.parametrize("in_step", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 50])
@pytest.mark.parametrize("layout", list(Layout))
def test_texts_of_any_length_in_any_batches_are_those_texts_alone(
    models: tuple[nn.Module, nn.Module],
    token_ids: list[list[int]],
    directly: tuple[list[Tensor], list[Tensor]],
    layout: Layout,
    batch_size: int,
    in_step: bool,
) -> None:
    (cell,) = request_of(*TINY, f"layout={layout}", f"inputs.batch_size={batch_size}", "positions=explicit").cells
    comparer = Comparer(token_ids, is_logits=True)
    told: list[tuple[int, int]] = []
    progress = lambda *done: told.append(done)  # noqa: E731
    grouped = batches(token_ids, batch_size)
    reference, candidate = (side_of(cell, model, token_ids, grouped) for model in models)
    if in_step:
        candidates = [passes.Candidate(candidate, comparer)]
        _, (ran,) = passes.compare_in_step(reference, candidates, grouped, progress, turn_bytes=2000)
        assert not isinstance(ran, Exception)
    else:
        kept = passes.keep_reference(reference, grouped, lambda *_: None, kept_bytes=2**30)
        assert kept is not None
        passes.compare_kept(kept[0], candidate, grouped, comparer, progress)
    assert told[-1] == (11, 11)
    assert len(told) == -(-11 // batch_size)
    figures = comparer.finish()
    (lm_head,) = (module for module in figures.modules if module.name == "lm_head")
    differences = [(candidate - reference).abs() for reference, candidate in zip(*directly, strict=True)]
    largest = [float(difference.max()) for difference in differences]
    worst = largest.index(max(largest))
    place = int(differences[worst].amax(1).argmax()), int(differences[worst].amax(0).argmax())
    assert (lm_head.worst_text, lm_head.worst_position, lm_head.measures.worst_feature) == (worst, *place)
    for measures in (lm_head.measures, figures.output):
        assert measures.worst_token == sum(LENGTHS[:worst]) + place[0]
        assert measures.max_abs == pytest.approx(max(largest), rel=CLOSE)
        assert measures.mean_abs == pytest.approx(float(torch.cat(differences).mean()), rel=CLOSE)
    assert [text.tokens for text in figures.texts] == LENGTHS
    assert [text.output_max_abs for text in figures.texts] == pytest.approx(largest, rel=CLOSE)
    assert figures.language is not None
    changes = [
        candidate.log_softmax(1)[position, following] - reference.log_softmax(1)[position, following]
        for ids, reference, candidate in zip(token_ids, *directly, strict=True)
        for position, following in enumerate(ids[1:])
    ]
    assert figures.language.log_likelihood_change_mean == pytest.approx(float(torch.stack(changes).mean()), abs=CLOSE)
