"""A tiny random Llama as a GGUF file, written with the format's own package."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

WORDS = ["<unk>", "<s>", "</s>", *map(chr, range(ord("a"), ord("z") + 1)), "ab", "cd"]
HIDDEN, HEADS, FORWARD = 32, 4, 64


def write_gguf(path: Path, *, architecture: str = "llama", left_out: str = "") -> Path:
    """Writes the file; `left_out` is the name of a tensor that it lacks."""
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(WORDS))
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(WORDS)
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for name, shape in _shapes().items():
        if name != left_out:
            values = np.random.default_rng(len(name)).normal(0.2, 0.2, shape).astype(np.float32)
            quantised = len(shape) > 1  # 8 bits and a scale for every 32 numbers
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(
                name, gguf.quants.quantize(values, kind) if quantised else values, raw_dtype=kind if quantised else None
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _shapes() -> dict[str, tuple[int, ...]]:
    square = {f"blk.0.attn_{part}.weight": (HIDDEN, HIDDEN) for part in ("q", "k", "v", "output")}
    return {
        "token_embd.weight": (len(WORDS), HIDDEN),
        "output.weight": (len(WORDS), HIDDEN),
        "output_norm.weight": (HIDDEN,),
        "blk.0.attn_norm.weight": (HIDDEN,),
        "blk.0.ffn_norm.weight": (HIDDEN,),
        **square,
        "blk.0.ffn_gate.weight": (FORWARD, HIDDEN),
        "blk.0.ffn_up.weight": (FORWARD, HIDDEN),
        "blk.0.ffn_down.weight": (HIDDEN, FORWARD),
    }
