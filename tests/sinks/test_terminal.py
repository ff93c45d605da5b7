from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from sweeper.records.cell import Cost, Status
from sweeper.records.sweep import Sweep
from sweeper.records.verdict import VerdictRecord
from sweeper.reports.cells_table import LEGEND, cells_table
from sweeper.reports.terminal import output_console, print_cell, print_sweep, sentence
from sweeper.sinks.terminal import TerminalSink
from tests.sinks.records import Planned, SmallPlan, cell, measures, module
from tests.sinks.sweeps import Cells, layered, many, measured, report_1, stored


def printed(sweep: Sweep, width: int) -> str:
    out = Console(file=io.StringIO(), width=width)
    print_sweep(sweep, out)
    return out.file.getvalue()  # type: ignore[attr-defined]


def words_of(text: str) -> set[str]:
    """The words of a text, without rules and the signs that end a word."""
    return {word.rstrip(";:,.") for word in text.replace("─", " ").split()}


def wide(folder: Path) -> Sweep:
    """Cells that differ in five axes."""
    cells = []
    for i, layout in enumerate(["padded_left", "packed"]):
        choices = {"load_strategy": ["dtype_at_load", "cast_before_move"][i], "layout": layout, "use_cache": bool(i)}
        axes = cell(**choices, dtype=["float32", "bfloat16"][i], attention=["eager", "flash_attention_2"][i]).axes()
        verdict = VerdictRecord(kind=("identical", "semantic")[i], reason="because", texts=(0,))
        cells.append((measured(f"{i}bcdef", axes=axes, verdict=verdict), layered(0.5)))
    return stored(folder, cells)


def table_of(text: str) -> list[str]:
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("cell "))
    return lines[start : next(i for i, line in enumerate(lines) if line.startswith(("max |Δ|:", "verdict: ")))]


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_a_table_fits_the_terminal_and_no_word_is_broken(tmp_path: Path, width: int) -> None:
    table = table_of(printed(report_1(tmp_path), width))
    assert max(map(len, table)) <= width
    words = {word for line in table for word in line.split()}
    assert {"cast_before_move", "0.8750", "reference", "rotary_emb", "aaaa1"} <= words
    assert ("rotary_emb.inv_freq" in words) == (width >= 100)


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("make", [report_1, wide], ids=["report_1", "wide"])
def test_no_word_is_broken_and_what_matters_stays(tmp_path: Path, make: Callable[[Path], Sweep], width: int) -> None:
    sweep = make(tmp_path)
    text = printed(sweep, width)
    shown = [line for line in text.splitlines() if len(line) > width]
    assert all(str(tmp_path) in line for line in shown)  # a path that is wider than the terminal, or a command with it
    merged = {f"{axis}={record.axes[axis]}" for record in sweep.records for axis in sweep.varying} | {"choices"}
    said = words_of("left out, the terminal is too narrow " + " ".join(LEGEND))
    assert words_of(text) <= words_of(printed(sweep, 2000)) | merged | said
    for row in cells_table(sweep.records).rows:
        headings = cells_table(sweep.records).headings
        line = next(line for line in table_of(text) if line.startswith(row[0]))
        assert {row[headings.index(name)] for name in ("verdict", "max |Δ|") if name in headings} <= set(line.split())
    for value in {str(record.axes[axis]) for record in sweep.records for axis in sweep.varying}:
        assert value in " ".join(table_of(text))


def test_a_command_that_does_not_fit_is_one_line_that_can_be_copied(tmp_path: Path) -> None:
    sweep = report_1(tmp_path)
    lines = [line.strip() for line in printed(sweep, 60).splitlines()]
    assert f"python -m sweeper report {sweep.folder} --cell aaaa3" in lines


