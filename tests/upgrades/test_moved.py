"""How far two recordings of one cell are apart, over their noise."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import torch

from sweeper.records.recording import Recording
from sweeper.upgrades.findings import same_bits
from sweeper.upgrades.moved import moved
from sweeper.upgrades.report import _end

IDS = [[1, 2, 3], [4, 5]]
RANDOM = torch.Generator().manual_seed(0)
LOGITS = torch.randn(5, 8, generator=RANDOM, dtype=torch.float64)
FIRST, SECOND = (torch.randn(5, 4, generator=RANDOM, dtype=torch.float64) for _ in range(2))


def recording(native: float = 0.0, exact: float = 0.0, since: str = "b", **about: Any) -> Recording:
    """A recording whose outputs, and those of modules from `since` on, are moved by so much."""
    from_a = 1 if since == "a" else 0
    tensors = {
        "logits": LOGITS.float() * (1 + native),
        "module:a": FIRST.float() * (1 + native * from_a),
        "module:b": SECOND.float() * (1 + native),
        "float64:logits": LOGITS * (1 + exact),
        "float64:module:a": FIRST * (1 + exact * from_a),
        "float64:module:b": SECOND * (1 + exact),
    }
    known = {"modules": ["a", "b"], "floor": 1e-3, "floors": {"a": 1e-3, "b": 1e-3}, "float64": {"noise": 1e-16}}
    return Recording(token_ids=IDS, tensors=tensors, about=known | about)


def test_the_same_recording_has_the_same_bits() -> None:
    found = moved(recording(), recording())
    assert found.same_bits
    assert (found.native, found.exact, found.since) == (0, 0, None)
    assert not found.another_function
    assert not found.beyond_noise


def test_what_one_side_alone_recorded_is_named() -> None:
    fewer = recording()
    fewer = dataclasses.replace(fewer, tensors={k: v for k, v in fewer.tensors.items() if not k.endswith("module:a")})
    found = moved(recording(), fewer)
    assert found.same_bits
    assert (found.only_old, found.only_new) == (("a",), ())
    assert same_bits(found) == "every number that ran natively, and that both have, is the same; OLD alone has a"
    assert same_bits(moved(recording(), recording())) == "every recorded number is the same"


def test_the_worst_cell_is_the_furthest_off_of_the_worst_kind() -> None:
    def change(cell_id: str, kind: str, native: float) -> Any:
        pair = SimpleNamespace(new=SimpleNamespace(cell_id=cell_id, output=None))
        return SimpleNamespace(kind=kind, pair=pair, moved=moved(recording(), recording(native=native)))

    cells = [change("near", "beyond its noise", 1e-2), change("far", "beyond its noise", 1e-1)]
    cells.append(change("milder", "worse verdict", 1.0))
    upgrade: Any = SimpleNamespace(cells=cells, regressions=cells, exit_code=1, new=SimpleNamespace(folder="NEW"))
    assert _end(upgrade)[0] == "the worst cell: python -m sweeper report NEW --cell far"


def test_what_float64_shows_is_another_function_since_a_module_even_below_the_native_floor() -> None:
    found = moved(recording(), recording(native=1e-4, exact=1e-6))
    assert found.another_function
    assert not found.beyond_noise
    assert found.exact_since == "b"


def test_what_moves_further_than_rounding_though_float64_agrees_is_beyond_its_noise() -> None:
    found = moved(recording(), recording(native=1e-2, since="a"))
    assert found.beyond_noise
    assert not found.another_function
    assert found.since == "a"


def test_rounding_is_neither() -> None:
    found = moved(recording(), recording(native=1e-3, exact=1e-16))
    assert not found.same_bits
    assert not found.beyond_noise
    assert not found.another_function
    assert found.since == "b"  # the first of other bits


def test_the_noisier_environment_gives_the_floor() -> None:
    assert not moved(recording(), recording(native=1e-2, floor=0.1)).beyond_noise


def test_tables_that_were_rounded_otherwise_raise_what_float64_may_differ_by() -> None:
    near = {"state": {"rotary.inv_freq": [1.0, 0.5 * (1 + 1e-7)]}}
    far = {"state": {"rotary.inv_freq": [1.0, 0.5 * (1 + 1e-3)]}}
    exact = {"state": {"rotary.inv_freq": [1.0, 0.5]}}
    assert not moved(recording(**exact), recording(exact=1e-6, **near)).another_function
    assert moved(recording(**exact), recording(exact=1e-6, **far)).another_function
    assert "rotary.inv_freq" in moved(recording(**exact), recording(**far)).tables


def test_other_token_ids_are_said_and_nothing_else() -> None:
    other = dataclasses.replace(recording(), token_ids=[[1, 2, 4], [4, 5]])
    assert moved(recording(), other).other_tokens


def test_fewer_texts_are_compared_as_far_as_both_go() -> None:
    short = {name: tensor[:3] for name, tensor in recording().tensors.items()}
    found = moved(recording(), dataclasses.replace(recording(), token_ids=IDS[:1], tensors=short))
    assert found.texts == 1
    assert found.same_bits


def test_what_is_finite_on_one_side_alone_is_infinitely_far() -> None:
    broken = recording()
    logits = broken.tensors["logits"].clone()
    logits[0, 0] = float("nan")
    found = moved(recording(), dataclasses.replace(broken, tensors={**broken.tensors, "logits": logits}))
    assert found.native == float("inf")
    assert found.beyond_noise


def test_what_became_infinite_is_beyond_its_noise_whatever_floor_was_recorded() -> None:
    bad = recording(floor=math.nan)
    bad.tensors["logits"][0, 0] = math.nan
    for pair in ((recording(), bad), (bad, recording()), (bad, recording(floor=None))):
        assert moved(*pair).beyond_noise
    assert not moved(bad, bad).beyond_noise
