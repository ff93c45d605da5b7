"""`python scripts/compare_sweeps.py OLD NEW`: whether two versions of sweeper measured and judged the same.

OLD and NEW are output folders (their `GRID/SWEEP` folders are paired by name) or two single sweeps. Cells are paired by
their axes and those of their reference, because another version may give them other ids. Per cell:

- what was measured (`MEASURED`, and every row of `modules.parquet`) has the same bits;
- evidence of the verdict lies within `--ulp` units in the last place of float64, and what is not bit-equal is listed;
- kinds, reasons, first divergences, and the causes and closures of `explain/` are equal, names of commands aside.

Times, costs, attempts, environments and ids are not looked at. A field that only one version writes, an axis that only
one has and evidence that only one gives are named; the evidence alone fails, unless `--other-evidence` is given.

With `--zoo`, OLD and NEW are two outputs of `python -m tests.zoo.table`: every pair of OLD has to be in NEW, with the
same verdict, mark and cause; sizes may be a little apart.

It reads the files by itself, so that it can read those of any version. Exit code 1 where anything else differs. Whether
two environments gave the same, up to rounding, is another question: `sweeper compare OLD NEW`.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import struct
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet

from sweeper.upgrades.joining import Pair, Sided, join

MEASURED = (
    "status",
    "output_kind",
    "first_divergence",
    "unaligned",
    "output",
    "language",
    "texts",
    "state",
    "sample",
    "reference_sample",
    "attention_kernels",
    "without_effect",
    "checkpoint_revision",
)
KEYED_BY_DATA = ("unaligned", "without_effect")  # their keys are names of modules and flags, not fields
RENAMED = {"numerics_without_effect": "without_effect"}
JUDGED = ("kind", "reason", "decides", "first_divergence", "texts")
EXPLAINED = ("kind", "reason", "cause", "closed_bitwise", "put_back", "since")
MOST_LINES = 8  # a cell
ULP = 4
SIZES_WITHIN = 0.25
"""How far, relative to the larger, two printed sizes of the zoo's table may be apart."""
NOISE = 1e-12
"""Sizes below this are what float64 rounds: they need not agree."""
_COMMAND = re.compile(r"(python -m )?sweeper(\.\w+)* (run|report|explain|published)\b|python -m sweeper(\.\w+)*")
_INDEX = re.compile(r"\[\d+\]")
_SIZE = re.compile(r"(?<=rel_l2 )[^\s,;]+|(?<=replay )[^\s,;]+|(?<=becomes )[^\s,;)]+|(?<=natively )[^\s%]+")


class Difference(NamedTuple):
    """One thing that is not the same: where, what, and whether it may be."""

    topic: str
    text: str
    allowed: bool = False


class Count(NamedTuple):
    """What was compared, and what of it was not the same."""

    compared: int
    differences: list[Difference]


class Tally:
    """Collects what differs, prints it, and knows the exit code."""

    def __init__(self) -> None:
        self.compared: Counter[str] = Counter()
        self.differing: Counter[tuple[str, bool]] = Counter()
        self.notes: Counter[str] = Counter()
        self.failed = False

    def add(self, place: str, counts: dict[str, Count]) -> None:
        """Prints what differs at a place, the worst first, and counts it."""
        found = [difference for count in counts.values() for difference in count.differences]
        for topic, count in counts.items():
            self.compared[topic] += count.compared
        for difference in found:
            self.differing[difference.topic, difference.allowed] += 1
        self.failed |= any(not difference.allowed for difference in found)
        found.sort(key=lambda difference: difference.allowed)
        if found:
            print(place)
        for difference in found[:MOST_LINES]:
            print(f"  {'within bounds' if difference.allowed else 'DIFFERS'}, {difference.topic}: {difference.text}")
        if len(found) > MOST_LINES:
            print(f"  ... and {len(found) - MOST_LINES} more here; they are counted below")

    def fail(self, line: str) -> None:
        self.failed = True
        print(f"DIFFERS: {line}")

    def totals(self) -> None:
        print("\nIn total:")
        for topic, compared in self.compared.items():
            allowed, others = self.differing[topic, True], self.differing[topic, False]
            print(f"  {topic}: {compared} compared, {others} differ, {allowed} within bounds and not bit-equal")
        for note, times in self.notes.items():
            print(f"  note: {note} (×{times})")
        print("DIFFERENT" if self.failed else "THE SAME")


# ---- two values ---------------------------------------------------------------------------------------------------


def ulps_apart(old: float, new: float) -> float:
    """How many float64 numbers lie from one to the other; infinite where only one of them is finite."""
    if math.isnan(old) and math.isnan(new):
        return 0
    if not (math.isfinite(old) and math.isfinite(new)):
        return 0 if old == new else math.inf
    places = [_place(number) for number in (old, new)]
    return abs(places[0] - places[1])


