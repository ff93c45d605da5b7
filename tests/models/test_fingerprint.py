from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sweeper.models.fingerprint import device_sums, fingerprint, model_fingerprint

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int8]


def sums(tensor: Tensor) -> list[int]:
    return [int(one) for one in device_sums(tensor.contiguous().view(-1).view(torch.uint8))]


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_tell_one_bit_a_swap_and_two_signs(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tensor = (torch.randn(37, 11) * 20).to(dtype)
    seen = {tuple(sums(tensor))}
    assert tuple(sums(tensor.clone())) in seen
    raw = tensor.view(-1).view(torch.uint8)
    for byte in (0, 7, len(raw) - 1):
        changed = raw.clone()
        changed[byte] ^= 128
        seen.add(tuple(sums(changed)))
    swapped, signs = tensor.flatten().clone(), raw.clone()
    swapped[[3, 200]] = swapped[[200, 3]]
    signs[[7, 15]] ^= 128
    seen |= {tuple(sums(swapped)), tuple(sums(signs))}
    assert len(seen) == 6


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_empty_has_a_fingerprint(dtype: torch.dtype) -> None:
    """A cache that was emptied is a leaf as any other."""
    assert fingerprint([("a", torch.empty(0, dtype=dtype))]) != fingerprint([("a", torch.zeros(1, dtype=dtype))])


def test_names_shapes_and_dtypes_count() -> None:
    tensor = torch.zeros(4, 2)
    others = [("b", tensor), ("a", tensor.view(2, 4)), ("a", tensor.int()), ("a", tensor.T), ("a", -tensor)]
    prints = {fingerprint([other]) for other in [*others, ("a", tensor)]}
    assert len(prints) == 5  # a transposed [4, 2] of zeros is a [2, 4]


def test_a_model_is_told_by_hidden_buffers_modes_and_classes() -> None:
    def model(act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
        torch.manual_seed(0)
        made = nn.Sequential(nn.Linear(3, 3), act()).eval()
        made.register_buffer("table", torch.ones(2), persistent=False)
        return made

    plain, again, other_class, training, rounded = model(), model(), model(nn.GELU), model(), model()
    training[1].train()
    rounded.table.add_(2.0**-20)
    assert model_fingerprint(plain) == model_fingerprint(again)
    assert len({model_fingerprint(one) for one in (plain, other_class, training, rounded)}) == 4
