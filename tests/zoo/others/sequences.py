"""Pairs of LSTM and GRU taggers, a GPT, and nets with a state."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

from tests.zoo.models import set_class
from tests.zoo.others import sequential as nets
from tests.zoo.others.convolutional import built
from tests.zoo.others.sequential import frames, tokens
from tests.zoo.pairs import IDENTICAL, POLICY, SEMANTIC, STATE, Pair, PairModels, edited, harmful, harmless


def swap_gates(model: Any, first: int, second: int) -> None:
    """Swap two gates in every weight and bias of a recurrent net."""
    gates = 4 if isinstance(model.rnn, nn.LSTM) else 3
    order = list(range(gates))
    order[first], order[second] = order[second], order[first]
    for tensor in model.rnn.parameters():
        chunks = tensor.chunk(gates)
        tensor.copy_(torch.cat([chunks[gate] for gate in order]))


def filled(dtype: torch.dtype, fill: float) -> Any:
    """A GPT that fills the logits of four reserved tokens."""
    model = built(nets.Gpt, dtype)
    model.fill = fill
    return model


def loud(model: Any, factor: float) -> Any:
    """Make the queries and keys of the first block larger."""
    with torch.no_grad():
        model.blocks[0].attn.c_attn.weight[: 2 * nets.WIDTH].mul_(factor)
    return model


@harmless("attention_split/gpt_float32")
def attention_split_gpt() -> PairModels:
    """Three projections against one for query, key and value."""
    return edited(
        built(nets.Gpt),
        tokens(),
        lambda model: setattr(model.blocks[0], "attn", nets.SplitAttention(model.blocks[0].attn)),
    )


@harmless("attention_split/gpt_bfloat16")
def attention_split_half_gpt() -> PairModels:
    """Three projections in both blocks, in bfloat16."""

    def edit(model: Any) -> None:
        for block in model.blocks:
            block.attn = nets.SplitAttention(block.attn)

    return edited(built(nets.Gpt, torch.bfloat16), tokens(), edit)


@harmless("minus_infinity/gpt_float32", allowed=IDENTICAL)
def minus_infinity_gpt() -> PairModels:
    """A copy; four logits are -inf on both sides."""
    return edited(filled(torch.float32, -torch.inf), tokens(), lambda model: None)


@harmless("minus_infinity/gpt_bfloat16")
def minus_infinity_half_gpt() -> PairModels:
    """float32 against bfloat16; four logits are -inf on both sides."""
    return PairModels(
        reference=filled(torch.float32, -torch.inf), candidate=filled(torch.bfloat16, -torch.inf), inputs=tokens()
    )


@harmless("padded_classes/gpt_float16")
def padded_vocabulary_gpt() -> PairModels:
    """A vocabulary of 60 against one padded to 64, in float16."""
    reference, candidate = built(nets.Gpt, torch.float16), built(nets.Gpt, torch.float16, vocabulary=64)
    with torch.no_grad():
        for name, value in reference.named_parameters():
            candidate.get_parameter(name)[: len(value)] = value
    return PairModels(reference=reference, candidate=candidate, inputs=tokens())


@harmless("unused_part/gpt_bfloat16")
def unused_part_gpt() -> PairModels:
    """The candidate carries a head for multi-token prediction that its forward never calls."""

    def edit(model: Any) -> None:
        torch.manual_seed(1)
        model.next_head = nn.Linear(nets.WIDTH, nets.VOCABULARY, dtype=torch.bfloat16)

    return edited(built(nets.Gpt, torch.bfloat16), tokens(), edit)


@harmless("weight_norm_folded/lstm_float32")
def weight_norm_folded_lstm() -> PairModels:
    """A head parametrised by the norms of its rows against its plain weight."""
    reference = built(nets.Tagger)
    weight_norm(reference.head)
    candidate = built(nets.Tagger)
    weight_norm(candidate.head)
    remove_parametrizations(candidate.head, "weight")
    return PairModels(reference=reference, candidate=candidate, inputs=tokens())


@harmless("copied/lstm_float32", allowed=IDENTICAL)
def copied_lstm() -> PairModels:
    """A copy of a packed recurrent net, whose outputs of pads are zero."""
    return edited(built(nets.Tagger), tokens(lengths=True), lambda model: None)


@harmful("weight_norm_dim/tagger_float32", allowed=STATE, cause=("head", "original"))
def weight_norm_dim_tagger() -> PairModels:
    """The norms of a head's rows were loaded in reverse."""
    reference, candidate = built(nets.Tagger), built(nets.Tagger)
    for model in (reference, candidate):
        weight_norm(model.head)
    with torch.no_grad():
        norms = candidate.head.parametrizations.weight.original0
        norms.copy_(norms.flip(0))
    return PairModels(reference=reference, candidate=candidate, inputs=tokens())


