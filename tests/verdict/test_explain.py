from __future__ import annotations

import contextlib
import copy
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralForCausalLM

from sweeper.comparator.side import sides
from sweeper.models.axis import Switch
from sweeper.verdict.comparison import compare_models, compare_sides
from tests.small_models import GEOMETRY, attention, folder, hidden, llama, packed, padded_left


def _epsilon(model: Any) -> None:
    for layer in model.model.layers:
        layer.input_layernorm.variance_epsilon = 1e-4


def _activation(model: Any) -> None:
    for layer in model.model.layers:
        layer.mlp.act_fn = nn.GELU()


def _hook(model: Any) -> None:
    model.model.layers[0].mlp.register_forward_hook(lambda _module, _inputs, output: output * 1.001)


def _patched(model: Any) -> None:
    mlp, forward = model.model.layers[1].mlp, model.model.layers[1].mlp.forward
    mlp.forward = lambda x: forward(x) * 1.01


def _weight(model: Any) -> None:
    model.model.layers[1].self_attn.q_proj.weight[3, 5] += 1e-3


def _transposed(model: Any) -> None:
    weight = model.model.layers[0].self_attn.q_proj.weight
    weight.copy_(weight.T.clone())


def _layer(model: Any) -> None:
    model.model.layers.pop(1)


def _config(model: Any) -> None:
    model.config.hidden_act = "gelu"  # read at the start only: no effect, and never called the cause
    _epsilon(model)


@pytest.mark.parametrize(
    ("edit", "cause", "since"),
    [
        (_epsilon, "LlamaRMSNorm.variance_epsilon: 1e-06 -> 0.0001 (2 modules)", "model.layers.0.input_layernorm"),
        (_activation, "class of act_fn: SiLUActivation -> GELU (2 modules)", "model.layers.0.mlp.act_fn"),
        (_hook, "forward hooks on LlamaMLP", "model.layers.0.mlp"),
        (_patched, "LlamaMLP.forward: the class's own", "model.layers.1.mlp"),
        (_weight, "parameter model.layers.1.self_attn.q_proj.weight: 1 of 4096", "model.layers.1.self_attn.q_proj"),
        (_transposed, "self_attn.q_proj.weight: transposed", "model.layers.0.self_attn.q_proj"),
        (_layer, "layer model.layers.1: only the reference has it", "model.norm"),
        (_config, "LlamaRMSNorm.variance_epsilon", "model.layers.0.input_layernorm"),
    ],
)
def test_one_edit_is_named_with_the_place_where_it_starts(edit: Callable[[Any], None], cause: str, since: str) -> None:
    reference = llama()
    candidate = copy.deepcopy(reference)
    with torch.no_grad():
        edit(candidate)
    comparison = compare_models(reference, candidate, padded_left())
    assert comparison.verdict.kind == "semantic"
    explanation = comparison.explain()
    assert cause in explanation.cause
    assert explanation.closing is not None
    assert explanation.closing.bitwise
    assert explanation.since is not None
    assert explanation.since.module == since


def test_two_causes_are_found_as_a_pair() -> None:
    candidate = llama().to(torch.bfloat16)
    with torch.no_grad():
        _epsilon(candidate)
    explanation = compare_models(llama(), candidate, padded_left()).explain()
    assert "variance_epsilon" in explanation.cause
    assert "inv_freq" in explanation.cause
    assert explanation.closing is not None
    assert explanation.closing.collapsed


def test_a_mask_over_a_packed_row_is_named_with_the_cache() -> None:
    model = llama()
    inputs = {**packed(), "attention_mask": torch.ones(1, 16, dtype=torch.int64)}
    explanation = compare_models(model, model, padded_left(), inputs).explain()
    assert "attention_mask" in explanation.cause
    assert "use_cache" in explanation.cause


