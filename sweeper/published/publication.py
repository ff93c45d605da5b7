"""Published figures as data: `conf/reported/*.yaml`.

A figure is one number, or a table of numbers of one kind. Its numbers stay text, as printed, so that the digits are
known. Nothing here knows how a quantity is measured: `Number.index` and the figure's `quantity` and `cell` say what to
look up.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pydantic import BaseModel, ConfigDict, model_validator

from sweeper.config import Dtype, parse


class Quantity(StrEnum):
    """What a figure counts, and where a cell records it.

    A pair quantity compares the cell of the figure's `cell` with that of its `reference`; `input.*`, `output.value` and
    `output.pad_value` belong to one cell.
    """

    TOKEN_IDS = "input.token_ids"
    ATTENTION_MASK = "input.attention_mask"
    POSITION_IDS = "input.position_ids"
    INPUT_SHAPE = "input.shape"  # of the token ids, [rows, columns]
    OUTPUT_VALUE = "output.value"  # one element, by text, token within the text, and feature (or vocabulary entry)
    PAD_VALUE = "output.pad_value"  # one element at a pad, by row and column of the padded batch
    OUTPUT_EQUAL_FRACTION = "output.equal_fraction"
    OUTPUT_MEAN_ABS = "output.mean_abs"
    OUTPUT_MAX_ABS = "output.max_abs"
    OUTPUT_SUM_ABS = "output.sum_abs"
    OUTPUT_RMS = "output.rms"
    OUTPUT_ALLCLOSE = "output.allclose"  # torch.allclose's defaults: rtol 1e-5, atol 1e-8
    PROBABILITY_MAX_ABS = "output.probability_max_abs"  # of the softmax of the logits
    KL_MAX = "language.kl_max"
    MODULE_MEAN_ABS = "module.mean_abs"  # by layer and kind, as in `ModuleRecord`
    MODULE_MAX_ABS = "module.max_abs"
    MODULE_REL_L2_PERCENT = "module.rel_l2_percent"
    STATE_DICT_TENSORS = "state_dict.tensors"
    STATE_DICT_EQUAL = "state_dict.equal"
    STATE_DICT_EQUAL_FRACTION = "state_dict.equal_fraction"
    STATE_DICT_ALLCLOSE = "state_dict.allclose"  # of one tensor, by name


# Inputs are the same for every checkpoint that is fed the same ids.
INPUTS = frozenset({Quantity.TOKEN_IDS, Quantity.ATTENTION_MASK, Quantity.POSITION_IDS, Quantity.INPUT_SHAPE})
RAW_VALUES = frozenset({Quantity.OUTPUT_VALUE, Quantity.PAD_VALUE})  # mean nothing for other weights
TRUTHS = frozenset({Quantity.OUTPUT_ALLCLOSE, Quantity.STATE_DICT_ALLCLOSE})  # True or False
SHARES = frozenset({Quantity.OUTPUT_EQUAL_FRACTION, Quantity.STATE_DICT_EQUAL_FRACTION})  # in [0, 1]

_SIGNIFICAND_BITS = {Dtype.BFLOAT16: 8, Dtype.FLOAT16: 11, Dtype.FLOAT32: 24, Dtype.FLOAT64: 53}
_MIN_EXPONENT = {Dtype.BFLOAT16: -126, Dtype.FLOAT16: -14, Dtype.FLOAT32: -126, Dtype.FLOAT64: -1022}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Frozen):
    """Who published figures, where, and with which set-up; "not stated" where the text does not say.

    Attributes:
        author, published, address: of the text.
        model, revision, dtype, attention, hardware, libraries: the set-up.
        published_checkpoint: the checkpoint of `conf/checkpoint` that is the published model; None: there is none.
        runs_here: whether a sweep can measure these figures; `why_not` says why it cannot.
        instead: a command that measures the same kind of difference on a checkpoint that is here; None: there is none.
    """

    author: str
    published: str
    address: str
    model: str
    revision: str
    dtype: str
    attention: str
    hardware: str
    libraries: str
    published_checkpoint: str | None
    runs_here: bool = True
    why_not: str | None = None
    instead: str | None = None

    @model_validator(mode="after")
    def _reason(self) -> Source:
        if self.runs_here == (self.why_not is not None):
            raise ValueError("why_not is given exactly when runs_here is false")
        return self


Axes = dict[str, str | bool]
Index = dict[str, int | str]


class Figure(_Frozen):
    """One published number, or a table of them.

    Attributes:
        id: unique in its publication.
        source: key in the publication's `sources`.
        section, snippet: where it stands: the section, and a piece of the text that occurs there and nowhere else.
        quantity: what it is.
        cell, reference: the axes that tell its cell, and the one that it was compared with, from the sweep's others, on
            top of the publication's `cell`; `reference` is empty where nothing was compared.
        computed_in: the dtype that the number had before it was printed: bfloat16 for a mean taken in bfloat16.
        exact: whether the printed digits give the number back (an integer, True, False, what Python prints of a float).
            Otherwise they are a rounding of it, as in what torch prints of a tensor.
        over: the table's dimensions, outermost first, with the labels of each; a number n stands for 0 to n - 1. Labels
            count as in Python: -1 is the last. Empty for a single number.
        values: the printed numbers, separated by white space, the last dimension running fastest.
    """

    id: str
    source: str = "report"
    section: str
    snippet: str
    quantity: Quantity
    cell: Axes = {}
    reference: Axes = {}
    computed_in: Dtype = Dtype.FLOAT64
    exact: bool = False
    over: dict[str, int | tuple[int | str, ...]] = {}
    values: str

    @model_validator(mode="after")
    def _one_value_an_index(self) -> Figure:
        wanted, given = len(list(self._indices())), len(self.values.split())
        if wanted != given:
            raise ValueError(f"{self.id}: {given} values for {wanted} places")
        return self

    def numbers(self) -> tuple[Number, ...]:
        """Every number of the figure with its place in it."""
        return tuple(
            Number(figure=self, index=index, printed=printed)
            for index, printed in zip(self._indices(), self.values.split(), strict=True)
        )

    def _indices(self) -> Iterator[Index]:
        labels = [range(given) if isinstance(given, int) else given for given in self.over.values()]
        for place in itertools.product(*labels):
            yield dict(zip(self.over, place, strict=True))


@dataclass(frozen=True, kw_only=True)
class Number:
    """One number of a figure: where it stands in the figure, and how it was printed."""

    figure: Figure
    index: Index
    printed: str

    @property
    def value(self) -> float:
        """The printed number; True is 1 and False is 0."""
        return float({"True": 1, "False": 0}.get(self.printed, self.printed))

    @property
    def decimals(self) -> int:
        """Digits printed behind the point, before any exponent."""
        return len(self.printed.lower().partition("e")[0].partition(".")[2])

    @property
    def identified(self) -> float | None:
        """The only number of `computed_in` that prints like this; None where several do, or none."""
        if self.figure.exact:
            return self.value
        dtype = self.figure.computed_in
        nearest = round_to(self.value, dtype)
        # 0.6: a power of two has its lower neighbour at half the spacing.
        step = 0.6 * _spacing(nearest, dtype)
        neighbours = (round_to(nearest - step, dtype), round_to(nearest + step, dtype))
        unique = self._prints(nearest) and not any(self._prints(neighbour) for neighbour in neighbours)
        return nearest if unique else None

    def shows(self, measured: float) -> bool:
        """Whether `measured`, as it is or rounded to `computed_in`, gives the printed digits."""
        rounded = round_to(measured, self.figure.computed_in)
        if self.figure.exact:
            return rounded == self.value
        return self._prints(measured) or self._prints(rounded)

    def _prints(self, number: float) -> bool:
        notation = "e" if "e" in self.printed.lower() else "f"
        return Decimal(f"{number:.{self.decimals}{notation}}") == Decimal(self.printed)


class Publication(_Frozen):
    """What somebody published: one file of `conf/reported`.

    Attributes:
        title: of the text.
        sources: who published what, and the set-up; a text of one author has the one source `report`.
        cell: the axes that all its figures share.
        inputs: the names in `conf/inputs` of what its model read; empty where that is not among them.
        figures: the figures, in the order of the text.
    """

    title: str
    sources: dict[str, Source]
    cell: Axes = {}
    inputs: tuple[str, ...] = ()
    figures: tuple[Figure, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Publication:
        ids = [figure.id for figure in self.figures]
        if repeated := {one for one in ids if ids.count(one) > 1}:
            raise ValueError(f"the same id twice: {', '.join(sorted(repeated))}")
        if unknown := {figure.source for figure in self.figures} - set(self.sources):
            raise ValueError(f"no such source: {', '.join(sorted(unknown))}; there is {', '.join(self.sources)}")
        return self

    def cell_of(self, figure: Figure) -> Axes:
        """The axes of the cell that the figure belongs to, as far as the publication tells them."""
        return self.cell | figure.cell

    def reference_of(self, figure: Figure) -> Axes | None:
        """The axes of the cell that the figure was compared with; None where it compares nothing."""
        return self.cell | figure.reference if figure.reference else None


def load(path: Path) -> Publication:
    """Reads one file of `conf/reported`.

    Raises:
        ConfigError: the file is none; one line with the place and what is wrong.
    """
    data: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    publication: Publication = parse(Publication, data, where=path.stem)
    return publication


def round_to(value: float, dtype: Dtype) -> float:
    """The number of `dtype` nearest to a finite `value`, ties to even (IEEE 754); overflow is not modelled."""
    spacing = _spacing(value, dtype)
    return round(value / spacing) * spacing


def _spacing(value: float, dtype: Dtype) -> float:
    """Distance between the numbers of `dtype` in the binade of `value`."""
    exponent = math.frexp(value)[1] - 1 if value else _MIN_EXPONENT[dtype]
    return math.ldexp(1.0, max(exponent, _MIN_EXPONENT[dtype]) - _SIGNIFICAND_BITS[dtype] + 1)
