from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sweeper.capture import ModuleOutput, capture
from sweeper.compare import Comparer, Recorder, layer_and_kind
from sweeper.config import Layout, Positions
from sweeper.errors import AlignmentError
from sweeper.layout import lay_out

TOKEN_IDS = [[5, 6, 7], [8, 9]]


def recorded(modules: dict[str, Tensor], output_NF: Tensor) -> Recorder:
    recorder = Recorder()
    feed(recorder, modules, output_NF)
    return recorder


def feed(listener: Recorder | Comparer, modules: dict[str, Tensor], output_NF: Tensor) -> None:
    listener.begin_batch()
    for name, tensor_NF in modules.items():
        listener.take(ModuleOutput(name, "Linear", tensor_NF))
    listener.end_batch(output_NF, torch.stack([output_NF[2], output_NF[4]]).double())


def comparer(reference: Recorder) -> Comparer:
    return Comparer(reference, TOKEN_IDS, is_logits=False)


def test_the_worst_element_is_found_in_its_text_and_position() -> None:
    reference_NF = torch.zeros(5, 4)
    candidate_NF = reference_NF.clone()
    candidate_NF[4, 2] = 1.0  # the second token of the second text
    running = comparer(recorded({"layers.0": reference_NF}, reference_NF))
    feed(running, {"layers.0": candidate_NF}, candidate_NF)
    figures = running.finish()
    (module,) = figures.modules
    assert (module.worst_text, module.worst_position) == (1, 1)
    assert (module.measures.worst_token, module.measures.worst_feature) == (4, 2)
    assert [text.output_max_abs for text in figures.texts] == [0.0, 1.0]
    assert figures.output.max_abs == 1.0
    assert figures.output.equal_fraction == 19 / 20
    assert figures.first_divergence == "layers.0"


def test_pieces_of_single_texts_meet_the_rows_of_a_whole_batch() -> None:
    output_NF = torch.randn(5, 4)
    running = comparer(recorded({"m": output_NF}, output_NF))
    running.begin_batch()
    for piece in output_NF.split([3, 2]):
        running.take(ModuleOutput("m", "Linear", piece))
    running.end_batch(output_NF, output_NF[[2, 4]].double())
    figures = running.finish()
    assert figures.modules[0].measures.numel == 20
    assert figures.first_divergence is None


def test_a_module_that_only_one_side_has_names_both_sets() -> None:
    output_NF = torch.randn(5, 4)
    running = comparer(recorded({"common": output_NF, "q_norm": output_NF}, output_NF))
    feed(running, {"common": output_NF, "adapter": output_NF}, output_NF)
    with pytest.raises(AlignmentError, match="only in the reference: q_norm; only in the candidate: adapter"):
        running.finish()


def test_modules_of_two_shapes_name_both_shapes() -> None:
    output_NF = torch.randn(5, 4)
    running = comparer(recorded({"m": torch.randn(5, 8)}, output_NF))
    with pytest.raises(AlignmentError, match=r"m: \(5, 8\) .* in the reference, \(5, 4\) in the candidate"):
        feed(running, {"m": output_NF}, output_NF)


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
