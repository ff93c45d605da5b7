"""The sentences that a sweep ends with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sweeper.records.cell import CellRecord, Status
from sweeper.records.verdict import CauseRecord, EvidenceRecord, VerdictRecord
from sweeper.reports.answer import answer, headline
from tests.sinks.records import cell, measures, record

FOLDER = Path("outputs/grid/sweep")
ROUNDED = CauseRecord(
    what="model.rotary_emb.inv_freq was rounded to bfloat16, and nobody asked for that",
    put_back="load with from_pretrained(dtype=bfloat16) in place of .to(bfloat16), or set it after the cast",
    closed_bitwise=True,
    cell_id="p1",
)


def one(cell_id: str, kind: str, moved: float = 0.0, cause: CauseRecord | None = None, **axes: Any) -> CellRecord:
    floor = EvidenceRecord(name="native over floor", value=4 * moved, meaning="")
    verdict = VerdictRecord(
        kind=kind,
        reason=f"because of {moved}",
        first_divergence=f"introduced at model.rotary_emb, most at text 0 token 2: rel_l2 {moved}",
        evidence=(floor,),
        texts=(0,),
        cause=cause,
    )
    found = record(cell_id, output=measures(moved), verdict=verdict)
    return found.model_copy(update={"axes": cell(**axes).axes()})


def told(*records: CellRecord) -> list[str]:
    return [line.text for line in answer(records, FOLDER)]


def strategies(*names: str, kind: str = "policy", **fields: Any) -> list[CellRecord]:
    return [one(f"{kind}{i}", kind, 0.25 * (i + 1), load_strategy=name, **fields) for i, name in enumerate(names)]


def test_cells_with_one_cause_share_a_sentence_that_says_what_to_type() -> None:
    lines = told(
        *strategies("dtype_at_load", kind="identical"),
        *strategies("cast_after_load", "auto_then_cast", cause=ROUNDED),
        *strategies("autocast", kind="rounding"),
    )
    assert lines == [
        "policy, 2 cells: model.rotary_emb.inv_freq was rounded to bfloat16, and nobody asked for that, in "
        "cast_after_load, auto_then_cast; to put it back: load with from_pretrained(dtype=bfloat16) in place of "
        ".to(bfloat16); proof: with only that put back the outputs are the reference's, bit for bit",
        "rounding, 1 cell: nothing to do, the same function rounded differently; outputs move by rel. L2 0.088 at "
        "most, 1 times the noise floor at most, in autocast",
        "identical, 1 cell: every compared tensor has the reference's values",
        "the worst cell in depth: python -m sweeper explain outputs/grid/sweep policy1",
    ]


def test_worst_comes_first_whatever_the_order_of_the_cells() -> None:
    failed = record("f1", status=Status.FAILED, reason="RuntimeError: boom")
    unsupported = record("u1", status=Status.UNSUPPORTED, reason="needs a GPU")
    kinds = ("identical", "rounding", "inconclusive", "policy", "semantic")
    judged = [one(f"{kind}1", kind, 0.5) for kind in kinds]
    ends = [line.end for line in answer([unsupported, *judged, failed], FOLDER)]
    assert ends == ["failed", "semantic", "policy", "inconclusive", "unsupported", "rounding", "identical", ""]
    assert told(failed, *judged)[-1].endswith("python -m sweeper report outputs/grid/sweep --cell f1")
    assert told(*judged)[-1].endswith("python -m sweeper explain outputs/grid/sweep semantic1")


def test_numbers_in_a_reason_do_not_part_cells_that_found_the_same() -> None:
    lines = told(one("a1", "semantic", 0.5, dtype="float16"), one("a2", "semantic", 0.75), one("a3", "identical"))
    assert lines[0].startswith("semantic, 2 cells: another function is computed; because of 0.75")
    assert lines[0].endswith("; introduced at model.rotary_emb")


def test_what_nothing_closes_says_so() -> None:
    tried = CauseRecord(tried=("use_cache", "position_ids"), cell_id="s1")
    broken = CauseRecord(error="OutOfMemoryError: 64 GB", cell_id="s1")
    assert (
        "of 2 changes that were tried none closes it, explain looks further"
        in told(one("s1", "semantic", 0.5, tried))[0]
    )
    assert "its cause could not be looked for (OutOfMemoryError: 64 GB)" in told(one("s1", "semantic", 0.5, broken))[0]


def test_a_replay_that_closes_it_is_told_with_both_figures() -> None:
    hidden = ROUNDED.model_copy(update={"closed_bitwise": False, "replay_before": 0.006, "replay_after": 3e-16})
    assert told(one("p1", "policy", 0.5, hidden))[0].endswith(
        "proof: with only that put back the difference in float64, rel. L2 0.006, becomes 3e-16"
    )


def test_places_are_values_where_those_tell_and_cells_where_they_do_not() -> None:
    pairs = [(dtype, attention) for dtype in ("bfloat16", "float16") for attention in ("eager", "sdpa")]
    cells = [one(f"c{i}", "identical", dtype=dtype, attention=attention) for i, (dtype, attention) in enumerate(pairs)]
    semantic = {"verdict": VerdictRecord(kind="semantic", reason="because", texts=(0,))}
    column = [c.model_copy(update=semantic) if c.axes["attention"] == "sdpa" else c for c in cells]
    assert told(*column)[0] == "semantic, 2 cells: another function is computed; because, in sdpa"
    diagonal = [c.model_copy(update=semantic) if i in (0, 3) else c for i, c in enumerate(cells)]
    assert (
        told(*diagonal)[0]
        == "semantic, 2 cells: another function is computed; because, in bfloat16 eager, float16 sdpa"
    )
    assert (
        told(*[c.model_copy(update=semantic) for c in cells])[0]
        == "semantic, 4 cells: another function is computed; because"
    )


def test_a_sweep_without_anything_wrong_proposes_nothing() -> None:
    assert [line.end for line in answer([one("r1", "rounding", 0.5)], FOLDER)] == ["rounding"]
    assert answer([], FOLDER) == []


def test_cells_that_were_not_judged_are_counted() -> None:
    moved = record("c1", first_divergence="lm_head")
    assert told(moved)[0].startswith("not judged, 1 cell: outputs differ, by rel. L2 0.18 at most")


def test_reasons_of_two_packages_are_two_sentences() -> None:
    missing = [
        record(f"u{n}", status=Status.UNSUPPORTED, reason=f"flash_attention_{n} needs a package") for n in (2, 3)
    ]
    assert [line.split(",")[0] for line in told(*missing)] == ["unsupported", "unsupported"]


def test_the_headline_counts_what_needs_something_done() -> None:
    found = (
        strategies("cast_after_load", "auto_then_cast", kind="policy"),
        strategies("device_map", kind="semantic"),
        strategies("dtype_at_load", kind="rounding"),
    )
    records = [record for part in found for record in part]
    assert headline(records) == "of 4 cells 3 need something done (1 semantic, 2 policy), 1 is fine"
    assert headline(records[3:]) == "of 1 cell 1 is fine"


def test_of_embeddings_it_says_how_many_texts_change_their_nearest_neighbour() -> None:
    def embedded(cell_id: str, kind: str, share: float | None) -> CellRecord:
        return one(cell_id, kind, 0.25).model_copy(update={"neighbours_changed": share})

    some, none, logits = (
        embedded("a", "rounding", 0.25),
        embedded("b", "rounding", 0.0),
        embedded("c", "rounding", None),
    )
    assert told(some, none)[0].endswith("; 25% of the texts at most have another nearest neighbour")
    assert told(none)[0].endswith("; no text has another nearest neighbour")
    assert "neighbour" not in told(logits)[0]
    assert "neighbour" not in told(embedded("d", "identical", 0.0))[0]


def test_places_of_several_axes_are_what_one_would_type() -> None:
    pairs = [(dtype, attention) for dtype in ("bfloat16", "float16", "float32") for attention in ("eager", "sdpa")]
    cells = [one(f"c{i}", "identical", dtype=dtype, attention=attention) for i, (dtype, attention) in enumerate(pairs)]
    semantic = {"verdict": VerdictRecord(kind="semantic", reason="because", texts=(0,))}
    block = [
        c.model_copy(update=semantic) if c.axes["attention"] == "sdpa" and c.axes["dtype"] != "float32" else c
        for c in cells
    ]
    assert told(*block)[0].endswith("because, in dtype=bfloat16,float16 attention=sdpa")