def _place(number: float) -> int:
    """Numbers in order, so that neighbours are one apart; -0 lies beside +0, one below it."""
    (bits,) = struct.unpack("<q", struct.pack("<d", number))
    return bits if bits >= 0 else -(bits & 0x7FFFFFFFFFFFFFFF) - 1


def same_bits(old: Any, new: Any) -> bool:
    """Whether two JSON scalars are the same; numbers by the bits of float64, so that -0 is not 0."""
    numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in (old, new)]
    if all(numbers):
        return ulps_apart(float(old), float(new)) == 0
    return type(old) is type(new) and old == new


def without_commands(value: Any) -> Any:
    """A text with the commands in it made one word: versions call them by other names."""
    return _COMMAND.sub("COMMAND", value) if isinstance(value, str) else value


def compare_values(topic: str, path: str, old: Any, new: Any, tally: Tally) -> Count:
    """All that lies in two JSON values, at every depth. A field of one version alone is noted and passes."""
    if isinstance(old, dict) and isinstance(new, dict):
        parts = []
        for key in dict.fromkeys([*old, *new]):
            place = f"{path}.{key}" if path else key
            if (key in old) != (key in new) and path not in KEYED_BY_DATA:
                field = _INDEX.sub("", place)
                tally.notes[f"only {_side(key in old)} writes {field}"] += 1
                continue
            parts.append(compare_values(topic, place, old.get(key), new.get(key), tally))
        return _joined(parts)
    if isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            return Count(1, [Difference(topic, f"{path}: {len(old)} entries -> {len(new)} entries")])
        pairs = enumerate(zip(old, new, strict=True))
        return _joined([compare_values(topic, f"{path}[{i}]", *pair, tally) for i, pair in pairs])
    if same_bits(without_commands(old), without_commands(new)):
        return Count(1, [])
    return Count(1, [Difference(topic, f"{path}: {_shown(old)} -> {_shown(new)}")])


def _joined(parts: Sequence[Count]) -> Count:
    return Count(sum(part.compared for part in parts), [one for part in parts for one in part.differences])


def _side(is_old: bool) -> str:
    return "OLD" if is_old else "NEW"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}..."


# ---- two cells ----------------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """A `cell.json` with the folder that it lies in and the sweep's folder."""

    record: dict[str, Any]
    folder: Path
    sweep: Path


def compare_cells(old: Cell, new: Cell, tally: Tally, *, ulp: int, other_evidence: bool) -> dict[str, Count]:
    """All that two records of one cell hold, by topic."""
    counts = {"measured figures": _fields("measured figures", MEASURED, old.record, new.record, tally)}
    old_repeats, new_repeats = ((cell.record.get("cost") or {}).get("repeatable") for cell in (old, new))
    counts["repeatable"] = compare_values("repeatable", "cost.repeatable", old_repeats, new_repeats, tally)
    counts["reasons"] = _fields("reasons", ("reason",), old.record, new.record, tally)
    counts["module rows"] = _modules(old.folder, new.folder, tally)
    counts |= _verdicts(old.record.get("verdict"), new.record.get("verdict"), tally, ulp, other_evidence)
    counts["explanations"] = _explanations(old, new, tally)
    return counts


def _fields(topic: str, fields: Sequence[str], old: dict[str, Any], new: dict[str, Any], tally: Tally) -> Count:
    old_kept, new_kept = ({field: record[field] for field in fields if field in record} for record in (old, new))
    return compare_values(topic, "", old_kept, new_kept, tally)


def _modules(old: Path, new: Path, tally: Tally) -> Count:
    """Every row of `modules.parquet`, found by the module's name."""
    topic = "module rows"
    tables = [pyarrow.parquet.ParquetFile(folder / "modules.parquet").read() for folder in (old, new)]
    rows = [{row["name"]: row for row in table.to_pylist()} for table in tables]
    found = [
        Difference(topic, f"{name}: only {_side(name in rows[0])} has this module")
        for name in dict.fromkeys([*rows[0], *rows[1]])
        if (name in rows[0]) != (name in rows[1])
    ]
    shared = [name for name in rows[0] if name in rows[1]]
    compared = _joined([compare_values(topic, name, rows[0][name], rows[1][name], tally) for name in shared])
    return Count(len(shared), found + compared.differences)


def _verdicts(old: Any, new: Any, tally: Tally, ulp: int, other_evidence: bool) -> dict[str, Count]:
    if not old or not new:
        return {"verdicts": compare_values("verdicts", "verdict", _kind(old), _kind(new), tally)}
    return {
        "verdicts": _fields("verdicts", JUDGED, old, new, tally),
        "evidence": _evidence(old.get("evidence", []), new.get("evidence", []), tally, ulp, other_evidence),
    }


