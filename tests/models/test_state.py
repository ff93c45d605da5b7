from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sweeper.errors import AlignmentError
from sweeper.models import state
from sweeper.models.state import compare_state, state_of


class Rotary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.tied = self.linear
        self.register_buffer("kept", torch.tensor([1.0]))
        self.register_buffer("inv_freq", torch.tensor([0.1, 1.0]), persistent=False)


def test_state_sees_what_state_dict_hides() -> None:
    model = Rotary()
    assert "inv_freq" not in model.state_dict()
    kinds = {name: entry.kind for name, entry in state_of(model).items()}
    assert kinds["inv_freq"] == "non_persistent_buffer"
    assert kinds["kept"] == "buffer"
    assert kinds["tied.weight"] == kinds["linear.weight"] == "parameter"


def test_a_rounded_buffer_is_named_with_its_dtypes_and_its_change() -> None:
    reference, candidate = Rotary(), Rotary()
    candidate.load_state_dict(reference.state_dict())
    candidate.inv_freq = candidate.inv_freq.bfloat16()
    figures = compare_state(state_of(reference), state_of(candidate))
    assert (figures.parameters, figures.parameters_equal) == (4, 4)
    assert (figures.buffers, figures.buffers_equal) == (2, 1)
    (difference,) = figures.differing
    assert (difference.name, difference.reference_dtype, difference.candidate_dtype) == (
        "inv_freq",
        "float32",
        "bfloat16",
    )
    assert difference.max_abs == abs(float(torch.tensor(0.1)) - float(torch.tensor(0.1).bfloat16()))


def test_another_dtype_with_the_same_values_is_listed_but_equal() -> None:
    reference, candidate = Rotary().bfloat16().float(), Rotary()
    candidate.load_state_dict(reference.state_dict())
    candidate.inv_freq = reference.inv_freq.clone()
    figures = compare_state(state_of(reference), state_of(candidate.bfloat16()))
    assert figures.parameters_equal == 4
    assert figures.buffers_equal == 2
    assert figures.same_dtype == 0
    assert all(difference.values_equal for difference in figures.differing)


def test_nan_is_a_difference() -> None:
    reference, candidate = Rotary(), Rotary()
    candidate.load_state_dict(reference.state_dict())
    candidate.kept = torch.tensor([float("nan")])
    figures = compare_state(state_of(reference), state_of(candidate))
    assert figures.buffers_equal == 1


def test_tensors_that_two_models_share_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, candidate = Rotary(), Rotary()
    candidate.linear.weight, candidate.kept = reference.linear.weight, reference.kept
    candidate.linear.bias = nn.Parameter(reference.linear.bias.detach().clone())
    reference.linear.weight.data[0, 0] = math.nan  # as it is on both sides
    read: list[torch.Tensor] = []
    equal = state._equal
    monkeypatch.setattr(state, "_equal", lambda left, right: (read.append(left), equal(left, right))[1])
    figures = compare_state(state_of(reference), state_of(candidate))
    assert (figures.parameters_equal, figures.buffers_equal, figures.differing) == (4, 2, ())
    assert [len(tensor) for tensor in read] == [2, 2, 2]  # the bias, under both its names, and inv_freq


def test_a_large_tensor_is_compared_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeper.models.state._CHUNK", {"cpu": 3})
    reference, candidate = nn.Linear(5, 2), nn.Linear(5, 2)
    candidate.load_state_dict(reference.state_dict())
    with torch.no_grad():
        candidate.weight[1, 3] += 2
        candidate.weight[0, 0] -= 1
    (difference,) = compare_state(state_of(reference), state_of(candidate)).differing
    assert difference.max_abs == pytest.approx(2)
    with torch.no_grad():
        candidate.weight[0, 1] = float("nan")
    (difference,) = compare_state(state_of(reference), state_of(candidate)).differing
    assert math.isnan(difference.max_abs)


def test_names_and_shapes_of_both_sides_must_agree() -> None:
    with pytest.raises(AlignmentError, match=r"only in the reference: .*kept.*only in the candidate: \[\]"):
        compare_state(state_of(Rotary()), state_of(nn.Module()))
    with pytest.raises(AlignmentError, match="weight: shape"):
        compare_state(state_of(nn.Linear(2, 3)), state_of(nn.Linear(3, 2)))