class Scaled(nn.Module):
    """A layer that scales a text by the largest value of all that share its forward."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(8, 8)
        self.scale = _OfTheBatch()

    def forward(self, hidden: Tensor) -> Tensor:
        return self.scale(self.up(hidden))  # type: ignore[no-any-return]


class _OfTheBatch(nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        return hidden / hidden.abs().max()


class _Alone(nn.Module):
    """Calls a model with each row alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.cat([self.model(row) for row in hidden.split(1)])


def test_a_layer_that_depends_on_the_batch_is_named() -> None:
    hidden = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))
    comparison = compare_models(_Alone(Scaled()), Scaled(), {"hidden": hidden})
    assert comparison.verdict.kind == "semantic"
    cause = comparison.explain().cause
    assert "the rows of one forward ([3, 5]) change one another; introduced at scale" in cause


def test_a_rope_base_is_named_by_its_table_and_its_config() -> None:
    reference = llama()
    theta = {"rope_theta": 5e5, "rope_type": "default"}
    candidate = llama(rope_parameters=theta)
    comparison = compare_models(reference, candidate, padded_left())
    assert comparison.verdict.kind == "semantic"
    assert "exact at position 0" in repr(comparison)
    cause = comparison.explain().cause
    assert cause.startswith("buffer model.rotary_emb.inv_freq")
    assert "rope_parameters" in cause


def test_a_rounded_table_is_exact_at_position_0_and_grows() -> None:
    comparison = compare_models(llama(torch.bfloat16), llama().to(torch.bfloat16), padded_left())
    assert comparison.measured.replay is not None
    first, *later = comparison.measured.replay.positions
    assert first == 0
    assert later[0] < later[-1]
    assert "replay rel_l2 by position = 0, " in repr(comparison)


def test_a_leak_shows_text_by_text() -> None:
    model = llama()
    shown = repr(compare_models(model, model, padded_left(), packed()))
    assert "replay rel_l2 by text" in shown
    assert "the first is untouched, later ones are not: a leak between texts" in shown