@harmful("gates/lstm_float32", allowed=STATE, cause=("rnn",))
def gates_lstm() -> PairModels:
    """The gates in ONNX's order (i o f c) where torch has i f c o: output and cell gate, say, are exchanged."""
    return edited(built(nets.Tagger), tokens(), lambda model: swap_gates(model, 1, 3))


@harmful("gates/gru_bfloat16", allowed=STATE, cause=("rnn",))
def gates_gru() -> PairModels:
    """The gates z r n of Keras where torch has r z n."""
    return edited(built(nets.Tagger, torch.bfloat16, cell=nn.GRU), tokens(), lambda model: swap_gates(model, 0, 1))


@harmful("direction/lstm_float32", allowed=STATE, cause=("rnn",))
def direction_lstm() -> PairModels:
    """The weights of both directions were loaded into each other's place."""

    def edit(model: Any) -> None:
        for name, tensor in model.rnn.named_parameters():
            if not name.endswith("_reverse"):
                reverse = model.rnn.get_parameter(f"{name}_reverse")
                kept = tensor.clone()
                tensor.copy_(reverse)
                reverse.copy_(kept)

    return edited(built(nets.Tagger), tokens(), edit)


@harmful("direction/gru_float32", allowed=SEMANTIC, cause=("rnn", "pack", "length", "tagger"))
def direction_gru() -> PairModels:
    """Padded rows are not packed: the backward direction reads the pads first."""
    return edited(
        built(nets.Tagger, cell=nn.GRU),
        tokens(lengths=True),
        lambda model: set_class(model, nets.UnpackedTagger),
    )


@harmful(
    "state_carried/lstm_float32",
    allowed=STATE,
    cause=("carryingtagger", "rnn", "hidden state", "`state`", "between calls", "repeat"),
)
def state_carried_lstm() -> PairModels:
    """The candidate starts from the hidden state of a call before, and was called once."""
    reference = built(nets.Tagger, bidirectional=False)

    def edit(model: Any) -> None:
        set_class(model, nets.CarryingTagger)
        model(tokens()["tokens"].flip(1))

    return edited(reference, tokens(), edit)


@harmful("state_carried/stream_float32", allowed=STATE, cause=("carry",))
def state_carried_stream() -> PairModels:
    """The buffer of a streaming net holds another recording's state: it was not reset."""
    return edited(built(nets.Stream), frames(), lambda model: model(frames()["frames"].flip(1) + 1))


@harmful("weight_edited/stream_float32", allowed=STATE, cause=("decode",))
def weight_edited_stream() -> PairModels:
    """A net whose forward assigns a buffer anew, so that no two calls agree; one weight differs by 0.01."""
    return edited(built(nets.Stream), frames(), lambda model: model.decode.weight[0, 0].add_(0.01))


@harmful("weight_edited/stream_bfloat16", allowed=STATE, cause=("encode",))
def weight_edited_half_stream() -> PairModels:
    """The same in bfloat16; one row of the first weight is another's."""
    return edited(
        built(nets.Stream, torch.bfloat16),
        frames(torch.bfloat16),
        lambda model: model.encode.weight[4].copy_(model.encode.weight[5]),
    )


