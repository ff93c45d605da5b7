"""An exemption needs a location: each module on the reference's own arguments, against floors of its own."""

from __future__ import annotations

import contextlib
import copy
import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from sweeper.comparator.side import Switch, sides
from sweeper.verdict.comparison import Comparison, compare_models, compare_sides
from sweeper.verdict.examination import Examination
from sweeper.verdict.module_floor import Noise
from sweeper.verdict.module_runs import _Copies, capture
from tests.small_models import GEOMETRY, hidden, llama, padded_left

BF16 = torch.bfloat16
IDS = {"input_ids": torch.randint(5, 99, (2, 24), generator=torch.Generator().manual_seed(0))}


def long_ids(columns: int) -> dict[str, Any]:
    ids = torch.randint(5, 120, (1, columns), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "use_cache": False}


class WrongIn(LlamaRMSNorm):
    """A quarter too large in 16 bits, and right in float32."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        output: Tensor = super().forward(hidden_states)
        return output * (1.25 if hidden_states.dtype in (BF16, torch.float16) else 1.0)


class WrongLayerNorm(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * (1.25 if input.dtype in (BF16, torch.float16) else 1.0)


class WrongLinear(nn.Linear):
    """Loses its bias where the weights are not float32."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight, self.bias if self.weight.dtype != torch.float16 else None)


def check(comparison: Comparison, module: str) -> str:
    assert comparison.verdict.kind == "semantic", comparison
    assert comparison.measured.replay is not None
    assert comparison.measured.replay.asked <= comparison.measured.replay.bound
    assert comparison.measured.beyond[0].name == module
    assert comparison.first_divergence is not None
    assert (comparison.first_divergence.module, comparison.first_divergence.origin) == (module, "introduced")
    return comparison.explain().cause


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_a_wrong_norm_is_not_excused_by_the_kernel_beside_it(backend: str) -> None:
    reference = llama(BF16, backend)
    candidate = copy.deepcopy(reference)
    candidate.model.layers[1].input_layernorm.__class__ = WrongIn
    comparison = compare_models(reference, candidate, padded_left())
    assert "WrongIn" in check(comparison, "model.layers.1.input_layernorm")
    assert comparison.modules.set_index("name").own_floor_rel_l2["model.layers.1.input_layernorm"] > 0


def test_a_wrong_norm_of_an_encoder_in_float16() -> None:
    torch.manual_seed(0)
    geometry = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    reference = BertModel(BertConfig(**geometry, intermediate_size=48), add_pooling_layer=False).eval().half()
    candidate = copy.deepcopy(reference)
    candidate.encoder.layer[0].output.LayerNorm.__class__ = WrongLayerNorm
    assert "WrongLayerNorm" in check(compare_models(reference, candidate, IDS), "encoder.layer.0.output.LayerNorm")


def test_a_plain_model_whose_linear_loses_its_bias_in_float16_only() -> None:
    torch.manual_seed(0)
    reference = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 8)).eval().half()
    candidate = copy.deepcopy(reference)
    candidate[0].__class__ = WrongLinear
    given = {"input": hidden(torch.float16)["hidden"]}
    assert "Linear -> WrongLinear" in check(compare_models(reference, candidate, given), "0")


