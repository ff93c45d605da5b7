"""The values of the axes that are a word."""

from __future__ import annotations

from enum import StrEnum


class Dtype(StrEnum):
    """The dtype that a cell computes in (under `autocast`: the dtype that autocast casts to)."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT64 = "float64"


class LoadStrategy(StrEnum):
    """How the weights get from the file to the device and to the dtype."""

    DTYPE_AT_LOAD = "dtype_at_load"  # from_pretrained(dtype=dtype), then to the device
    CAST_AFTER_LOAD = "cast_after_load"  # load float32, to the device, .to(dtype)
    CAST_BEFORE_MOVE = "cast_before_move"  # load float32, .to(dtype), to the device
    AUTO_THEN_CAST = "auto_then_cast"  # from_pretrained(dtype="auto"), to the device, .to(dtype)
    DEVICE_MAP = "device_map"  # from_pretrained(dtype=dtype, device_map=device)
    AUTOCAST = "autocast"  # float32 weights, forward under torch.autocast(dtype=dtype)


class Attention(StrEnum):
    """The attention backend; `sdpa_*` pins one kernel of scaled_dot_product_attention."""

    EAGER = "eager"
    SDPA = "sdpa"
    SDPA_MATH = "sdpa_math"
    SDPA_FLASH = "sdpa_flash"
    SDPA_EFFICIENT = "sdpa_efficient"
    SDPA_CUDNN = "sdpa_cudnn"
    FLASH_ATTENTION_2 = "flash_attention_2"
    FLASH_ATTENTION_3 = "flash_attention_3"
    FLEX_ATTENTION = "flex_attention"


class Layout(StrEnum):
    """How several texts share a forward."""

    PADDED = "padded"  # on the side that the checkpoint's tokenizer says; else a decoder left, an encoder right
    PADDED_LEFT = "padded_left"
    PADDED_RIGHT = "padded_right"
    PACKED = "packed"  # all texts in one row, no attention mask
    SINGLE = "single"  # each text alone, a forward each


class Batch(StrEnum):
    """How many texts share a forward; `sorted`: all texts by length first, so that few pads are needed."""

    INPUTS = "inputs"  # as many as inputs.batch_size says
    ALONE = "alone"
    OF_2 = "of_2"
    OF_8 = "of_8"
    OF_32 = "of_32"
    OF_2_SORTED = "of_2_sorted"
    OF_8_SORTED = "of_8_sorted"
    OF_32_SORTED = "of_32_sorted"


class Compile(StrEnum):
    """Whether the model's forward is given to `torch.compile`, and with what; each shape is compiled for itself."""

    OFF = "off"
    AOT_EAGER = "aot_eager"  # traced, and decomposed; each operation runs as in eager mode
    INDUCTOR = "inductor"  # torch.compile's own default
    INDUCTOR_PRECISE_CASTS = "inductor_precise_casts"  # with emulate_precision_casts: fused code rounds as eager does
    MAX_AUTOTUNE = "max_autotune"
    REDUCE_OVERHEAD = "reduce_overhead"

    @classmethod
    def _missing_(cls, value: object) -> Compile | None:
        return cls.OFF if value is False else None  # what YAML makes of `off`


class Decode(StrEnum):
    """How a text's tokens reach a decoder: at once, or in steps behind a key-value cache that is new for every run."""

    WHOLE = "whole"
    TOKENS = "tokens"  # one by one, with a cache that grows
    TOKENS_STATIC = "tokens_static"  # with one of the text's length
    TOKENS_QUANTISED = "tokens_quantised"  # with one that keeps all but the last tokens in 4 bits
    CHUNKS_OF_16 = "chunks_of_16"
    CHUNKS_OF_16_STATIC = "chunks_of_16_static"
    CHUNKS_OF_16_QUANTISED = "chunks_of_16_quantised"


class Positions(StrEnum):
    """Whether position_ids are passed (0, 1, 2, ... within each text) or left to the model."""

    IMPLICIT = "implicit"
    EXPLICIT = "explicit"


class Head(StrEnum):
    """Which class of the model is loaded."""

    AUTO = "auto"  # what the checkpoint's config.json names
    CAUSAL_LM = "causal_lm"
    MASKED_LM = "masked_lm"
    SEQ2SEQ_LM = "seq2seq_lm"  # an encoder-decoder that writes text
    BASE = "base"
    AS_SAVED = "as_saved"  # the very class that config.json names: classifiers and whatever else there is


class Pooling(StrEnum):
    """How the hidden states of a text become its embedding."""

    AUTO = "auto"  # what the checkpoint's modules.json says; else the last token of a decoder, the mean of an encoder
    LAST_TOKEN = "last_token"
    LAST_TOKEN_BY_COUNT = "last_token_by_count"  # hidden[row, mask.sum() - 1]: wrong under left padding, to measure it
    MEAN = "mean"
    CLS = "cls"
    MAX = "max"