@harmful("weight_edited/gru_float32", allowed=STATE, cause=("bias_hh", "rnn"))
def weight_edited_gru() -> PairModels:
    """The second bias of one direction is zero: a port from a GRU that has one bias."""
    return edited(built(nets.Tagger, cell=nn.GRU), tokens(), lambda model: model.rnn.bias_hh_l0_reverse.zero_())


@harmful("behind_a_mask/gpt_float32", allowed=STATE, cause=("lm_head",))
def behind_a_mask_gpt() -> PairModels:
    """Four logits are -1e30 on both sides, and one weight of the head differs by 0.1: nothing in a norm over all."""
    return edited(filled(torch.float32, -1e30), tokens(), lambda model: model.lm_head.weight[9, 2].add_(0.1))


@harmful("behind_a_mask/gpt_bfloat16", allowed=STATE, cause=("c_fc",))
def behind_a_mask_half_gpt() -> PairModels:
    """The same in bfloat16, one weight of a block."""
    return edited(filled(torch.bfloat16, -1e30), tokens(), lambda model: model.blocks[1].c_fc.weight[3, 2].add_(0.1))


@harmful("decoder_positions/gpt_float16", allowed=SEMANTIC, cause=("position",))
def positions_from_one_gpt() -> PairModels:
    """Sinusoidal positions that start at one, in float16 against float32."""
    candidate = built(nets.Gpt, torch.float16)
    set_class(candidate.positions, nets.SinusoidsFromOne)
    return PairModels(reference=built(nets.Gpt), candidate=candidate, inputs=tokens())


@harmful("narrow/gpt_bfloat16", allowed=STATE, cause=("position",))
def narrow_angles_gpt() -> PairModels:
    """Positions counted in bfloat16, so that neighbours beyond 256 collide (transformers#29285)."""
    return edited(
        built(nets.Gpt, torch.bfloat16),
        tokens(330),
        lambda model: set_class(model.positions, nets.NarrowSinusoids),
    )


@harmful("narrow/norm_bfloat16", allowed=STATE, cause=("ln_f", "norm"))
def narrow_variance_gpt() -> PairModels:
    """The variance is the difference of two squares in bfloat16, of hidden states whose mean is 8."""
    reference = built(nets.Gpt, torch.bfloat16)
    with torch.no_grad():
        reference.wte.weight.add_(8)
    return edited(reference, tokens(), lambda model: set_class(model.ln_f, nets.NarrowLayerNorm))


@harmful("overflow/norm_float16", allowed=STATE, cause=("ln_f", "norm"))
def overflow_norm_gpt() -> PairModels:
    """A norm squares in float16 what is beyond 256 there: infinity, and zeros behind it."""
    reference = built(nets.Gpt, torch.float16)
    reference.ln_f = nets.RmsNorm().half()
    with torch.no_grad():
        reference.wte.weight.mul_(200)
    return edited(reference, tokens(), lambda model: set_class(model.ln_f, nets.NarrowRmsNorm))


@harmful("overflow/activation_float16", allowed=STATE, cause=("activation", "relu"))
def overflow_activation_gpt() -> PairModels:
    """relu(x)**2 / 1024 squares in float16 what is beyond 256: infinity, and NaN behind it (squared relu models)."""
    reference = built(nets.Gpt, torch.float16)
    reference.blocks[1].activation = nets.SquaredRelu()
    with torch.no_grad():
        reference.blocks[1].c_fc.weight.mul_(300)
    return edited(reference, tokens(), lambda model: set_class(model.blocks[1].activation, nets.NarrowSquaredRelu))


@harmful("overflow/gpt_float16", allowed=STATE, cause=("attn", "scal", "score"))
def overflow_gpt() -> PairModels:
    """Scores scaled after the product instead of before it: in float16 they overflow, and logits are NaN."""
    reference = loud(built(nets.Gpt, torch.float16), 180)
    return edited(reference, tokens(), lambda model: set_class(model.blocks[0].attn, nets.LateScale))


