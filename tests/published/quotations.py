"""Published figures against the texts that print them: what a test of a file in `conf/reported` checks."""

from __future__ import annotations

import re
from pathlib import Path

from sweeper.published.publication import Publication, round_to

LABELS = re.compile(r"cuda:\d+|^Layer \d+:|bf16|Phase \d|30th", re.MULTILINE)
PRINTED = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.])|\b(?:True|False)\b")


def quoted_blocks(path: Path) -> dict[tuple[str, ...], str]:
    """The quoted blocks of one text; the key lists the figures whose numbers the block prints, in order."""
    blocks = path.read_text(encoding="utf-8").split("=== ")[1:]
    heads_and_bodies = (block.split("\n", 1) for block in blocks)
    return {tuple(head.split()): body for head, body in heads_and_bodies}


def printed_in(text: str) -> list[str]:
    """Every number, True and False that a block prints, without its labels."""
    return PRINTED.findall(LABELS.sub("", text))


def check_quotations(publication: Publication, blocks: dict[tuple[str, ...], str]) -> None:
    """The blocks print the publication's numbers and no others; each snippet stands in its block alone."""
    figures = {figure.id: figure for figure in publication.figures}
    assert [one for ids in blocks for one in ids] == list(figures), "blocks and figures are not the same or in order"
    for ids, text in blocks.items():
        assert printed_in(text) == [number.printed for one in ids for number in figures[one].numbers()], ids
        for one in ids:
            assert figures[one].snippet in text
            assert sum(body.count(figures[one].snippet) for body in blocks.values()) == 1


def check_numbers_exist_in_their_dtype(publication: Publication) -> None:
    """Every printed number belongs to some number of the dtype that it is said to be computed in."""
    for figure in publication.figures:
        for number in figure.numbers():
            assert number.shows(round_to(number.value, figure.computed_in)), (figure.id, number.index)
