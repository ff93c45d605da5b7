from __future__ import annotations

import contextlib
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from sweeper.comparator.comparer import BatchOutputs, Comparer, layer_and_kind
from sweeper.comparator.hooks import ModuleOutput, capture, steady_in_call
from sweeper.comparator.passes import DoesNotFit, KeptReference
from sweeper.config import Layout, Positions
from sweeper.inputs.layout import lay_out

TOKEN_IDS = [[5, 6, 7], [8, 9]]


def comparer() -> Comparer:
    return Comparer(TOKEN_IDS, is_logits=False)


def module_output(name: str, tensor_NF: Tensor) -> ModuleOutput:
    return ModuleOutput(name, "Linear", tensor_NF, tensor_NF)


def outputs(output_NF: Tensor) -> BatchOutputs:
    return BatchOutputs(output_NF, output_NF[-1:].double())


def test_the_worst_element_is_found_in_its_text_and_position() -> None:
    reference_NF = torch.zeros(5, 4)
    candidate_NF = reference_NF.clone()
    candidate_NF[4, 2] = 1.0  # the second token of the second text
    running = comparer()
    running.modules.give("layers.0", reference_NF)
    running.modules.take(module_output("layers.0", candidate_NF))
    embedding_SD = torch.ones(2, 4)
    running.end_batch((0, 1), BatchOutputs(reference_NF, embedding_SD), BatchOutputs(candidate_NF, embedding_SD))
    figures = running.finish()
    (module,) = figures.modules
    assert (module.worst_text, module.worst_position) == (1, 1)
    assert (module.measures.worst_token, module.measures.worst_feature) == (4, 2)
    assert [text.output_max_abs for text in figures.texts] == [0.0, 1.0]
    assert figures.output.max_abs == 1.0
    assert figures.output.equal_fraction == 19 / 20
    assert figures.first_divergence == "layers.0"


@pytest.mark.parametrize("worst_text", [0, 1])
def test_batches_in_another_order_are_reported_in_the_order_of_the_texts(worst_text: int) -> None:
    running = comparer()
    for text in (1, 0):
        reference_NF = torch.ones(len(TOKEN_IDS[text]), 4)
        candidate_NF = reference_NF.clone()
        candidate_NF[1, 3] += 0.5 if text == worst_text else 0.25
        running.modules.give("m", reference_NF)
        running.modules.take(module_output("m", candidate_NF))
        running.end_batch((text,), outputs(reference_NF), outputs(candidate_NF))
    figures = running.finish()
    token = {0: 1, 1: 4}[worst_text]
    (module,) = figures.modules
    assert (module.worst_text, module.worst_position) == (worst_text, 1)
    assert (module.measures.worst_token, figures.output.worst_token) == (token, token)
    assert [(text.text, text.tokens) for text in figures.texts] == [(0, 3), (1, 2)]
    assert figures.texts[worst_text].output_max_abs == 0.5
    assert figures.texts[1 - worst_text].output_max_abs == 0.25


def test_the_next_tokens_are_those_of_the_batch() -> None:
    logits = {text: torch.randn(len(ids), 10, dtype=torch.float64) for text, ids in enumerate(TOKEN_IDS)}
    running = Comparer(TOKEN_IDS, is_logits=True)
    for text in (1, 0):
        running.end_batch((text,), outputs(logits[text]), outputs(logits[text] * 2))
    language = running.finish().language
    assert language is not None
    changes = [
        (logits[text][position] * 2).log_softmax(0)[following] - logits[text][position].log_softmax(0)[following]
        for text, ids in enumerate(TOKEN_IDS)
        for position, following in enumerate(ids[1:])
    ]
    assert language.log_likelihood_change_mean == pytest.approx(float(sum(changes) / len(changes)), abs=1e-12)


def test_a_kept_reference_keeps_copies() -> None:
    kept = KeptReference(10_000, tokens=2)
    tensor_NF = torch.ones(2, 4)
    kept.take(module_output("m", tensor_NF))
    tensor_NF.zero_()
    kept.end_batch(outputs(tensor_NF), 2)
    ((name, kept_NF),) = kept.batches[0].modules
    assert (name, kept_NF.sum()) == ("m", 8)


