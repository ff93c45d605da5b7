"""The results of the zoo as `docs/verdict.md` shows them: `python -m tests.zoo.table`, or one half by its name."""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import platform
from concurrent.futures import ProcessPoolExecutor

import torch
import transformers

from tests.zoo.examine import Mark, examine, missing_packages
from tests.zoo.halves import HALVES
from tests.zoo.pairs import Pair

_HEADER = """\
| pair | answer | verdict | right | cause named | cause |
| --- | --- | --- | --- | --- | --- |"""


def row(pair: Pair, mark: Mark) -> str:
    """One pair: the verdict, and whether it and the cause are right."""
    right = "yes" if mark.kind in pair.allowed else "**no**" if mark.wrong else "no"
    named = "" if pair.answer == "harmless" else "yes" if mark.named else "no"
    cells = (f"`{pair.name}`", pair.answer, mark.kind, right, named, mark.cause)
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def summary(half: str, marks: list[Mark]) -> str:
    """The counts that the examination asks for."""
    harmful = [mark for mark in marks if mark.pair.answer == "harmful"]
    harmless = [mark for mark in marks if mark.pair.answer == "harmless"]
    return (
        f"{half}: {len(marks)} pairs, {len(harmful)} of them harmful. "
        f"Harmful called harmless {sum(mark.wrong for mark in harmful)}, "
        f"harmless called harmful {sum(mark.wrong for mark in harmless)}, "
        f"inconclusive {sum(mark.inconclusive for mark in marks)}, tracebacks {sum(mark.failed for mark in marks)}, "
        f"of a right kind {sum(mark.kind in mark.pair.allowed for mark in marks)}, "
        f"causes named {sum(mark.named for mark in harmful)} of {len(harmful)}."
    )


def details(half: str, marks: list[Mark]) -> str:
    """The counts of a half; behind them, to be opened, a row a pair."""
    rows = "\n".join(row(mark.pair, mark) for mark in marks)
    return f"<details><summary>{summary(half, marks)}</summary>\n\n{_HEADER}\n{rows}\n\n</details>\n"


def _good(mark: Mark) -> bool:
    return mark.kind in mark.pair.allowed and (mark.named or mark.pair.answer == "harmless")


def machine() -> str:
    """Where these results come from."""
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    return f"{versions}, CPU ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"


def _examined(half: str, pairs: list[Pair], processes: int) -> list[Mark]:
    """The marks of pairs, in their order."""
    if processes == 1:
        return [examine(pair) for pair in pairs]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, torch.set_num_threads, (1,)) as pool:
        answers = pool.map(_answer, itertools.repeat(half), [pair.name for pair in pairs])
        return [Mark(pair=pair, kind=kind, cause=cause) for pair, (kind, cause) in zip(pairs, answers, strict=True)]


def _answer(half: str, name: str) -> tuple[str, str]:
    """The verdict and the cause of one pair, which is found by its name: its builder cannot be sent."""
    mark = examine(next(pair for pair in HALVES[half] if pair.name == name))
    return mark.kind, mark.cause


def main() -> None:
    """Print the machine, and the table of each half."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("halves", nargs="*", metavar="half", help=f"{' or '.join(HALVES)}; both where none is named")
    parser.add_argument("--counts", action="store_true", help="print the counts alone")
    parser.add_argument("--bad", action="store_true", help="print the rows alone that are not right or not named")
    parser.add_argument("--kind", default="", help="only pairs whose kind begins so, e.g. batch, decode, compile")
    parser.add_argument("--processes", type=int, default=1, help="how many pairs are examined at once")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}\n")
    for half in arguments.halves or HALVES:
        of_kind = [pair for pair in HALVES[half] if pair.kind.startswith(arguments.kind)]
        pairs = [pair for pair in of_kind if not missing_packages(pair)]
        if left_out := len(of_kind) - len(pairs):
            print(f"{half}: {left_out} pairs are left out, the packages that they need are not installed\n")
        marks = _examined(half, pairs, arguments.processes)
        if arguments.bad:
            print(*(row(mark.pair, mark) for mark in marks if not _good(mark)), sep="\n")
        print(summary(half, marks) if arguments.counts or arguments.bad else details(half, marks))


if __name__ == "__main__":
    main()
