"""Cells of two sweeps are paired by their axes."""

from __future__ import annotations

from sweeper.upgrades.joining import Sided, join


def cells(*axes: dict[str, object], reference: str = "float32") -> list[tuple[str, Sided]]:
    return [(f"{place}", Sided(one, {**one, "dtype": reference})) for place, one in enumerate(axes)]


def test_pairs_have_the_values_that_vary_as_label() -> None:
    old = cells({"dtype": "bfloat16", "attention": "sdpa"}, {"dtype": "bfloat16", "attention": "eager"})
    found = join(old, old[::-1])
    assert [(pair.label, pair.old, pair.new) for pair in found.pairs] == [("sdpa", "0", "0"), ("eager", "1", "1")]
    assert not found.only_old
    assert not found.only_new


def test_another_reference_is_another_cell() -> None:
    one = {"dtype": "bfloat16"}
    found = join(cells(one), cells(one, reference="float64"))
    assert found.pairs == ()
    assert list(found.only_old.values()) == [(1, 0)]
    assert list(found.only_new.values()) == [(0, 1)]


def test_an_axis_of_one_sweep_alone_is_named_and_not_paired_by() -> None:
    found = join(cells({"dtype": "bfloat16"}), cells({"dtype": "bfloat16", "cache": "static"}))
    assert len(found.pairs) == 1
    assert (found.axes_of_old, found.axes_of_new) == ((), ("cache",))


def test_cells_of_equal_axes_are_paired_in_order_and_counted() -> None:
    same = cells({"dtype": "bfloat16"}, {"dtype": "bfloat16"})
    found = join(same, same)
    assert [(pair.old, pair.new) for pair in found.pairs] == [("0", "0"), ("1", "1")]
    assert found.in_order == 2