def test_keeping_gives_up_when_it_holds_too_much_and_when_it_will() -> None:
    kept = KeptReference(100, tokens=2)
    kept.take(module_output("m", torch.ones(2, 12)))
    with pytest.raises(DoesNotFit):
        kept.take(module_output("n", torch.ones(2, 1)))
    for tokens, fits in ((2, True), (3, True), (4, False)):
        kept = KeptReference(160, tokens=tokens)
        kept.take(module_output("m", torch.ones(2, 4)))
        with contextlib.nullcontext() if fits else pytest.raises(DoesNotFit):
            kept.end_batch(outputs(torch.ones(2, 4)), 2)  # with the others 96 bytes: 48 a token


def test_what_will_not_fit_shows_within_the_first_batch() -> None:
    kept = KeptReference(160, tokens=8)
    kept.begin_batch(2)
    kept.take(module_output("m", torch.ones(2, 4)))  # 32 bytes of 2 tokens: 128 of all
    with pytest.raises(DoesNotFit):
        kept.take(module_output("n", torch.ones(2, 4)))


def test_a_row_a_text_is_of_all_of_its_tokens() -> None:
    kept = KeptReference(160, tokens=20)
    kept.end_batch(outputs(torch.ones(1, 4)), 10)  # a classifier's: 32 bytes of 10 tokens, of 20
    assert len(kept.batches) == 1


@pytest.mark.parametrize(("texts", "share"), [(2, None), (3, 1 / 3)])
def test_two_texts_have_no_neighbours_to_change(texts: int, share: float | None) -> None:
    """Each of two is the other's nearest, whatever became of them: a share of 0 would say nothing."""
    reference_SD = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])[:texts]
    candidate_SD = torch.tensor([[1.0, 0.0], [0.2, 0.8], [0.0, 1.0]])[:texts]
    comparer = Comparer([[1]] * texts, is_logits=False)
    comparer.begin_batch(range(texts))
    rows_NF = torch.ones(texts, 4)
    comparer.end_batch(range(texts), BatchOutputs(rows_NF, reference_SD), BatchOutputs(rows_NF, candidate_SD))
    assert comparer.finish().neighbours_changed == share


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [
        ("model.layers.3", 3, "layer"),
        ("model.layers.3.self_attn.q_proj", 3, "self_attn.q_proj"),
        ("model.layers.3[1]", 3, "layer[1]"),
        ("model.layers.3.mlp#1", 3, "mlp#1"),
        ("encoder.layer.11.attention.self", 11, "attention.self"),
        ("model.layers.0.mlp.experts.7.up", 0, "mlp.experts.7.up"),
        ("model.embed_tokens", None, "model.embed_tokens"),
        ("model.rotary_emb[1]", None, "model.rotary_emb[1]"),
    ],
)
def test_layers_and_kinds(name: str, layer: int | None, kind: str) -> None:
    assert layer_and_kind(name) == (layer, kind)


class Twice(nn.Module):
    """Calls one module twice and returns a tuple from another."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.linear = nn.Linear(4, 4)
        self.pair = Pair()
        self.pooler = nn.Linear(4, 4)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.linear(self.linear(self.embed(input_ids)))
        self.pooler(hidden[:, 0])
        return self.pair(hidden)[0]


class Pair(nn.Module):
    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return hidden + 1, hidden * 2


def test_capture_names_calls_and_tuples_and_says_what_cannot_be_aligned() -> None:
    torch.manual_seed(0)
    model = Twice()
    (forward,) = lay_out(
        TOKEN_IDS, [0, 1], layout=Layout.PADDED_LEFT, positions=Positions.IMPLICIT, pad_id=0, device="cpu"
    )
    taken: dict[str, Tensor] = {}
    with torch.no_grad(), capture(model, lambda o: taken.update({o.name: o.tensor_NF})) as running:
        running.begin(forward)
        model(forward.inputs["input_ids"])
    expected = model.embed(torch.tensor([5, 6, 7, 8, 9])).detach()
    assert list(taken) == ["embed", "linear", "linear#1", "pair", "pair[1]"]
    assert torch.equal(taken["embed"], expected)
    assert list(running.unaligned) == ["pooler"]
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_go_when_the_forward_raises() -> None:
    model = Twice()

    def run() -> None:
        with capture(model, lambda _: None):
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        run()
    assert not any(module._forward_hooks for module in model.modules())


class Overwriting(nn.Module):
    """Every way in which a later module can write to an earlier one's output, on a shared memory or not."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.untouched, self.added_to, self.clamped, self.unknown = (
            nn.Embedding(10, 4),
            *(nn.Linear(4, 4) for _ in range(4)),
        )

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.embed(input_ids)
        untouched = self.untouched(hidden)
        added_to = self.added_to(hidden)
        added_to += untouched
        clamped = self.clamped(hidden)
        clamped[..., :2].clamp_(-1e9, 1e9)  # writes, and changes nothing yet
        unknown = self.unknown(hidden)
        unknown.detach().numpy()[:] = 0  # torch does not know
        return added_to + clamped + unknown