@harmful("overflow/rms_float16", allowed=STATE, cause=("ln_f", "norm", "float16", "overflow"))
def overflow_across_dtypes_gpt() -> PairModels:
    """bfloat16 and float16 of a model that only float16 is too narrow for: its norm squares what is beyond 256."""
    reference, candidate = built(nets.Gpt, torch.bfloat16), built(nets.Gpt, torch.float16)
    for model, dtype in ((reference, torch.bfloat16), (candidate, torch.float16)):
        model.ln_f = nets.NarrowRmsNorm().to(dtype)
        with torch.no_grad():
            model.wte.weight.mul_(200)
    return PairModels(reference=reference, candidate=candidate, inputs=tokens())


@harmful("attention_scale/gpt_bfloat16", allowed=SEMANTIC, cause=("scal", "attn"))
def attention_scale_gpt() -> PairModels:
    """1 / sqrt(n_embd) for 1 / sqrt(head size) in one block."""
    reference = loud(built(nets.Gpt, torch.bfloat16), 4)
    return edited(reference, tokens(), lambda model: setattr(model.blocks[0].attn, "scale", nets.WIDTH**-0.5))


@harmful("randomness/gpt_bfloat16", allowed=STATE, cause=("dropout", "random", "droppingblock", "blocks.0"))
def randomness_gpt() -> PairModels:
    """functional.dropout without `training=`: drops in evaluation mode too."""
    return edited(
        built(nets.Gpt, torch.bfloat16), tokens(), lambda model: set_class(model.blocks[0], nets.DroppingBlock)
    )


@harmful("rounded_buffer/gpt_float32", allowed=POLICY, cause=("table",))
def rounded_sinusoids_gpt() -> PairModels:
    """The table of sinusoids of a float32 model went to float16, nothing else."""
    reference = built(nets.Gpt)
    reference.positions = nets.TabledSinusoids()
    return edited(reference, tokens(), lambda model: model.positions.half())


@harmful("not_a_number/gpt_bfloat16", allowed=SEMANTIC, cause=("attn", "attention", "mask"))
def not_a_number_gpt() -> PairModels:
    """Tokens do not see themselves in one block: the first row has nothing to attend to, and its softmax is NaN."""
    return edited(
        built(nets.Gpt, torch.bfloat16),
        tokens(),
        lambda model: set_class(model.blocks[1].attn, nets.StrictAttention),
    )


@harmless("lora/gpt_float32")
def lora_merged_gpt() -> PairModels:
    """Hand-written adapters on every c_fc against the same merged into the weights."""
    torch.manual_seed(5)
    reference = built(nets.Gpt)
    nets.replace_linears(reference, nets.LoraLinear, name="c_fc")
    candidate = deepcopy(reference)
    for block in candidate.blocks:
        block.c_fc = block.c_fc.merged()
    return PairModels(reference=reference, candidate=candidate, inputs=tokens())


@harmless("lora/gpt_bfloat16")
def lora_merged_half_gpt() -> PairModels:
    """The same in bfloat16 on both sides: merged in float32, and stored in bfloat16."""
    torch.manual_seed(5)
    reference = built(nets.Gpt)
    nets.replace_linears(reference, nets.LoraLinear, name="c_fc")
    reference.bfloat16()
    candidate = deepcopy(reference)
    for block in candidate.blocks:
        block.c_fc = block.c_fc.merged()
    return PairModels(reference=reference, candidate=candidate, inputs=tokens())


@harmful("lora_wrong/gpt_bfloat16", allowed=STATE, cause=("c_fc",))
def lora_scale_gpt() -> PairModels:
    """Hand-written adapters, one of them merged with alpha for alpha / rank."""
    torch.manual_seed(5)
    reference = built(nets.Gpt)
    nets.replace_linears(reference, nets.LoraLinear, name="c_fc")
    candidate = deepcopy(reference)
    candidate.blocks[0].c_fc = candidate.blocks[0].c_fc.merged()
    candidate.blocks[1].c_fc = candidate.blocks[1].c_fc.merged(scale=8.0)
    return PairModels(reference=reference.bfloat16(), candidate=candidate.bfloat16(), inputs=tokens())


PAIRS = [value for value in globals().values() if isinstance(value, Pair)]
