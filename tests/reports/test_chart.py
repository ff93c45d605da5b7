from __future__ import annotations

import itertools
import math
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.reports.page.chart import HEIGHT, Curve, chart


def test_zero_lies_on_the_floor_and_what_is_not_finite_is_a_gap() -> None:
    drawing = chart([Curve("one", "one", (0.0, 0.5, math.nan, 2.0), 0)], "max |Δ|")
    heights = [float(y) for y in re.findall(r'<circle cx="[^"]*" cy="([^"]*)"', drawing)]
    floor = float(re.search(r'class="floor"[^>]*y1="([^"]*)"', drawing)[1])  # type: ignore[index]
    assert heights[0] == floor
    assert floor > heights[1] > heights[2]
    assert drawing.count("<polyline") == 2
    assert drawing.count("not finite") == 1


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.lists(st.one_of(st.just(0.0), st.floats(1e-300, 1e300)), min_size=1, max_size=4), min_size=1, max_size=12
    )
)
def test_every_point_lies_in_the_drawing_and_no_two_names_touch(values: list[list[float]]) -> None:
    curves = [Curve(str(i), str(i), tuple(figures), i) for i, figures in enumerate(values)]
    drawing = chart(curves, "max |Δ|")
    heights = [float(y) for y in re.findall(r'cy="([^"]*)"', drawing)]
    assert len(heights) == sum(map(len, values))
    assert all(0 <= y <= HEIGHT for y in heights)
    names = sorted(float(y) for y in re.findall(r'class="label [^"]*" x="[^"]*" y="([^"]*)"', drawing))
    assert len(names) == len(curves)
    assert all(below - above > 14 for above, below in itertools.pairwise(names))
    assert all(0 < y <= HEIGHT for y in names)
