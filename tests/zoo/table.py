"""The results of the zoo as Markdown tables: `python -m tests.zoo.table`, or only one half by its name."""

from __future__ import annotations

import argparse

from tests.zoo import held_out, tuning
from tests.zoo.check import differences
from tests.zoo.examine import Mark, examine
from tests.zoo.pairs import Pair

HALVES = {"tuning": tuning.PAIRS, "held_out": held_out.PAIRS}


def row(pair: Pair, mark: Mark) -> str:
    """One pair: sizes, which decide nothing, then the verdict and whether it and the cause are right."""
    native, replayed = differences(pair.build())
    right = "yes" if mark.kind in pair.allowed else "**no**" if mark.wrong else "no"
    named = "" if pair.answer == "harmless" else "yes" if mark.named else "no"
    cells = (f"`{pair.name}`", pair.answer, f"{native:.1e}", f"{replayed:.1e}", mark.kind, right, named, mark.cause)
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def summary(half: str, marks: list[Mark]) -> str:
    """The counts that the examination asks for."""
    harmful = [mark for mark in marks if mark.pair.answer == "harmful"]
    return (
        f"{half}: {len(marks)} pairs, {len(harmful)} of them harmful. Wrong {sum(mark.wrong for mark in marks)}, "
        f"inconclusive {sum(mark.inconclusive for mark in marks)}, "
        f"of a right kind {sum(mark.kind in mark.pair.allowed for mark in marks)}, "
        f"causes named {sum(mark.named for mark in harmful)} of {len(harmful)}."
    )


def main() -> None:
    """Print the table of each half, and its counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("halves", nargs="*", metavar="half", help=f"{' or '.join(HALVES)}; both where none is named")
    parser.add_argument("--counts", action="store_true", help="print the counts alone, as for the half held out")
    arguments = parser.parse_args()
    for half in arguments.halves or HALVES:
        marks = [examine(pair) for pair in HALVES[half]]
        if not arguments.counts:
            print("| pair | answer | difference | in float64 | verdict | right | cause named | cause |")
            print("|---|---|---|---|---|---|---|---|")
            print("\n".join(row(mark.pair, mark) for mark in marks))
        print(f"\n{summary(half, marks)}\n")


if __name__ == "__main__":
    main()
