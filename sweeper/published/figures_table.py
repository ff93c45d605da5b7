"""Published figures beside the measured ones, a row a figure: what the terminal and the page show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweeper.published.agreement import Agreement
from sweeper.published.lookup import Reproduction, Reproductions

HEADINGS = ("figure", "where", "published", "measured", "status", "checkpoint")
STYLES = {
    Agreement.BITWISE: "green",
    Agreement.PRINTED_DIGITS: "green",
    Agreement.SAME_ORDER: "yellow",
    Agreement.NOT_REPRODUCED: "red",
    Agreement.NOT_COMPARABLE: "dim",
}


def print_reproductions(compared: Reproductions, out: Console) -> None:
    """Prints a row a figure; for a table its first and last number, and how many numbers have which status."""
    out.print(Text(f"\npublished and measured: {compared.report.title}", style="bold"), soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 1))
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold", justify="right" if heading in ("published", "measured") else "left")
    for figure in compared.report.figures:
        numbers = compared.of(figure)
        cells = (
            figure.id,
            figure.section,
            ends([one.published for one in numbers]),
            ends([measured(one) for one in numbers]),
            statuses(numbers),
            measured_on(numbers[0]),
        )
        worst = max((one.status for one in numbers), key=list(Agreement).index)
        table.add_row(*map(Text, cells), style=STYLES[worst])
    out.print(table)
    for (status, why), count in reasons(compared):
        out.print(Text(f"{status.value} (×{count}): {why}", style="dim"), soft_wrap=True)


def measured(one: Reproduction) -> str:
    """Six significant digits at most; `reported.json` has them all."""
    if one.measured is None:
        return "–"
    if one.published in ("True", "False"):
        return str(bool(one.measured))
    return f"{one.measured:.6g}"


def statuses(numbers: Sequence[Reproduction]) -> str:
    """`same order`, or of a table `12 same order, 18 not reproduced`, best first."""
    counts = Counter(one.status for one in numbers)
    if len(numbers) == 1:
        return numbers[0].status.value
    return ", ".join(f"{counts[status]} {status.value}" for status in Agreement if counts[status])


def measured_on(one: Reproduction) -> str:
    """The checkpoint; where it is not the published one, that."""
    if one.checkpoint is None:
        return "–"
    return one.checkpoint if one.same_checkpoint else f"{one.checkpoint} (another)"


def reasons(compared: Reproductions) -> list[tuple[tuple[Agreement, str], int]]:
    """Why numbers are not reproduced or not comparable: each reason once, with how many numbers it concerns."""
    return list(Counter((one.status, one.why) for one in compared.numbers if one.why is not None).items())


def ends(texts: Sequence[str]) -> str:
    """The first and the last of a table's numbers."""
    return texts[0] if len(set(texts)) == 1 else f"{texts[0]} … {texts[-1]}"