def _kind(verdict: Any) -> Any:
    return verdict and verdict.get("kind")


def _evidence(old: list[Any], new: list[Any], tally: Tally, ulp: int, other_evidence: bool) -> Count:
    """Figures by their name (of equal names the first goes with the first)."""
    topic = "evidence"
    sides = [_by_name(old), _by_name(new)]
    found = []
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        if (name in sides[0]) != (name in sides[1]):
            found.append(Difference(topic, f"only {_side(name in sides[0])} has {name!r}", other_evidence))
            continue
        first, second = sides[0][name], sides[1][name]
        if first.get("meaning") != second.get("meaning"):
            tally.notes[f"evidence is worded otherwise: {name!r}"] += 1
        if not same_bits(first["value"], second["value"]):
            found.append(_apart(name, first["value"], second["value"], ulp))
    return Count(len(set(sides[0]) | set(sides[1])), found)


def _by_name(evidence: list[Any]) -> dict[str, Any]:
    times: Counter[str] = Counter()
    named = {}
    for one in evidence:
        times[one["name"]] += 1
        named[one["name"] if times[one["name"]] == 1 else f"{one['name']} ({times[one['name']]})"] = one
    return named


def _apart(name: str, old: Any, new: Any, ulp: int) -> Difference:
    numbers = [isinstance(value, int | float) for value in (old, new)]
    if not all(numbers):
        return Difference("evidence", f"{name}: {_shown(old)} -> {_shown(new)}")
    distance = ulps_apart(float(old), float(new))
    return Difference("evidence", f"{name}: {old!r} -> {new!r}, {distance:g} ULP", distance <= ulp)


def _explanations(old: Cell, new: Cell, tally: Tally) -> Count:
    topic = "explanations"
    found = [_explanation(cell) for cell in (old, new)]
    if not any(found):
        return Count(0, [])
    if not all(found):
        return Count(1, [Difference(topic, f"only {_side(found[0] is not None)} has explain/")])
    return _fields(topic, EXPLAINED, found[0], found[1], tally)


def _explanation(cell: Cell) -> Any:
    path = cell.sweep / "explain" / f"{cell.record['cell_id']}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


# ---- two folders --------------------------------------------------------------------------------------------------


def sweeps_in(folder: Path) -> dict[str, Path]:
    """`GRID/SWEEP` -> its folder; a folder that is a sweep itself goes by an empty name."""
    if (folder / "sweep.json").is_file():
        return {"": folder}
    return {"/".join(path.parent.parts[-2:]): path.parent for path in sorted(folder.glob("*/*/sweep.json"))}


def cells_in(sweep: Path, tally: Tally) -> list[Cell]:
    """The finished cells, in the order of the plan; one whose files cannot be read fails, and is left out."""
    cells = []
    for planned in (_read(sweep / "sweep.json", tally) or {}).get("cells", ()):
        folder = sweep / "cells" / planned["cell_id"]
        record = _read(folder / "cell.json", tally) if folder.exists() else None
        if record is not None and _read(folder / "modules.parquet", tally) is not None:
            cells.append(Cell(_renamed(record), folder, sweep))
    return cells


def _read(path: Path, tally: Tally) -> Any:
    """A JSON or parquet file; None where it is damaged, which fails."""
    try:
        if path.suffix == ".json":
            found = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(found, dict):
                raise ValueError("no JSON object")
            return found
        return pyarrow.parquet.ParquetFile(path).read()
    except (OSError, ValueError, RecursionError, pyarrow.ArrowException) as error:
        tally.fail(f"{path}: cannot be read: {str(error).partition(chr(10))[0]}")
        return None


def _renamed(record: dict[str, Any]) -> dict[str, Any]:
    """A record under the names that its fields have today."""
    return {RENAMED.get(name, name): value for name, value in record.items()}


def compare_folders(old: Path, new: Path, tally: Tally, *, ulp: int, other_evidence: bool) -> None:
    sides = [sweeps_in(folder) for folder in (old, new)]
    if not sides[0] and not sides[1]:
        tally.fail(f"neither {old} nor {new} holds a sweep (GRID/SWEEP/sweep.json)")
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        if (name in sides[0]) != (name in sides[1]):
            tally.fail(f"{name}: only {_side(name in sides[0])} has this sweep")
            continue
        pairs = paired_cells(cells_in(sides[0][name], tally), cells_in(sides[1][name], tally), name, tally)
        print(f"{name or old}: {len(pairs)} cells")
        for label, first, second in pairs:
            counts = compare_cells(first, second, tally, ulp=ulp, other_evidence=other_evidence)
            tally.add(f"{name} {label}".strip(), counts)


