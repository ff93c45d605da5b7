from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sweeper.verdict.draws import Draws
from sweeper.verdict.monte_carlo import in_pieces, multiplied

CPU = torch.device("cpu")
DEVICES = [CPU, *([torch.device("cuda")] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_factors_are_uniform_around_one_and_the_seeds_own(device: torch.device, dtype: torch.dtype) -> None:
    drawn = Draws(3).factors((1000, 64), device, dtype, eps=0.5)
    assert (drawn.dtype, drawn.device.type, drawn.shape) == (dtype, device.type, (1000, 64))
    u = (drawn.double() - 1) / 0.5
    assert -1 <= u.min() < -1 + 1e-3
    assert 1 - 1e-3 < u.max() < 1
    assert abs(float(u.mean())) < 1e-2
    assert abs(float(u.var()) - 1 / 3) < 1e-2
    neighbours = torch.stack([u.flatten()[:-1], u.flatten()[1:]])
    assert abs(float(neighbours.corrcoef()[0, 1])) < 2e-2
    assert torch.equal(drawn, Draws(3).factors((1000, 64), device, dtype, eps=0.5))
    assert not torch.equal(drawn, Draws(4).factors((1000, 64), device, dtype, eps=0.5))
    assert Draws(3).factors((), device, dtype, eps=0.5).shape == ()
    assert Draws(3).factors((2, 0), device, dtype, eps=0.5).shape == (2, 0)


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_numbers_come_again_from_a_state(device: torch.device) -> None:
    draws = Draws(0)
    draws.factors((7,), device, torch.float32, eps=0.5)
    state = draws.state(device)
    first = [draws.factors((5,), device, dtype, eps=0.5) for dtype in (torch.float32, torch.float64)]
    draws.factors((3,), device, torch.float64, eps=0.5)
    draws.go_on_from(device, state)
    again = [draws.factors((5,), device, dtype, eps=0.5) for dtype in (torch.float32, torch.float64)]
    assert all(map(torch.equal, first, again))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (0,), (40,), (2, 3, 30_001), (70_000, 2)])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_result_is_within_one_epsilon_whatever_the_pieces(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, ...], transposed: bool
) -> None:
    tensor = (torch.rand(shape, device=device) + 1).to(dtype)
    if transposed and tensor.dim() > 1:
        tensor = tensor.mT
    eps = torch.finfo(dtype).eps
    nudged = multiplied(tensor, Draws(1), eps)
    assert (nudged.dtype, nudged.shape, nudged.stride()) == (dtype, tensor.shape, tensor.stride())
    relative = ((nudged.double() - tensor.double()) / tensor.double()).abs()
    assert (relative <= 1.5 * eps).all()
    if tensor.numel() > 1000:
        assert (relative > 0).double().mean() > 0.2  # not the bits that it had
        assert len(set((nudged - tensor).flatten().tolist())) > 2
    assert torch.equal(nudged, multiplied(tensor, Draws(1), eps))


def test_what_stands_for_infinity_stays_what_it_is() -> None:
    most = torch.finfo(torch.float32)
    masked = torch.tensor([most.min, most.max, -torch.inf, torch.inf, 0.0])
    assert torch.equal(multiplied(masked, Draws(0), most.eps), masked)


def test_factors_lie_around_one_by_an_epsilon() -> None:
    eps = 2.0**-7
    seen: list[Tensor] = []

    def change(some: Tensor, factor: Tensor) -> Tensor:
        seen.append(factor.clone())
        return some * factor.to(some.dtype)

    in_pieces(change, torch.ones(100_000), Draws(0), eps, torch.float64)
    factors = torch.cat(seen)
    assert len(seen) > 1
    assert 1 - eps <= factors.min() < 1 - 0.99 * eps
    assert 1 + 0.99 * eps < factors.max() < 1 + eps
