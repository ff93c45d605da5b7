"""A GGUF file becomes a folder of float32 safetensors."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sweeper.checkpoints.folder import no_progress_bars


def dequantise(source: Path, target: Path, say: Callable[[str], None]) -> None:
    """Writes the model and the tokenizer of a GGUF file into a folder.

    transformers expands the quantised blocks (Q4_1: a block's scale times a small integer, plus the block's minimum) in
    float32. Loading the folder gives those bits back.

    Args:
        source: the GGUF file, whatever it is called.
        target: an empty folder.
        say: told before the step that takes tens of seconds.
    """
    say("dequantising the GGUF file to float32, once: this takes about half a minute")
    with no_progress_bars(), redirect_stderr(io.StringIO()):  # its GGUF reader has a bar that no setting turns off
        model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        # With either of these, save_pretrained refuses or writes a config that asks for the GGUF file again.
        model.hf_quantizer = None
        del model.config.quantization_config
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(target)
