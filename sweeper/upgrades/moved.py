"""How far two recordings of one cell are apart, natively and in float64, since which module, and over what noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sweeper.records.recording import EMBEDDINGS, FLOAT64, MODULE, OUTPUT, OUTPUTS, Recording
from sweeper.verdict.thresholds import COLLAPSE_MULTIPLE, FLOAT64_EPS, FLOOR_MULTIPLE

if TYPE_CHECKING:
    from torch import Tensor

_FLOAT32_EPS = 2.0**-23
_STATE_ULP = 4
"""How many units in the last place of float32 a table that is computed at loading may differ by, and be the same."""


@dataclass(frozen=True, kw_only=True)
class Moved:
    """What two recordings of one cell tell.

    Attributes:
        texts: how many both have.
        other_tokens: the two did not read the same token ids: nothing else is known.
        same_bits: every number of every tensor that both have, of those that ran natively.
        native: rel. L2 of the outputs as they ran. floor: how far rounding may move them; NaN: was not recorded.
        exact: rel. L2 of the outputs in float64; None: was not recorded. noise: that of float64.
        tables: state that was computed at loading and is not the same, e.g. rotary frequencies, with the largest
            relative difference.
        since, exact_since: the first module that moved: beyond its floor where the outputs did, else at all; and the
            first that moved in float64. None where none did, or modules were not recorded.
        only_old, only_new: outputs and modules that one side alone has.
    """

    texts: int
    other_tokens: bool = False
    same_bits: bool = False
    native: float = math.nan
    floor: float = math.nan
    exact: float | None = None
    noise: float = math.nan
    tables: dict[str, float]
    since: str | None = None
    exact_since: str | None = None
    only_old: tuple[str, ...] = ()
    only_new: tuple[str, ...] = ()

    @property
    def bound(self) -> float:
        """The distance up to which float64 agrees: its noise, or what tables that were rounded otherwise may cost."""
        return _bound(self.noise, self.tables)

    @property
    def another_function(self) -> bool:
        """The runs in float64 are further apart than noise."""
        return self.exact is not None and not self.exact <= self.bound

    @property
    def beyond_noise(self) -> bool:
        """The outputs moved further than rounding may; what is finite on one side alone needs no floor."""
        return math.isinf(self.native) or (
            not math.isnan(self.floor) and not self.native <= FLOOR_MULTIPLE * self.floor
        )


def _bound(noise: float, tables: dict[str, float]) -> float:
    eps = FLOAT64_EPS if math.isnan(noise) else max(noise, FLOAT64_EPS)
    rounded_tables = bool(tables) and max(tables.values()) <= _STATE_ULP * _FLOAT32_EPS
    return COLLAPSE_MULTIPLE * (max(eps, _FLOAT32_EPS) if rounded_tables else eps)


def moved(old: Recording, new: Recording) -> Moved:
    """Compares two recordings of one cell, as far as both go."""
    texts = min(len(old.token_ids), len(new.token_ids))
    tables = _tables(old, new)
    if old.token_ids[:texts] != new.token_ids[:texts]:
        return Moved(texts=texts, other_tokens=True, tables=tables)
    shared = [name for name in OUTPUTS if name in old.tensors and name in new.tensors]
    exact_names = [name for name in shared if f"{FLOAT64}{name}" in old.tensors and f"{FLOAT64}{name}" in new.tensors]
    noise = _largest(side.about.get("float64", {}).get("noise") for side in (old, new))
    floor = _largest(side.about.get("floor") for side in (old, new))
    native = max((_rel_l2(*_sides(name, old, new, texts)) for name in shared[:1]), default=math.nan)
    exact = max((_rel_l2(*_sides(f"{FLOAT64}{name}", old, new, texts)) for name in exact_names[:1]), default=None)
    modules = [name for name in new.modules if name in set(old.modules)]
    both = {*shared, *modules}
    only_old, only_new = (tuple(name for name in _recorded(side) if name not in both) for side in (old, new))
    found = Moved(
        texts=texts,
        same_bits=all(_same(*_sides(name, old, new, texts)) for name in (*shared, *_named(modules))),
        native=native,
        floor=floor,
        exact=exact,
        noise=noise,
        tables=tables,
        only_old=only_old,
        only_new=only_new,
    )
    return Moved(
        **{
            **vars(found),
            "since": _since(found, modules, old, new, texts),
            "exact_since": _exact_since(found, modules, old, new, texts),
        }
    )


def _recorded(side: Recording) -> list[str]:
    return [*(name for name in OUTPUTS if name in side.tensors), *side.modules]


def _named(modules: Sequence[str]) -> Iterator[str]:
    return (f"{MODULE}{name}" for name in modules)


def _since(found: Moved, modules: Sequence[str], old: Recording, new: Recording, texts: int) -> str | None:
    """The first module beyond its floor; where the outputs are not beyond theirs, the first of other bits."""
    floors = [side.about.get("floors", {}) for side in (old, new)]
    for name in modules:
        pair = _sides(f"{MODULE}{name}", old, new, texts)
        if not found.beyond_noise:
            if not _same(*pair):
                return name
            continue
        floor = _largest(side.get(name) for side in floors)
        if not math.isnan(floor) and not _rel_l2(*pair) <= FLOOR_MULTIPLE * floor:
            return name
    return None


def _exact_since(found: Moved, modules: Sequence[str], old: Recording, new: Recording, texts: int) -> str | None:
    names = [f"{FLOAT64}{MODULE}{name}" for name in modules] if found.another_function else []
    both = [name for name in names if name in old.tensors and name in new.tensors]
    moved = (name for name in both if not _rel_l2(*_sides(name, old, new, texts)) <= found.bound)
    return next((name.removeprefix(f"{FLOAT64}{MODULE}") for name in moved), None)


def _sides(name: str, old: Recording, new: Recording, texts: int) -> tuple[Tensor, Tensor]:
    """A tensor of both, over the texts that both have."""
    plain = name.removeprefix(FLOAT64)
    rows = texts if plain in (EMBEDDINGS, OUTPUT) else sum(len(ids) for ids in old.token_ids[:texts])
    rows = min(rows, *(len(side.tensors[name]) for side in (old, new)))
    return old.tensors[name][:rows], new.tensors[name][:rows]


def _same(old: Tensor, new: Tensor) -> bool:
    return old.shape == new.shape and bool(((old == new) | (old.isnan() & new.isnan())).all())


def _rel_l2(old: Tensor, new: Tensor) -> float:
    """Infinite where the shapes differ, or something is finite on one side alone."""
    if old.shape != new.shape:
        return math.inf
    old, new = old.double().flatten(), new.double().flatten()
    finite = old.isfinite() & new.isfinite()
    if bool(((old != new) & ~finite & ~(old.isnan() & new.isnan())).any()):
        return math.inf
    from sweeper.metrics.pair import measure_distance

    return measure_distance(old[finite][None], new[finite][None]).rel_l2 if finite.any() else 0.0


def _tables(old: Recording, new: Recording) -> dict[str, float]:
    """State that was computed at loading and is not the same, with its largest relative difference."""
    sides = [side.about.get("state", {}) for side in (old, new)]
    found = {}
    for name in sides[0].keys() & sides[1].keys():
        pairs = list(zip(sides[0][name], sides[1][name], strict=False))
        far = max((abs(a - b) / max(abs(a), abs(b)) for a, b in pairs if a != b), default=0.0)
        if far or len(sides[0][name]) != len(sides[1][name]):
            found[name] = far or math.inf
    return found


def _largest(values: Iterable[object]) -> float:
    """The largest of those that are numbers; NaN where none is."""
    numbers = (float(value) for value in values if isinstance(value, int | float))
    return max((number for number in numbers if not math.isnan(number)), default=math.nan)
