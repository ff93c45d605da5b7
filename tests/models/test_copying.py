"""A copied model is what `copy.deepcopy` makes, and shares what it is told to share."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from sweeper.models.copying import copied_model


class Block(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.up = nn.Linear(4, 4)
        self.register_buffer("scale", torch.ones(4), persistent=False)
        self.lists = self.same_lists = [[1]]
        self.none = None

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        return self.up(hidden_BTD) * self.scale * self.config["factor"]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = {"factor": 2.0}
        self.blocks = nn.ModuleList(Block(self.config) for _ in range(2))
        self.blocks.append(self.blocks[0])  # runs twice
        self.blocks[1].up.weight = self.blocks[0].up.weight  # tied
        self.first = [self.blocks[0]]  # hidden from torch
        self.empty: list[Any] = []

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        for block in self.blocks:
            hidden_BTD = block(hidden_BTD)
        return hidden_BTD


class Copied(nn.Module):
    """Says itself how it is copied."""

    def __deepcopy__(self, _own: dict[int, Any]) -> Copied:
        return self


class Reduced(nn.Module):
    """Leaves something out of its copies."""

    def __init__(self) -> None:
        super().__init__()
        self.left_out = [1]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "left_out": []}


def tensors(model: nn.Module) -> dict[int, Any]:
    return {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}


@pytest.fixture
def model() -> Model:
    return Model().eval()


def test_the_copy_has_modules_and_settings_of_its_own_on_the_same_tensors(model: Model) -> None:
    copied: Any = copied_model(model, tensors(model))
    assert [name for name, _ in copied.named_modules()] == [name for name, _ in model.named_modules()]
    assert not set(map(id, copied.modules())) & set(map(id, model.modules()))
    assert all(map(torch.Tensor.is_set_to, copied.parameters(), model.parameters()))
    copied.config["factor"] = 3.0
    assert copied.blocks[0].config is copied.config
    assert model.blocks[0].config == {"factor": 2.0}
    copied.empty.append(1)
    assert not model.empty


def test_what_is_one_object_stays_one(model: Model) -> None:
    copied: Any = copied_model(model, {})
    assert copied.blocks[2] is copied.blocks[0] is copied.first[0]
    assert copied.blocks[1].up.weight is copied.blocks[0].up.weight
    assert copied.blocks[0].lists is copied.blocks[0].same_lists
    assert copied.blocks[0].up.weight is not model.blocks[0].up.weight


def test_every_attribute_is_that_of_deepcopy(model: Model) -> None:
    model.blocks[0].register_forward_hook(print)
    pairs = zip(copied_model(model, {}).modules(), copy.deepcopy(model).modules(), strict=True)
    for ours, pythons in pairs:
        assert vars(ours).keys() == vars(pythons).keys()
        assert [type(value) for value in vars(ours).values()] == [type(value) for value in vars(pythons).values()]
        assert ours._non_persistent_buffers_set == pythons._non_persistent_buffers_set
        assert list(ours._forward_hooks.values()) == list(pythons._forward_hooks.values())
        assert ours.training is pythons.training is False


def test_the_copy_computes_the_same(model: Model) -> None:
    hidden_BTD = torch.randn(2, 3, 4)
    assert torch.equal(copied_model(model, {})(hidden_BTD), model(hidden_BTD))


@pytest.mark.parametrize("inner", [nn.LSTM(3, 3), nn.Softmax(-1), nn.MultiheadAttention(4, 2)])
def test_modules_that_restore_themselves(inner: nn.Module) -> None:
    copied = copied_model(nn.Sequential(inner), {})
    assert all(map(torch.equal, copied.parameters(), inner.parameters()))
    assert not set(map(id, copied.parameters())) & set(map(id, inner.parameters()))


def test_a_module_that_says_how_it_is_copied_is_asked() -> None:
    inner = Copied()
    assert copied_model(nn.Sequential(inner), {})[0] is inner  # type: ignore[index]


def test_one_that_was_given_a_way_to_be_copied_is_asked() -> None:
    inner = nn.Linear(2, 2)
    vars(inner)["__deepcopy__"] = lambda _own: inner
    assert copied_model(nn.Sequential(inner), {})[0] is inner  # type: ignore[index]


def test_modules_that_say_what_is_copied_are_asked() -> None:
    reduced = Reduced()
    copied: Any = copied_model(nn.Sequential(reduced, nn.ReLU()), {})
    assert (reduced.left_out, copied[0].left_out) == ([1], [])


def test_hooks_are_copied_and_what_modules_have_in_common_stays_common(model: Model) -> None:
    first, second, _ = model.blocks
    second._forward_hooks = first._forward_hooks  # none yet
    model.register_forward_pre_hook(print)
    copied: Any = copied_model(model, {})
    assert copied.blocks[0]._forward_hooks is copied.blocks[1]._forward_hooks is not first._forward_hooks
    assert [*copied._forward_pre_hooks.values()] == [print]
    copied.register_forward_hook(print)
    copied.blocks[0].register_forward_hook(print)
    assert not model._forward_hooks
    assert not first._forward_hooks


def test_a_parametrized_module_is_copied_by_its_own_way() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)))
    copied, hidden_TD = copied_model(model, tensors(model)), torch.randn(3, 4)
    assert torch.equal(copied(hidden_TD), model(hidden_TD))
    assert all(map(torch.Tensor.is_set_to, copied.parameters(), model.parameters()))