def paired_cells(old: list[Cell], new: list[Cell], sweep: str, tally: Tally) -> list[Pair[Cell]]:
    """Cells of the same axes and the same reference axes, with a label; those without a partner are said."""
    joined = join(*(_sided(cells) for cells in (old, new)))
    for is_old, axes in ((True, joined.axes_of_old), (False, joined.axes_of_new)):
        for axis in axes:
            tally.notes[f"only {_side(is_old)} has the axis {axis}"] += 1
    for label, counts in {**joined.only_old, **joined.only_new}.items():
        tally.fail(f"{sweep} {label}: {counts[0]} such cells in OLD, {counts[1]} in NEW")
    if joined.in_order:
        tally.notes["cells of equal axes were paired in the order of the plan"] += joined.in_order
    return list(joined.pairs)


def _sided(cells: list[Cell]) -> list[tuple[Cell, Sided]]:
    return [(cell, Sided(cell.record["axes"], cell.record["reference_axes"])) for cell in cells]


# ---- two tables of the zoo ----------------------------------------------------------------------------------------


def zoo_rows(path: Path) -> dict[str, dict[str, str]]:
    """Pair -> heading -> text, from every table in the file. No two pairs of the zoo have one name."""
    rows: dict[str, dict[str, str]] = {}
    headings: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells[:1] == ["pair"]:
            headings = cells
        elif cells and not set(line) <= set("|-: "):
            rows[cells[0]] = dict(zip(headings[1:], cells[1:], strict=True))
    return rows


def compare_zoos(old: Path, new: Path, tally: Tally, sizes_within: float) -> None:
    sides = [zoo_rows(path) for path in (old, new)]
    for path, rows in zip((old, new), sides, strict=True):
        if not rows:
            tally.fail(f"{path}: no table of pairs in it")
    for pair in dict.fromkeys([*sides[0], *sides[1]]):
        if pair not in sides[0]:
            tally.notes["only NEW has this pair of the zoo"] += 1
            continue
        if pair not in sides[1]:
            tally.fail(f"{pair}: only OLD has this pair")
            continue
        for heading in set(sides[0][pair]) ^ set(sides[1][pair]):
            tally.notes[f"only {_side(heading in sides[0][pair])} has the column {heading!r}"] += 1
        tally.add(pair, dict(_zoo_row(sides[0][pair], sides[1][pair], sizes_within)))


def _zoo_row(old: dict[str, str], new: dict[str, str], within: float) -> Iterator[tuple[str, Count]]:
    for heading in (heading for heading in old if heading in new):
        first, second = old[heading], new[heading]
        if heading in ("difference", "in float64"):
            yield heading, Count(1, _sizes(heading, [first], [second], within))
            continue
        words = [_SIZE.sub("SIZE", text) for text in (first, second)]
        if words[0] != words[1]:
            yield heading, Count(1, [Difference(heading, f"{first or 'nothing'} -> {second or 'nothing'}")])
        else:
            yield heading, Count(1, _sizes(heading, _SIZE.findall(first), _SIZE.findall(second), within))


def _sizes(heading: str, old: list[str], new: list[str], within: float) -> list[Difference]:
    """Printed sizes that are not the same text, allowed where they are near each other or both are noise."""
    found = []
    for first, second in zip(old, new, strict=True):
        if first == second:
            continue
        try:
            sizes = [abs(float(text.rstrip(".")) * (1 if "%" not in text else 0.01)) for text in (first, second)]
            near = max(sizes) < NOISE or abs(sizes[0] - sizes[1]) <= within * max(sizes)
        except ValueError:
            near = False
        found.append(Difference(heading, f"{first} -> {second}", near))
    return found


def main() -> int:
    """Print what differs and the totals. Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, metavar="OLD")
    parser.add_argument("new", type=Path, metavar="NEW")
    parser.add_argument("--ulp", type=int, default=ULP, help=f"allowed for evidence; default {ULP}")
    parser.add_argument("--other-evidence", action="store_true", help="evidence that only one side gives is no failure")
    parser.add_argument("--zoo", action="store_true", help="OLD and NEW are outputs of `python -m tests.zoo.table`")
    parser.add_argument(
        "--sizes-within", type=float, default=SIZES_WITHIN, help=f"of the zoo, relative; default {SIZES_WITHIN}"
    )
    asked = parser.parse_args()
    tally = Tally()
    if asked.zoo:
        compare_zoos(asked.old, asked.new, tally, asked.sizes_within)
    else:
        compare_folders(asked.old, asked.new, tally, ulp=asked.ulp, other_evidence=asked.other_evidence)
    tally.totals()
    return int(tally.failed)


if __name__ == "__main__":
    sys.exit(main())
