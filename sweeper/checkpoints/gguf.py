"""A GGUF file becomes a folder of float32 safetensors."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import lru_cache
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from sweeper.checkpoints import cache
from sweeper.checkpoints.folder import no_progress_bars
from sweeper.environment import version
from sweeper.errors import CheckpointError


def prepare(source: Path, say: Callable[[str], None]) -> tuple[Path, str, str]:
    """The converted folder in the cache, `sha256:<hex>` of the GGUF file, and the hash of all files of the folder.

    Raises:
        CheckpointError: it is one part of several, is no GGUF file that transformers reads, or lacks weights.
    """
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", source.name):
        raise CheckpointError(
            f"{source} is one part of several; join them: llama-gguf-split --merge FIRST_PART OUT.gguf"
        )
    changed = source.stat()
    sha256 = _sha256(source, changed.st_mtime_ns, changed.st_size)
    path = cache.build_once(key_of(sha256), lambda target: dequantise(source, target, say), say)
    return path, f"sha256:{sha256}", cache.files_digest(path)


def key_of(sha256: str) -> str:
    """The name in the cache: how a file is read, and what config and tokenizer come out, is up to transformers."""
    return f"gguf-{sha256[:16]}-transformers-{transformers.__version__}"


@lru_cache(maxsize=8)
def _sha256(path: Path, _changed_ns: int, _size: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def dequantise(source: Path, target: Path, say: Callable[[str], None]) -> None:
    """Writes the model and the tokenizer of a GGUF file into a folder.

    transformers expands the quantised blocks (Q4_1: a block's scale times a small integer, plus the block's minimum) in
    float32. Loading the folder gives those bits back.

    Args:
        source: the GGUF file, whatever it is called.
        target: an empty folder.
        say: told before the step that takes tens of seconds.

    Raises:
        CheckpointError: the package gguf or weights are missing, or transformers does not read the file.
    """
    if version("gguf") is None:
        raise CheckpointError(f"{source} needs the package gguf, which is not installed: pip install gguf")
    say("dequantising the GGUF file to float32, once: this takes about half a minute")
    with no_progress_bars(), redirect_stderr(io.StringIO()):  # its GGUF reader has a bar that no setting turns off
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                source.parent, gguf_file=source.name, dtype=torch.float32, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        except Exception as error:  # of any kind: its reader checks nothing before it reads
            reason = " ".join(str(error).split())
            raise CheckpointError(f'{source} cannot be read as GGUF: {type(error).__name__} "{reason}"') from None
        if info["missing_keys"]:
            missing = ", ".join(sorted(info["missing_keys"])[:3])
            raise CheckpointError(f"{source} lacks {missing} of {type(model).__name__}, drawn at random otherwise")
        # With either of these, save_pretrained refuses or writes a config that asks for the GGUF file again.
        model.hf_quantizer = None
        del model.config.quantization_config
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