class FollowingRope(nn.Module):
    """Angles in the model's dtype, in which positions collide."""

    def __init__(self, frequencies: Tensor) -> None:
        super().__init__()
        self.register_buffer("inv_freq", frequencies.clone(), persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angle = position_ids[:, :, None].to(x.dtype) * self.get_buffer("inv_freq").to(x.dtype)
        angle = torch.cat((angle, angle), -1)
        return angle.cos(), angle.sin()


def rope(model: Any) -> Any:
    model.model.rotary_emb = FollowingRope(model.model.rotary_emb.inv_freq).eval()
    return model


def large_llama(dtype: torch.dtype) -> Any:
    torch.manual_seed(7)
    config = LlamaConfig(**{**GEOMETRY, "max_position_embeddings": 1024})
    return LlamaForCausalLM._from_config(config, dtype=dtype, attn_implementation="eager").eval()


def test_positions_that_collide_in_bfloat16_are_not_rounding() -> None:
    comparison = compare_models(large_llama(BF16), rope(large_llama(BF16)), long_ids(400))
    assert comparison.measured.native <= 4 * comparison.measured.floor  # the outputs say nothing
    assert "FollowingRope" in check(comparison, "model.rotary_emb")


def test_the_same_code_in_two_dtypes_is_named_for_following_them() -> None:
    """The dtype asked for covers what is computed from weights and inputs, not what is computed from positions."""
    comparison = compare_models(rope(large_llama(torch.float32)), rope(large_llama(BF16)), long_ids(400))
    cause = check(comparison, "model.rotary_emb")
    assert "model.rotary_emb follows the dtype of what it is given" in cause
    assert "compute model.rotary_emb in float32" in cause


class Sinusoids(nn.Module):
    """Adds sines of positions counted in the dtype of its input, as an audio encoder or a diffusion model may."""

    def __init__(self, exact: bool) -> None:
        super().__init__()
        self.exact = exact
        self.mix = nn.Linear(16, 16)

    def forward(self, hidden: Tensor) -> Tensor:
        dtype = torch.float32 if self.exact else hidden.dtype
        position = torch.arange(hidden.shape[1], dtype=dtype, device=hidden.device)[:, None]
        frequency = torch.exp(-torch.arange(16, dtype=dtype, device=hidden.device) / 4)
        return self.mix(hidden) + (position * frequency).sin().to(hidden.dtype)


@pytest.mark.parametrize("dtype", [BF16, torch.float16])
def test_positions_counted_in_16_bits_are_not_rounding(dtype: torch.dtype) -> None:
    def made(exact: bool) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(Sinusoids(exact), nn.Linear(16, 8)).eval().to(dtype)

    given = torch.randn(1, 3000, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    comparison = compare_models(made(True), made(False), {"input": given})
    assert comparison.verdict.kind == "semantic", comparison
    assert comparison.measured.beyond[0].name == "0"
    assert "Sinusoids.exact: True -> False of 0" in comparison.explain().cause


class Glued(nn.Module):
    """The forward of the model itself follows the dtype; no module of its own does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.linear(hidden)
        return output


class WrongGlue(Glued):
    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden) * (1.2 if hidden.dtype == BF16 else 1)


def test_the_model_s_own_forward_is_examined_like_a_module() -> None:
    torch.manual_seed(0)
    reference = Glued().eval().to(BF16)
    candidate = copy.deepcopy(reference)
    candidate.__class__ = WrongGlue
    comparison = compare_models(reference, candidate, hidden(BF16))
    assert comparison.verdict.kind == "semantic", comparison
    assert comparison.verdict.reason.startswith("the model itself lies ")
    assert "WrongGlue" in comparison.explain().cause


HARMLESS: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "dtype": lambda: (llama(), llama(BF16)),
    "coarser reference": lambda: (llama(BF16), llama()),
    "float16": lambda: (llama(), llama(torch.float16)),
    "backend": lambda: (llama(BF16), llama(BF16, "sdpa")),
    "backend and dtype": lambda: (llama(), llama(torch.float16, "sdpa")),
    "same": lambda: (llama(BF16, "sdpa"), llama(BF16, "sdpa")),
}


@pytest.mark.parametrize("make", HARMLESS.values(), ids=HARMLESS)
def test_what_a_dtype_or_a_kernel_must_cost_is_within_the_floors(make: Any) -> None:
    comparison = compare_models(*make(), padded_left())
    assert comparison.verdict.kind in ("rounding", "identical"), comparison
    assert comparison.measured.beyond == ()
    assert all(not one.floors > 1.5 for one in comparison.own.values())


def test_a_running_mean_that_the_dtype_rounds_is_what_was_asked_for() -> None:
    """Far from zero its rounding is large, and is part of what was asked for: buffers that a file holds are covered."""
    torch.manual_seed(0)
    reference = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)).eval()
    norm = reference[1]
    with torch.no_grad():
        norm.running_mean += 30
        reference[0].bias += 30
    given = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    candidate = copy.deepcopy(reference).to(BF16)
    comparison = compare_models(reference, candidate, {"input": given}, {"input": given.to(BF16)})
    assert comparison.verdict.kind == "rounding", comparison


class CoarseProducts(TorchDispatchMode):
    """Products of factors rounded to bfloat16, as TF32 rounds them to 10 bits: nothing in the code shows it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in ("aten::mm", "aten::addmm", "aten::bmm"):

            def rounded(leaf: Any) -> Any:
                coarse = isinstance(leaf, Tensor) and leaf.dtype == torch.float32
                return leaf.to(BF16).float() if coarse else leaf

            args = tree_map(rounded, args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_a_floor_is_measured_under_the_side_s_own_flags(backend: str) -> None:
    reference, candidate = sides(llama(attention=backend), llama(attention=backend), padded_left())
    off = {name: Switch("off", f"{name}=off", contextlib.nullcontext) for name in ("one", "products")}
    on = {**off, "products": Switch("on", "products=on", CoarseProducts)}
    comparison = compare_sides(replace(reference, switches=off), replace(candidate, switches=on))
    assert comparison.verdict.kind == "rounding", comparison
    assert comparison.measured.native > 4 * comparison.measured.floor
    assert comparison.explain().cause.startswith("products: off -> on")


def test_coarse_products_do_not_hide_a_wrong_module() -> None:
    reference, candidate = sides(llama(), llama(), padded_left())
    norm = candidate.model.model.layers[1].input_layernorm
    norm.forward = lambda x: LlamaRMSNorm.forward(norm, x) * (1.1 if x.dtype == torch.float32 else 1.0)
    on = {"products": Switch("on", "products=on", CoarseProducts)}
    off = {"products": Switch("off", "products=off", contextlib.nullcontext)}
    comparison = compare_sides(replace(reference, switches=off), replace(candidate, switches=on))
    check(comparison, "model.layers.1.input_layernorm")


def mixtral(dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    config = MixtralConfig(**GEOMETRY, num_local_experts=8, num_experts_per_tok=2, attn_implementation="eager")
    return MixtralForCausalLM(config).eval().to(BF16).to(dtype)


def test_flipped_experts_do_not_excuse_a_wrong_norm() -> None:
    ids = {"input_ids": torch.randint(1, 128, (8, 32), generator=torch.Generator().manual_seed(0))}
    reference = mixtral(BF16)
    candidate = copy.deepcopy(reference)
    candidate.model.layers[0].input_layernorm.__class__ = type("WrongNorm", (type(candidate.model.norm),), {})
    cls = type(candidate.model.layers[0].input_layernorm)
    right = type(reference.model.norm).forward
    cls.forward = lambda self, x: right(self, x) * (1.3 if x.dtype == BF16 else 1.0)
    comparison = compare_models(reference, candidate, ids)
    assert comparison.measured.flips
    assert "WrongNorm" in check(comparison, "model.layers.0.input_layernorm")


def test_heads_in_another_order_are_no_fault_of_the_projections() -> None:
    """Their own errors are large, in float64 too: what they give is undone inside the block."""
    reference = llama()
    candidate = copy.deepcopy(reference)
    attention = candidate.model.layers[0].self_attn
    order = torch.arange(64).view(4, 16)[[1, 0, 3, 2]].flatten()
    with torch.no_grad():
        attention.q_proj.weight.copy_(attention.q_proj.weight[order])
        attention.o_proj.weight.copy_(attention.o_proj.weight[:, order])
    comparison = compare_models(reference, candidate, padded_left())
    assert comparison.verdict.kind in ("rounding", "identical"), comparison


def test_what_an_examination_was_given_is_gone_with_it_whatever_the_collector_does() -> None:
    """In a sweep the collector comes seldom, and of a large model there are dozens of examinations, one a part."""
    side, _ = sides(llama(), llama(), padded_left())
    captured = capture(side)
    tensors = [leaf for call in captured.kept.values() for leaf in call.output if leaf is not None]
    alive = [weakref.ref(tensor) for tensor in tensors]
    del tensors
    gc.disable()
    try:
        examination = Examination(captured.kept, side.calls, Noise(inputs=True), same_backend=True)
        del captured
        examination.run(side)
        assert examination.found
        del examination
        assert not any(tensor() is not None for tensor in alive)
    finally:
        gc.enable()


def test_an_id_that_another_tensor_had_is_no_copy_of_it() -> None:
    copies = _Copies()
    for number in range(50):
        tensor = torch.full((3,), float(number))
        assert torch.equal(copies.of(tensor), tensor)
        assert copies.of(tensor) is copies.of(tensor)
        assert copies.nbytes == 12 * (number + 1)
        del tensor


class Base(nn.Module):
    """Gives a fifth too much in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(64, 16), nn.Linear(16, 16)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.layer(self.table(ids))
        return hidden * 1.2 if hidden.dtype is torch.bfloat16 else hidden


class Headed(nn.Module):
    """Hides next to all of what its base model gives."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.head = Base(), nn.Linear(16, 64)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(1e-3 * self.base(ids))


def test_a_base_model_is_nudged_in_the_autocast_that_its_model_runs_in() -> None:
    """As accelerate has it: autocast lies in the forward, the model's hooks around it."""
    torch.manual_seed(0)
    reference = Headed().eval()
    candidate = copy.deepcopy(reference)
    forward = candidate.forward

    def under_autocast(*args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return forward(*args, **kwargs)

    candidate.forward = under_autocast  # type: ignore[method-assign]
    comparison = compare_models(reference, candidate, {"ids": torch.arange(32)[None]})
    assert comparison.verdict.kind == "semantic", comparison
    assert comparison.verdict.reason.startswith("base lies")


class Fast(nn.Module):
    """Has no kernel for bfloat16."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table = table

    def forward(self, ids: Tensor) -> Tensor:
        if self.table.weight.dtype is torch.bfloat16:
            raise NotImplementedError("no kernel for bfloat16")
        return self.table.weight[ids]


class Places(nn.Module):
    """Gives a tenth too much in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, 16)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.table(ids)
        return hidden * 1.1 if hidden.dtype is torch.bfloat16 else hidden


class FallsBack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(64, 16), Places()
        self.fast, self.layer, self.head = Fast(self.table), nn.Linear(16, 16), nn.Linear(16, 64)

    def forward(self, ids: Tensor) -> Tensor:
        try:
            hidden = self.fast(ids)
        except NotImplementedError:
            hidden = self.table(ids)
        hidden = hidden + self.places(ids)
        chosen = self.layer(hidden).topk(2).indices
        return self.head(hidden.scatter(-1, chosen, 0.0))


def test_what_comes_behind_a_module_that_one_side_falls_back_from_is_examined() -> None:
    torch.manual_seed(0)
    reference = FallsBack().eval()
    comparison = compare_models(reference, copy.deepcopy(reference).bfloat16(), {"ids": torch.arange(32)[None]})
    assert comparison.verdict.kind == "semantic", comparison
    assert comparison.verdict.reason.startswith("places lies")


class GoesOn(nn.Module):
    """Calls a module that raises, and another one in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(7, 7), nn.Embedding(64, 8), nn.Embedding(64, 8))

    def forward(self, ids: Tensor) -> Tensor:
        try:
            hidden = self.body[0](ids)
        except RuntimeError:
            hidden = self.body[1](ids)
        return hidden + self.body[2](ids)


def test_what_lies_around_a_module_that_raises_is_examined_all_the_same() -> None:
    torch.manual_seed(0)
    side, other = sides(GoesOn(), GoesOn(), {"ids": torch.arange(64)[None]})
    noise = Noise(state_eps=2.0**-8, inputs=True)
    found = Examination(capture(side).kept, side.calls, noise, same_backend=True, all_floors=True).run(other).found
    assert found.keys() == {"", "body.1", "body.2"}
    assert all(one.floor > 0 and one.own > 1 for one in found.values())