def test_what_differs_on_pads_only_is_harmless() -> None:
    """flash_attention_2 zeroes pad rows where eager leaves them: no real token reads them."""
    reference, inputs = llama(), padded_left()
    candidate = copy.deepcopy(reference)
    mask_BT1 = inputs["attention_mask"][..., None]

    def zero_pads(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output * mask_BT1

    for module in (*(layer.self_attn.o_proj for layer in candidate.model.layers), candidate.lm_head):
        module.register_forward_hook(zero_pads)
    pads = [model(**inputs).logits[0, 0] for model in (reference, candidate)]
    assert not torch.equal(*pads)
    assert compare_models(reference, candidate, inputs).verdict.kind == "identical"


def test_dropout_left_on() -> None:
    reference = llama()
    candidate = copy.deepcopy(reference).train()
    for layer in candidate.model.layers:
        layer.self_attn.attention_dropout = 0.5
    comparison = compare_models(reference, candidate, padded_left())
    assert comparison.verdict.kind == "semantic"
    assert comparison.measured.random
    assert "candidate.eval()" in comparison.explain().cause


def test_the_attention_backend_is_the_cause_of_its_own_rounding() -> None:
    comparison = compare_models(llama(torch.bfloat16), llama(torch.bfloat16, "sdpa"), padded_left())
    assert comparison.verdict.kind == "rounding"
    assert comparison.explain().cause.startswith("attention backend: eager -> sdpa")


def _split_output(model: Any) -> None:
    weight = model.o.weight
    model.o.forward = lambda x: x[..., :8] @ weight.T[:8] + x[..., 8:] @ weight.T[8:]


class Rewritten(nn.Module):
    """`Attention` in one expression, over parameters of other names."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.weights = nn.ParameterList([model.q.weight, model.k.weight, model.v.weight, model.o.weight])
        self.scale = model.scale

    def forward(self, hidden: Tensor) -> Tensor:
        query, key, value = (hidden @ weight.T for weight in self.weights[:3])
        future = torch.full((hidden.shape[1],) * 2, -torch.inf).triu(1)
        output = self.weights[3]
        attended = (query @ (key.mT * self.scale) + future).softmax(-1) @ value
        return hidden + (attended[..., :8] @ output.T[:8] + attended[..., 8:] @ output.T[8:])


def test_code_is_named_where_it_only_rounds_otherwise() -> None:
    reference, candidate = attention(), attention()
    _split_output(candidate)
    comparison = compare_models(reference, candidate, hidden())
    assert comparison.verdict.kind == "rounding"
    closing = comparison.explain().closing
    assert closing is not None
    assert (closing.bitwise, closing.group) == (True, "code")
    assert closing.name.startswith("Linear.forward: the class's own -> ")


def test_rounding_that_nothing_closes_says_so_with_its_size_in_floors() -> None:
    comparison = compare_models(attention(), Rewritten(attention()), hidden())
    assert comparison.verdict.kind == "rounding"
    explanation = comparison.explain()
    assert explanation.closing is None
    assert "No single change closes it bitwise" in explanation.cause
    assert "x the noise floor" in explanation.cause


def test_two_harmless_changes_are_put_back_as_a_pair() -> None:
    explanation = compare_models(llama(), llama(torch.bfloat16, "sdpa"), padded_left()).explain()
    assert explanation.closing is not None
    assert explanation.closing.bitwise
    names = {"dtype: float32 -> bfloat16", "attention backend: eager -> sdpa"}
    assert set(explanation.closing.name.split("; and ")) == names


@contextlib.contextmanager
def _bfloat16_products() -> Iterator[None]:
    """What TF32 is on a GPU: float32 products of rounded factors."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_the_flag_that_rounds_products_is_named_among_flags_that_do_nothing(backend: str) -> None:
    factor = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    exact = factor @ factor
    with _bfloat16_products():
        if torch.equal(factor @ factor, exact):
            pytest.skip("this CPU multiplies float32 in float32 alone")
    reference, candidate = sides(llama(attention=backend), llama(attention=backend), padded_left())
    off = {name: Switch("off", f"{name}=off", contextlib.nullcontext) for name in ("one", "products", "other")}
    on = {name: Switch("on", f"{name}=on", contextlib.nullcontext) for name in off}
    on["products"] = Switch("on", "products=on", _bfloat16_products)
    comparison = compare_sides(replace(reference, switches=off), replace(candidate, switches=on))
    assert comparison.verdict.kind == "rounding", comparison
    explanation = comparison.explain()
    assert explanation.closing is not None
    assert (explanation.closing.name, explanation.closing.fix) == ("products: off -> on", "products=off")
    assert explanation.closing.bitwise


def test_one_tensor_in_another_dtype_is_named() -> None:
    reference = llama(torch.bfloat16, tie_word_embeddings=False)
    candidate = copy.deepcopy(reference)
    candidate.lm_head.float().register_forward_pre_hook(lambda _module, args: (args[0].float(),))
    comparison = compare_models(reference, candidate, padded_left())
    assert comparison.verdict.kind == "rounding"
    assert any(tried.name == "dtype of lm_head.weight: bfloat16 -> float32" for tried in comparison.explain().tried)


class Wrapped(nn.Module):
    """A model as DataParallel and torch.compile hold it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = model

    def forward(self, **inputs: Any) -> Any:
        return self.module(**inputs)


@pytest.mark.parametrize("wrapped", ["candidate", "reference"])
def test_a_rounded_table_in_a_model_that_one_side_wraps_is_policy(wrapped: str) -> None:
    reference, candidate = llama(torch.bfloat16), llama().to(torch.bfloat16)
    if wrapped == "candidate":
        comparison = compare_models(reference, Wrapped(candidate), padded_left())
    else:
        comparison = compare_models(Wrapped(reference), candidate, padded_left())
    assert comparison.verdict.kind == "policy"
    prefix = "module." if wrapped == "candidate" else ""
    explanation = comparison.explain()
    assert explanation.cause.startswith(f"buffer {prefix}model.rotary_emb.inv_freq: float32 -> bfloat16")
    assert explanation.closing is not None
    assert explanation.closing.bitwise


def test_a_pooled_output_is_placed_by_its_text() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.pooling = llama().model, nn.Identity()

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            hidden_BTD = self.model(input_ids, attention_mask=attention_mask).last_hidden_state
            pooled: Tensor = self.pooling(hidden_BTD[:, -1])
            return pooled

    class OfTheSecond(nn.Identity):
        def forward(self, input: Tensor) -> Tensor:
            return torch.cat([input[:1], input[1:] * 2])

    reference, candidate = Pooled().eval(), Pooled().eval()
    candidate.pooling = OfTheSecond()
    first = compare_models(reference, candidate, padded_left()).first_divergence
    assert first is not None
    assert (first.module, first.text, first.position) == ("pooling", 1, None)
    assert str(first).startswith("introduced at pooling, most at text 1: rel_l2 ")


def test_the_code_in_the_docs_runs(tmp_path: Path) -> None:
    docs = Path(__file__).parents[2] / "docs" / "verdict.md"
    notebook, suite, compilers = re.findall(r"```python\n(.*?)```", docs.read_text(encoding="utf-8"), re.DOTALL)
    padded, row = padded_left(), packed()
    names = {
        "folder": folder(),
        "ids": padded["input_ids"],
        "mask": padded["attention_mask"],
        "row": row["input_ids"],
        "restarting": row["position_ids"],
        "model": llama(),
    }
    exec(notebook, names)
    assert "inv_freq: float32 -> bfloat16" in names["comparison"].explain().cause
    exec(suite, names)
    names["test_packing_changes_nothing"]()
    assert '"cuda"' in compilers
    assert '"inductor", ' in compilers  # which takes a C++ compiler, and its time
    script = tmp_path / "compilers.py"  # of a file, as torch.compile wants it
    script.write_text(compilers.replace('"cuda"', '"cpu"').replace('"inductor", ', ""), encoding="utf-8")
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, script], env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, check=True
    )
    kinds = [re.findall("identical|rounding|semantic", line)[0] for line in done.stdout.splitlines()]
    assert kinds == ["identical", "semantic"] * 2


def test_flipped_experts_of_a_real_mixture_are_named_with_their_router() -> None:
    torch.manual_seed(0)
    config = MixtralConfig(**GEOMETRY, num_local_experts=8, num_experts_per_tok=2, attn_implementation="eager")
    reference = MixtralForCausalLM(config).eval()
    candidate = copy.deepcopy(reference).to(torch.bfloat16)
    for name, table in reference.model.rotary_emb.named_buffers():
        setattr(candidate.model.rotary_emb, name, table.clone())
    ids = torch.randint(1, 128, (8, 32), generator=torch.Generator().manual_seed(0))
    comparison = compare_models(reference, candidate, {"input_ids": ids})
    assert comparison.verdict.kind == "rounding", comparison
    assert re.search(r"rounding flips what .*% of the tokens choose in model\.layers\.\d\.mlp\.gate", str(comparison))


def test_flipped_experts_are_named() -> None:
    class Router(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(16, 4, bias=False)
            self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            chosen = self.gate(hidden).topk(1).indices
            outputs = torch.stack([expert(hidden) for expert in self.experts], dim=-2)
            return outputs.take_along_dim(chosen[..., None], dim=-2).squeeze(-2)

    torch.manual_seed(0)
    reference = Router().eval()
    with torch.no_grad():
        reference.gate.weight[1] = reference.gate.weight[0] + 1e-9  # two experts in a tie
    candidate = copy.deepcopy(reference).to(torch.bfloat16)
    inputs = {"hidden": torch.randn(8, 16, 16, generator=torch.Generator().manual_seed(2))}
    cast = {name: value.to(torch.bfloat16) for name, value in inputs.items()}
    exact = {name: value.float() for name, value in cast.items()}
    comparison = compare_models(reference, candidate, exact, cast)
    assert comparison.verdict.kind == "rounding", comparison
    assert comparison.measured.flips is not None
    assert comparison.measured.flips > 0
    assert "flips" in comparison.verdict.reason
