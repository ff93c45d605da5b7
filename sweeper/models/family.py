"""Which class of transformers a checkpoint is loaded as, and which arguments its forward has."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from sweeper.config import Attention, Head, Inputs
from sweeper.environment import version
from sweeper.errors import UnsupportedError
from sweeper.models.backends import implementation
from sweeper.models.once import once_a_model

_HEADS = {
    Head.CAUSAL_LM: ("MODEL_FOR_CAUSAL_LM_MAPPING", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING"),
    Head.MASKED_LM: ("MODEL_FOR_MASKED_LM_MAPPING",),
    Head.SEQ2SEQ_LM: ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING", "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING"),
    Head.BASE: ("MODEL_MAPPING",),
}


def model_class(folder: Path, head: Head) -> type[Any]:
    """The class that `from_pretrained` is called on; what the head's auto class of transformers would choose.

    Raises:
        UnsupportedError: this transformers does not know the architecture, or has no such head for it.
    """
    return _model_class(folder, head, (folder / "config.json").stat().st_mtime_ns)


@cache
def _model_class(folder: Path, head: Head, _changed_ns: int) -> type[Any]:
    import transformers
    from transformers.models.auto import modeling_auto

    config = _config(folder)
    saved = next(iter(config.architectures or ()), None)
    if head is Head.AS_SAVED:
        found = getattr(transformers, saved or "", None)
        if found is None:
            raise UnsupportedError(
                f"transformers {transformers.__version__} has no class {saved}, which {folder} names"
            )
        return found
    classes: list[type[Any]] = []
    for mapping in _HEADS[head]:
        named = getattr(modeling_auto, mapping).get(type(config), None)
        classes += named if isinstance(named, (tuple, list)) else [named] if named is not None else []
    if not classes:
        raise UnsupportedError(
            f"transformers has no {head} of {config.model_type}; the folder was saved as {saved}: "
            "type checkpoint.head=auto"
        )
    return next((found for found in classes if found.__name__ == saved), classes[0])


def _config(folder: Path) -> Any:
    import transformers

    from sweeper.checkpoints import operators

    operators.register()
    try:
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split()).partition(" You can update Transformers")[0]
        raise UnsupportedError(f"transformers {transformers.__version__} cannot read {folder}: {reason}") from None


def cannot_load(folder: Path) -> str | None:
    """Why nothing here loads a folder, before its weights are read, and what to install; None where something does.

    Adapters need PEFT: without it transformers loads the base alone and says nothing. Of a quantisation transformers
    itself says what it needs.
    """
    changed = (folder / "config.json").stat().st_mtime_ns
    if (folder / "adapter_config.json").is_file() and version("peft") is None:
        return "an adapter needs the package peft, which is not installed: pip install peft"
    return _cannot_dequantise(folder, changed)


@cache
def _cannot_dequantise(folder: Path, _changed_ns: int) -> str | None:
    stated = getattr(_config(folder), "quantization_config", None)
    if stated is None:
        return None
    from transformers.quantizers import AutoHfQuantizer

    method = stated.get("quant_method") if isinstance(stated, dict) else type(stated).__name__
    try:
        AutoHfQuantizer.from_config(stated, pre_quantized=True).validate_environment(
            dtype=None, device_map=None, weights_only=True
        )
    except (ImportError, RuntimeError, ValueError, NameError) as error:
        reason = " ".join(str(error).split())
        return f'weights quantised with {method} cannot be loaded here: transformers says "{reason}"'
    return None


def accepts(model: nn.Module | type[Any], argument: str) -> bool:
    """Whether the forward names this argument: what only its `**kwargs` would swallow does nothing."""
    kind: Any = model if isinstance(model, type) else type(model)
    return argument in _arguments(kind)


@cache
def _arguments(kind: type[Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(kind.forward).parameters


def main_input(model: nn.Module | type[Any]) -> str:
    """The argument that carries what is read: `input_ids`, `pixel_values`, `input_features` or `input_values`."""
    return str(getattr(model, "main_input_name", "input_ids"))


def has_cache(model: nn.Module | type[Any], *, causal: bool) -> bool:
    """Whether a key-value cache (or a recurrent state) means anything: an encoder with the argument makes none."""
    return accepts(model, "use_cache") and (causal or accepts(model, "decoder_input_ids"))


def cannot_pack(model: nn.Module | type[Any], attention: Attention, *, causal: bool) -> str | None:
    """Why nothing would keep packed texts apart; None where something does.

    A decoder of transformers sees where positions restart. An encoder is given a mask, which only those understand that
    take their masks as they are given; under flash attention, where each text begins.
    """
    name = model.__name__ if isinstance(model, type) else type(model).__name__
    if not accepts(model, "position_ids"):
        return f"{name} takes no position_ids: nothing tells it where a packed text starts"
    if causal:
        return None
    if accepts(model, "decoder_input_ids") or not getattr(model, "_supports_attention_backend", False):
        return f"{name} takes no mask that keeps packed texts apart; use a padded layout or single"
    if implementation(attention) not in ("eager", "sdpa", "flash_attention_2", "flash_attention_3"):
        return f"an encoder's packed texts are not kept apart under {attention}; use eager, sdpa or flash_attention_2"
    return None


# ---- of a loaded model -------------------------------------------------------------------------------------------


def vocabulary(model: Any) -> int:
    """Rows of the token embedding."""
    return int(model.get_input_embeddings().num_embeddings)


def context(model: Any) -> int | None:
    """Tokens that the model has positions for; None where that knows no end."""
    text = model.config.get_text_config()
    most = getattr(text, "max_position_embeddings", None)
    return most - first_position(model) if isinstance(most, int) and most > 0 else None


@once_a_model
def first_position(model: nn.Module) -> int:
    """The position of a text's first token, by the model's own count: RoBERTa and its kin start behind their pad."""
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and isinstance(padding, int):
            return padding + 1
    return 0


def gives_hidden(model: Any) -> nn.Module:
    """The part whose first output is the last hidden state: below a head, and of an encoder-decoder its encoder."""
    if accepts(model, "decoder_input_ids"):
        encoder: nn.Module = model.get_encoder()
        return encoder
    base: nn.Module = model.base_model
    # OPT's head calls the decoder inside of the base model, past the base model itself
    inside: Any = getattr(base, "decoder", None)
    return inside if base is not model and hasattr(inside, "config") else base


def cannot_read(model: nn.Module | type[Any], inputs: Inputs) -> str | None:
    """Why the model does not read what is given, and what to type; None where it does."""
    reads, kind = main_input(model), model.__name__ if isinstance(model, type) else type(model).__name__
    given = "arrays" if inputs.arrays is not None else "images or sounds" if inputs.media is not None else "texts"
    if (reads == "input_ids") is (given == "texts"):
        return None
    if reads == "input_ids":
        return f"{kind} reads {reads}, not {given}; type inputs=sentences"
    return (
        f"{kind} reads {reads}, not texts; type inputs=media inputs.media=FOLDER where its processor is in its folder, "
        f"else inputs=arrays inputs.arrays=FILE, of {reads} from its processor"
    )


def takes_masks_by_layer(model: Any) -> bool:
    """Whether the model takes a mask for each kind of layer; transformers says so nowhere but in the forward itself."""
    forward = inspect.unwrap(type(model.base_model).forward)
    return re.search(r"isinstance\([^()]*attention_mask, dict\)", inspect.getsource(forward)) is not None


def window(model: Any) -> int | None:
    """How far a token of a sliding layer sees to either side; None where every layer sees all."""
    config = model.config.get_text_config()
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    return int(config.sliding_window) if slides and getattr(config, "sliding_window", None) else None