@pytest.mark.parametrize("inference", [False, True])
def test_what_is_overwritten_is_found(inference: bool) -> None:
    (forward,) = lay_out([[1, 2]], [0], layout=Layout.SINGLE, positions=Positions.IMPLICIT, pad_id=0, device="cpu")
    model = Overwriting()
    with torch.inference_mode(inference):
        steady = steady_in_call(model, forward, lambda: model(forward.inputs["input_ids"]))
    assert steady == {"embed", "untouched"}


def test_only_what_is_overwritten_and_shares_memory_is_copied() -> None:
    tensor = torch.ones(2, 4)
    assert ModuleOutput("m", "Linear", tensor, tensor).lasting({"m"}) is tensor
    assert ModuleOutput("m", "Linear", tensor, torch.ones(1, 3, 4)).lasting(()) is tensor
    copied = ModuleOutput("m", "Linear", tensor.view(2, 4), tensor).lasting(())
    assert copied.data_ptr() != tensor.data_ptr()
    assert torch.equal(copied, tensor)


class GivesOn(nn.Module):
    """Gives its module's output on, as an attention gives that of its last projection."""

    def __init__(self, *, writes: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.writes = writes

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        output_BTD = self.inner(hidden_BTD)
        return output_BTD.add_(1) if self.writes else output_BTD


@pytest.mark.parametrize("writes", [False, True])
def test_rows_are_picked_out_once_where_nothing_writes_to_them(writes: bool) -> None:
    options = {"layout": Layout.PADDED_LEFT, "positions": Positions.IMPLICIT, "pad_id": 0, "device": "cpu"}
    (forward,) = lay_out([[1, 2, 3], [4]], [0, 1], **options)
    model, hidden_BTD = nn.Sequential(GivesOn(writes=writes)), torch.randn(2, 3, 4)
    seen: list[ModuleOutput] = []
    with torch.inference_mode():
        steady = steady_in_call(model, forward, lambda: model(hidden_BTD))
        with capture(model, seen.append, steady=steady) as running:
            running.begin(forward)
            given_BTD = model(hidden_BTD)
        expected_ND = given_BTD.flatten(0, 1)[forward.flat_N]
    (inner_ND, block_ND) = (output.tensor_NF for output in seen)
    assert torch.equal(block_ND, expected_ND)
    torch.testing.assert_close(inner_ND, expected_ND - 1 if writes else expected_ND)
    assert (inner_ND.data_ptr() == block_ND.data_ptr()) is not writes


def test_steady_outputs_are_found_of_a_model_made_in_inference_mode_and_without_gradients() -> None:
    (forward,) = lay_out([[1, 2]], [0], layout=Layout.SINGLE, positions=Positions.IMPLICIT, pad_id=0, device="cpu")
    grad_modes = []
    with torch.inference_mode():
        model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 4))
        model[1].register_forward_hook(lambda *_: grad_modes.append(torch.is_grad_enabled()))
        steady = steady_in_call(model, forward, lambda: model(forward.inputs["input_ids"]))
    assert steady == {"0", "1"}
    assert grad_modes == [False]


def test_a_model_without_outputs_of_tokens_has_no_steady_ones() -> None:
    (forward,) = lay_out([[1, 2]], [0], layout=Layout.SINGLE, positions=Positions.IMPLICIT, pad_id=0, device="cpu")
    model = nn.Sequential(nn.Flatten(0))  # what it gives has no token dimension
    assert steady_in_call(model, forward, lambda: model(torch.ones(2, 3))) == frozenset()


def test_a_comparer_goes_when_it_is_let_go() -> None:
    """In a circle, what it holds on the device would wait for Python's collector."""
    held = comparer()
    left = weakref.ref(held)
    gc.disable()
    try:
        del held
        assert left() is None
    finally:
        gc.enable()
