"""What a checkpoint's own files say about it: head, causality, pooling, normalisation, prompt. No weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper.checkpoints.folder import read_json
from sweeper.config import Head, Pooling
from sweeper.errors import CheckpointError, ConfigError, did_you_mean

_POOLINGS = {
    "pooling_mode_cls_token": Pooling.CLS,
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_max_tokens": Pooling.MAX,
    "pooling_mode_lasttoken": Pooling.LAST_TOKEN,
    "cls": Pooling.CLS,
    "mean": Pooling.MEAN,
    "max": Pooling.MAX,
    "lasttoken": Pooling.LAST_TOKEN,
}
_PROMPTS = "config_sentence_transformers.json"
_NO_END = 10**9  # a tokenizer that knows no end states 10**30


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the files say.

    Attributes:
        architecture: the class that config.json names; None where it names none.
        head: which kind of class that is.
        causal: a decoder.
        pads_left: the side of the tokenizer; where it says none, a decoder's left.
        normalize, prompt, max_tokens: of sentence-transformers' files; without them embeddings are normalised.
        prompts: all that there are, by name.
        pools_prompt: the prompt's tokens take part in the pooling.
    """

    folder: Path
    architecture: str | None
    head: Head
    causal: bool
    normalize: bool
    prompt: str
    prompts: dict[str, str]
    pools_prompt: bool
    max_tokens: int | None
    pads_left: bool

    def prompt_of(self, name: str) -> str:
        """The prompt of a name.

        Raises:
            ConfigError: there is none of that name.
        """
        if name not in self.prompts:
            raise ConfigError(
                f"checkpoint.prompt_name: {self.folder} has no prompt {name}{did_you_mean(name, self.prompts)}"
            )
        return self.prompts[name]

    def pooling(self) -> Pooling:
        """What sentence-transformers pools with; without its files what is usual for the kind of model.

        Raises:
            CheckpointError: there is no such pooling here.
        """
        return _pooling(self.folder, _modules(self.folder)) or (Pooling.LAST_TOKEN if self.causal else Pooling.MEAN)


def read_card(folder: Path) -> Card:
    """Reads the files of sentence-transformers and transformers in a folder.

    Raises:
        CheckpointError: config.json or modules.json cannot be read.
    """
    config = read_json(folder / "config.json")
    architecture = next(iter(config.get("architectures") or ()), None)
    head = _head(config, architecture)
    causal = _causal(config, head)
    modules = _modules(folder)
    prompts = _optional(folder / _PROMPTS).get("prompts") or {}
    return Card(
        folder=folder,
        architecture=architecture,
        head=Head.BASE if modules and head is not Head.AS_SAVED else head,
        causal=causal,
        normalize=not modules or any(_kind(module) == "Normalize" for module in modules),
        prompt=prompts.get(_optional(folder / _PROMPTS).get("default_prompt_name"), ""),
        prompts=prompts,
        pools_prompt=_pooling_settings(folder, modules).get("include_prompt") is not False,
        max_tokens=_max_tokens(folder, config) if modules else None,
        pads_left=_optional(folder / "tokenizer_config.json").get("padding_side", "left" if causal else "right")
        == "left",
    )


def _head(config: dict[str, Any], architecture: str | None) -> Head:
    """The head that transformers' auto classes give the architecture; where they do not know it, what its name says."""
    from transformers.models.auto import modeling_auto as auto  # torch: seconds

    if architecture is None:
        return Head.BASE
    tables: tuple[tuple[Any, Head], ...] = (
        (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, Head.CAUSAL_LM),
        (auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, Head.CAUSAL_LM),
        (auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, Head.MASKED_LM),
        (auto.MODEL_MAPPING_NAMES, Head.BASE),
    )
    if config.get("is_encoder_decoder"):
        writers = (auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES)
        tables = ((writers[0], Head.SEQ2SEQ_LM), (writers[1], Head.SEQ2SEQ_LM), *tables[-1:])
    model_type = config.get("model_type")
    for table, head in tables:
        named = table.get(model_type, ())
        if architecture in ([named] if isinstance(named, str) else named):
            return head
    return Head.AS_SAVED


def _causal(config: dict[str, Any], head: Head) -> bool:
    from transformers.models.auto import modeling_auto as auto

    if head in (Head.CAUSAL_LM, Head.MASKED_LM, Head.SEQ2SEQ_LM) or config.get("is_encoder_decoder"):
        return head is Head.CAUSAL_LM
    if config.get("use_bidirectional_attention") or config.get("is_causal") is False:
        return False
    writes = config.get("model_type") in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    fills_in = config.get("model_type") in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return writes and (not fills_in or bool(config.get("is_decoder")))


def _pooling(folder: Path, modules: list[dict[str, Any]]) -> Pooling | None:
    """What sentence-transformers pools with; None without its files."""
    if behind := [kind for kind in map(_kind, modules) if kind not in ("Transformer", "Pooling", "Normalize")]:
        raise CheckpointError(
            f"{folder} has {', '.join(behind)} in modules.json, which is not run here; to compare the embedding before "
            "it, type checkpoint.pooling=mean (or cls, max, last_token)"
        )
    path = _pooling_path(modules)
    if path is None:
        return None
    settings = _pooling_settings(folder, modules)
    asked = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value]
    asked = asked or [str(settings.get("pooling_mode", "mean"))]
    if len(asked) > 1 or asked[0] not in _POOLINGS:
        raise CheckpointError(
            f"{folder / path}: {' and '.join(asked)} is no pooling of sweeper; type checkpoint.pooling=mean (or cls, "
            "max, last_token)"
        )
    return _POOLINGS[asked[0]]


def _pooling_path(modules: list[dict[str, Any]]) -> str | None:
    return next((module["path"] for module in modules if _kind(module) == "Pooling"), None)


def _pooling_settings(folder: Path, modules: list[dict[str, Any]]) -> dict[str, Any]:
    path = _pooling_path(modules)
    return {} if path is None else read_json(folder / path / "config.json")


def _modules(folder: Path) -> list[dict[str, Any]]:
    """The parts of a sentence-transformers model; none where the folder holds another."""
    path = folder / "modules.json"
    return read_json(path) if path.is_file() else []


def _kind(module: dict[str, Any]) -> str:
    return str(module["type"]).rpartition(".")[2]


def _max_tokens(folder: Path, config: dict[str, Any]) -> int | None:
    """Where sentence-transformers cuts: as its own file says, else where the model or its tokenizer ends."""
    stated: int | None = _optional(folder / "sentence_bert_config.json").get("max_seq_length")
    ends = config.get("max_position_embeddings"), _optional(folder / "tokenizer_config.json").get("model_max_length")
    return stated or min((end for end in ends if isinstance(end, int) and 0 < end < _NO_END), default=None)


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
