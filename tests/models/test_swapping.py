from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

from sweeper.comparator.side import run, sides
from sweeper.models import swapping
from sweeper.models.swapping import Doubles, Given, doubled, swapped
from sweeper.verdict.float64_replay import replayed


def _held(model: nn.Module) -> dict[str, tuple[int, int, torch.dtype]]:
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    return {name: (id(tensor), tensor.data_ptr(), tensor.dtype) for name, tensor in tensors.items()}


def test_named_tensors_hold_other_values_and_then_their_own() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = _held(model)
    with swapped(model, [Given("0.weight", Tensor.double), Given("1.running_mean", torch.ones_like)]):
        assert model[0].weight.dtype is torch.float64
        assert model[1].running_mean.tolist() == [1, 1, 1]
    assert _held(model) == before


def test_a_tied_tensor_that_is_named_twice_comes_back() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    before = _held(model)
    with swapped(model, [Given(name, lambda held: held + 1) for name in ("0.weight", "1.weight")]):
        assert _held(model)["0.weight"] == _held(model)["1.weight"] != before["0.weight"]
    assert _held(model) == before


def test_running_out_of_memory_in_the_middle_puts_the_first_ones_back() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    before = _held(model)

    def exhausted(_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError

    with (
        pytest.raises(torch.OutOfMemoryError),
        swapped(model, [Given("0.weight", Tensor.double), Given("1.weight", exhausted)]),
    ):
        raise AssertionError("not entered")
    assert _held(model) == before


class Chain(nn.Module):
    """Keeps which of its linear layers hold float64 while one of them runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.layers[2] = self.layers[0]  # reused
        self.register_buffer("offset", torch.ones(4))
        self.seen: list[list[torch.dtype]] = []

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            handle = layer.register_forward_pre_hook(self._look)  # behind the one that doubles the weights
            x = layer(x)
            handle.remove()
        return x + self.offset

    def _look(self, *_: Any) -> None:
        self.seen.append([layer.weight.dtype for layer in self.layers])


def test_only_the_module_that_runs_is_in_float64() -> None:
    model = Chain()
    before = _held(model)
    with doubled(model), torch.no_grad():
        assert model.offset.dtype is torch.float64
        out = model(torch.ones(2, 4, dtype=torch.float64))
        assert all(parameter.dtype is torch.float32 for parameter in model.parameters())
    low, high = torch.float32, torch.float64
    assert model.seen == [[high, low, high], [low, high, low], [high, low, high]]
    assert out.dtype is high
    assert _held(model) == before


def _failing_hook(*_: Any) -> None:
    raise KeyError("a user's hook")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, KeyboardInterrupt])
def test_a_parameter_for_which_memory_ran_out_is_as_before(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    before, hooks = _held(model), len(model[0]._forward_hooks)
    double, calls = Tensor.double, []

    def limited(tensor: Tensor) -> Tensor:
        calls.append(tensor)
        if len(calls) == 4:  # weight and bias of the first, the weight of the second
            raise error
        return double(tensor)

    monkeypatch.setattr(Tensor, "double", limited)
    with pytest.raises(error), doubled(model):
        model(torch.ones(1, 3, dtype=torch.float64))
    assert _held(model) == before
    assert len(model[0]._forward_hooks) == hooks


def test_an_exception_in_a_hook_leaves_nothing_in_float64() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].register_forward_pre_hook(_failing_hook)
    before = _held(model)
    with pytest.raises(KeyError), doubled(model):
        model(torch.ones(1, 3, dtype=torch.float64))
    assert _held(model) == before


def _tied() -> nn.Module:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(7, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embed(x))

    return Tied()


def _parametrized() -> nn.Module:
    return nn.Sequential(nn.Embedding(7, 4), parametrizations.weight_norm(nn.Linear(4, 4)))


def _spectral() -> nn.Module:
    return nn.Sequential(nn.Embedding(7, 4), parametrizations.spectral_norm(nn.Linear(4, 4))).eval()


def _weight_norm_of_old() -> nn.Module:
    return nn.Sequential(nn.Embedding(7, 4), weight_norm(nn.Linear(4, 4)))


def _reading_a_child() -> nn.Module:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.child = nn.Embedding(7, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.embed(x)
            hidden = hidden.to(self.child.weight.dtype)  # as T5 and CLIP do
            hidden = F.linear(hidden, self.child.weight, self.child.bias)
            hidden += self.child.bias
            hidden[0].addmm_(hidden[1], self.child.weight)
            return torch.baddbmm(hidden, hidden, self.child.weight.T.expand(len(hidden), 4, 4))

    return Reading()


def _attention() -> nn.Module:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.attention = nn.Embedding(7, 4), nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.embed(x)
            return self.attention(hidden, hidden, hidden, need_weights=False)[0]

    return Attending().eval()


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    return nn.Sequential(nn.Embedding(7, 4), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)).eval()


def _recurrent() -> nn.Module:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.lstm = nn.Embedding(7, 4), nn.LSTM(4, 5, num_layers=2, bidirectional=True, proj_size=3)
            self.cell = nn.GRUCell(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            hidden, _ = self.lstm(self.embed(x))
            state = hidden.new_zeros(hidden.shape[1], 4)
            for step in hidden:
                state = self.cell(step, state)
            return hidden[..., :4] + state

    return Recurrent()


def _scripted() -> nn.Module:
    return torch.jit.script(nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4)))


def _called_by_forward() -> nn.Module:
    class Calling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.child = nn.Embedding(7, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.child.forward(self.embed(x))  # no hook is called

    return Calling()


def _giving_its_parameter() -> nn.Module:
    class Query(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Parameter(torch.randn(4))

        def forward(self) -> Tensor:
            return self.query

    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.query = nn.Embedding(7, 4), Query()

        def forward(self, x: Tensor) -> Tensor:
            return self.embed(x) * self.query()

    return Asking()


def _nested_own_parameters() -> nn.Module:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.inner = nn.Embedding(7, 4), nn.Linear(4, 4)
            self.scale = nn.Parameter(torch.randn(4))
            self.shared = self.inner.weight  # held twice, by the outer and the inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.embed(x)) * self.scale @ self.shared

    return Scaled()


MAKERS = [
    _tied,
    _parametrized,
    _spectral,
    _weight_norm_of_old,
    _reading_a_child,
    _attention,
    _encoder,
    _recurrent,
    _scripted,
    _called_by_forward,
    _giving_its_parameter,
    _nested_own_parameters,
]


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning", "ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_module_at_a_time_gives_the_bits_of_the_whole_model_in_float64(
    make: Callable[[], nn.Module], dtype: torch.dtype
) -> None:
    """The oracle is torch's own `.double()`."""

    def made() -> nn.Module:
        torch.manual_seed(0)
        return make().to(dtype)

    model, exact = made(), made().double()
    ids = torch.randint(0, 7, (3, 5))
    name = "input" if hasattr(model, "0") else "x"
    before = _held(model)
    side, _ = sides(model, model, {name: ids})
    with replayed(side) as (lifted, precision):
        got = run(lifted)["output"]
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        want = exact(**{name: ids})
    torch.backends.mha.set_fastpath_enabled(True)
    assert not precision.lower
    assert torch.equal(got.flatten(), want.flatten())
    assert _held(model) == before


class Doubled:
    """Counts the tensors that are converted to float64."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        double = Tensor.double

        def counted(tensor: Tensor) -> Tensor:
            self.count += isinstance(tensor, Tensor) and tensor.dtype is not torch.float64
            return double(tensor)

        monkeypatch.setattr(Tensor, "double", counted)

    def by_a_run(self, model: nn.Module, doubles: Doubles | None) -> int:
        before = self.count
        with doubled(model, doubles):
            model(torch.arange(3) if isinstance(model, nn.Embedding) else torch.ones(2, 3, dtype=torch.float64))
        return self.count - before


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Doubled:
    return Doubled(monkeypatch)


def test_the_next_run_of_the_same_values_finds_them_in_float64(counted: Doubled) -> None:
    model, doubles = nn.Linear(3, 3), Doubles()
    assert [counted.by_a_run(model, doubles) for _ in range(3)] == [2, 0, 0]
    assert counted.by_a_run(model, None) == 2
    sharing = nn.Linear(3, 3)
    sharing.weight = nn.Parameter(model.weight.detach())
    assert counted.by_a_run(sharing, doubles) == 1  # its bias
    with swapped(model, [Given("weight", lambda held: held + 1)]):
        given = torch.ones(2, 3, dtype=torch.float64)
        with doubled(model, doubles):
            found = model(given)
    expected = given @ (model.weight + 1).double().T + model.bias.double()
    assert torch.equal(found, expected)
    assert counted.by_a_run(model, doubles) == 0


def test_views_of_one_memory_are_told_apart() -> None:
    doubles, square = Doubles(), torch.arange(9.0).view(3, 3)
    for view in (square, square.T, square[1:], square.view(torch.int32).view(torch.float32), square.flatten()):
        assert torch.equal(doubles.of(view), view.to(torch.float64))
        assert torch.equal(doubles.of(view), view.to(torch.float64))


def test_values_that_are_gone_keep_nothing() -> None:
    doubles = Doubles()
    for number in range(50):
        doubles.of(torch.full((1000,), float(number)))
        assert len(doubles._kept) <= 1


def test_doubles_take_no_more_than_there_is_room_for(counted: Doubled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swapping, "free_bytes", lambda _device: 8 * 100)  # of which the weight takes 72, the bias 24
    model, doubles = nn.Linear(3, 3), Doubles()
    assert [counted.by_a_run(model, doubles) for _ in range(3)] == [2, 0, 0]
    assert counted.by_a_run(nn.Linear(3, 3), doubles) == 2
    monkeypatch.setattr(swapping, "free_bytes", lambda _device: 8 * 90)
    model, doubles = nn.Linear(3, 3), Doubles()
    assert [counted.by_a_run(model, doubles) for _ in range(3)] == [2, 1, 1]


def test_a_run_that_raises_leaves_no_double(counted: Doubled) -> None:
    model, doubles = nn.Linear(3, 3), Doubles()
    counted.by_a_run(model, doubles)
    with pytest.raises(ValueError, match="in the middle"), doubled(model, doubles):
        raise ValueError("in the middle")
    assert counted.by_a_run(model, doubles) == 2


def test_what_torch_writes_to_in_a_forward_has_no_double(counted: Doubled) -> None:
    doubles = Doubles()
    assert [counted.by_a_run(nn.Embedding(3, 3, max_norm=0.1), doubles) for _ in range(2)] == [1, 1]
    plain = nn.Embedding(3, 3)
    assert [counted.by_a_run(plain, doubles) for _ in range(2)] == [1, 0]