@pytest.mark.parametrize("width", [80, 200])
def test_a_table_that_is_drawn_in_parts_reads_as_one(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = many(tmp_path, 23)
    whole = printed(sweep, width)
    monkeypatch.setattr("sweeper.reports.terminal.MOST_ROWS", 5)
    assert printed(sweep, width) == whole


@pytest.mark.parametrize("terminal", [True, False])
def test_of_many_cells_a_terminal_shows_the_worst_and_a_file_has_all(
    terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeper.sinks.terminal.MOST_ROWS", 3)
    sizes = [0.5, 0.125, 2.0, 0.25, 1.0]
    made = [measured(f"{i}bcdef", output=measures(size), first_divergence="norm") for i, size in enumerate(sizes)]
    sweep = stored(tmp_path, [(record, layered(0.5)) for record in made])
    out = Console(file=io.StringIO(), width=120, force_terminal=terminal, no_color=True)
    sink = TerminalSink(out, Console(file=io.StringIO()))
    sink.sweep_started(SmallPlan(tmp_path, ()))  # type: ignore[arg-type]
    sink.sweep_finished(sweep.records)
    text = re.sub(r"\x1b\[[0-9;]*m", "", out.file.getvalue())  # type: ignore[attr-defined]
    rows = [line[0] for line in table_of(text) if line[:1].isdecimal()]
    assert rows == (list("240") if terminal else list("01234"))
    said = f"the 3 worst of 5 cells, worst first; all of them: python -m sweeper report {sweep.folder}"
    assert (said in " ".join(text.split())) == terminal


def test_what_would_steer_a_terminal_is_shown_instead(tmp_path: Path) -> None:
    reason = "RuntimeError: \x1b]0;owned\x07"
    failed: Cells = [(measured("abcd", status=Status.FAILED, reason=reason, output=None), [])]
    text = printed(stored(tmp_path, failed), 120)
    assert "\x1b" not in text
    assert "RuntimeError: \\x1b]0;owned\\x07" in text


@pytest.mark.parametrize(("asked", "width"), [("80", 80), ("130", 130), ("", 200), ("wide", 200)])
def test_without_a_terminal_the_width_is_the_one_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: str, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", asked)
    out = output_console()
    assert out.width == width
    sentence(out, "word " * 100)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 if width == 200 else max(map(len, lines)) <= width


def test_a_narrow_terminal_says_which_columns_it_leaves_out(tmp_path: Path) -> None:
    assert "left out, the terminal is too narrow: mean |Δ|, state" in printed(report_1(tmp_path), 80)
    assert "left out" not in printed(report_1(tmp_path), 200)


def test_where_it_starts_names_what_is_equal_beside_it_and_the_buffer(tmp_path: Path) -> None:
    text = printed(report_1(tmp_path), 250)
    assert (
        "  cast_after_load, cast_before_move: model.rotary_emb; in layer 0: q_proj, k_proj, v_proj equal, o_proj not; "
        "buffer rotary_emb.inv_freq float32 -> bfloat16\n"
    ) in text
    assert "4 cells: 2 equal to their reference (load_strategy=dtype_at_load) in every module's output, 2 not" in text


def test_cells_of_another_dtype_have_no_line_on_where_they_start(tmp_path: Path) -> None:
    axes = cell().axes()
    made = measured(first_divergence="model.rotary_emb", axes=axes, reference_axes=axes | {"dtype": "float32"})
    assert "where it starts" not in printed(stored(tmp_path, [(made, layered(0.5))]), 200)


def test_many_cells_are_a_table_without_lines_on_where_they_start(tmp_path: Path) -> None:
    text = printed(many(tmp_path, 36), 120)
    assert "where it starts" not in text
    assert len(table_of(text)) == 36 + 2


def test_a_layout_that_is_too_wide_puts_the_axes_into_one_column(tmp_path: Path) -> None:
    table = table_of(printed(wide(tmp_path), 80))
    assert table[0].split()[:3] == ["cell", "verdict", "choices"]
    assert max(map(len, table)) <= 80
    words = " ".join(table).split()
    assert {"flash_attention_2", "cast_before_move", "use_cache=True", "packed"} <= set(words)


def test_reasons_are_told_once_and_markup_in_them_is_only_text(tmp_path: Path) -> None:
    reason = "RuntimeError: [bold red]no[/bold red] [/memory]"
    failed: Cells = [(measured(f"{i}bcd", status=Status.FAILED, reason=reason, output=None), []) for i in range(2)]
    text = printed(stored(tmp_path, failed, not_run=3), 120)
    assert text.count(reason) == 1
    assert f"failed, 2 cells: {reason}" in text
    assert "5 cells: 0 equal to their reference in every module's output, 0 not, 2 failed, 3 not run yet" in text


def test_a_cell_that_does_not_repeat_says_so_in_the_table(tmp_path: Path) -> None:
    made = measured()
    assert made.cost is not None
    wobbly = made.model_copy(update={"cost": made.cost.model_copy(update={"repeatable": False})})
    assert "ok, not repeatable" in printed(stored(tmp_path, [(wobbly, layered(0.0))]), 200)
    untimed = made.model_copy(update={"cost": Cost(load_time_s=None)})
    assert "repeatable" not in printed(stored(tmp_path / "untimed", [(untimed, layered(0.0))]), 200)


def test_a_nan_is_counted_beside_the_largest_difference(tmp_path: Path) -> None:
    made = measured(output=measures(0.5).model_copy(update={"candidate_nan": 3}))
    assert "0.5 NaN×3" in printed(stored(tmp_path, [(made, layered(0.0))]), 200)


def test_a_cell_in_full_collapses_the_layers_before_the_first_that_differs() -> None:
    rows = [
        module(i, f"model.layers.{i // 2}{'.mlp' * (1 - i % 2)}", i // 2, "layer" if i % 2 else "mlp", 0.5 * (i > 5))
        for i in range(10)
    ]
    out = Console(file=io.StringIO(), width=160)
    print_cell(measured(first_divergence="model.layers.3.mlp"), rows, out)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    starts = text[text.index("Where it starts") : text.index("Parameters and buffers")]
    assert "layers before 3 equal; in layer 3: from mlp on" in starts
    assert "layers 0–2: 6 modules" in starts
    assert "model.layers.3.mlp " in starts
    assert "model.layers.4" not in starts


def test_a_cell_in_full_tells_only_the_costs_that_were_measured() -> None:
    out = Console(file=io.StringIO(), width=100)
    print_cell(measured().model_copy(update={"cost": Cost(load_time_s=2.0)}), layered(0.0), out)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    costs = [line.split() for line in text.splitlines() if line.startswith(("weights", "forward", "peak", "second"))]
    assert costs == [["weights", "loaded", "in", "2.00", "s"], ["second", "forward", "was", "not", "run"]]


@pytest.mark.parametrize(("width", "has_type"), [(80, False), (160, True)])
def test_the_modules_of_a_cell_in_full_keep_their_names_in_one_piece(
    tmp_path: Path, width: int, has_type: bool
) -> None:
    sweep = report_1(tmp_path)
    out = Console(file=io.StringIO(), width=width)
    print_cell(sweep.records[1], sweep.modules(sweep.records[1].cell_id), out)
    lines = out.file.getvalue().splitlines()  # type: ignore[attr-defined]
    o_proj = next(line for line in lines if line.startswith("model.layers.0.self_attn.o_proj "))
    assert "0.25" in o_proj
    assert ("Linear" in o_proj) == has_type


def test_a_run_shows_progress_then_the_stored_table(tmp_path: Path) -> None:
    sweep = report_1(tmp_path)
    out, err = (Console(file=io.StringIO(), width=200) for _ in range(2))
    planned = tuple(Planned(cell(load_strategy=made.axes["load_strategy"]), made.cell_id) for made in sweep.records)
    sink = TerminalSink(out, err)
    sink.sweep_started(SmallPlan(tmp_path, planned))  # type: ignore[arg-type]
    for planned_cell, made in zip(planned, sweep.records, strict=True):
        sink.cell_started(planned_cell)  # type: ignore[arg-type]
        sink.cell_finished(made, [])
    sink.sweep_finished(sweep.records)
    assert "positions has no meaning for mine" in err.file.getvalue()  # type: ignore[attr-defined]
    assert "[4/4] device_map: ok" in err.file.getvalue()  # type: ignore[attr-defined]
    assert f"results: {tmp_path}" in out.file.getvalue()  # type: ignore[attr-defined]


def test_several_batches_of_a_cell_have_a_bar_until_they_are_done() -> None:
    err = Console(file=io.StringIO(), width=120, force_terminal=True)
    sink = TerminalSink(err=err)
    shown = []
    for done in (0, 8, 16):
        sink.texts_done(done, 16)
        with err.capture() as capture:
            err.print(sink._progress.get_renderable())
        shown.append(capture.get())
    assert "texts" in shown[1]
    assert "8/16" in shown[1]
    assert "texts" not in shown[2]


def test_brackets_in_a_label_are_no_markup_for_the_bar() -> None:
    err = Console(file=io.StringIO(), width=120, force_terminal=True)
    sink = TerminalSink(err=err)
    sink._progress.update(sink._task, description="inputs=a[/b]")
    with err.capture() as shown:
        err.print(sink._progress.get_renderable())
    assert "inputs=a[/b]" in shown.get()
