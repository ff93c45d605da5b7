"""Random weights from a seed, written as a checkpoint once: real architectures and load paths without a download."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from sweeper.checkpoints import cache, operators
from sweeper.checkpoints.folder import no_progress_bars
from sweeper.checkpoints.operators import OperatorConfig
from sweeper.config import Head, SeededCheckpoint
from sweeper.errors import ConfigError

_OPERATOR = "operator"
_CONFIGS = {"llama": LlamaConfig, "qwen3": Qwen3Config, "bert": BertConfig, _OPERATOR: OperatorConfig}
_SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
_BYTES = 256
# what decides on no weight
_NOT_DRAWN = {
    "name",
    "pooling",
    "causal",
    "init_on_device",
    "normalize",
    "prompt",
    "prompt_name",
    "max_tokens",
    "ignore_weights",
}


def prepare(checkpoint: SeededCheckpoint, device: str, say: Callable[[str], None]) -> tuple[Path, str, str]:
    """The folder, `seeded:<hex>` (a hash of all that decides the weights), and the hash of all its files.

    Raises:
        ConfigError: `geometry` does not fit the architecture's config class.
    """
    config = model_config(checkpoint)
    init_device = device if checkpoint.init_on_device else "cpu"
    digest = _digest(checkpoint, init_device)

    def build(target: Path) -> None:
        say(f"initialising {checkpoint.name} with seed {checkpoint.seed} on {init_device}, once")
        with no_progress_bars():
            if checkpoint.by_module:
                write_by_module(checkpoint, config, init_device, target)
            else:
                initialise(checkpoint, config, init_device).save_pretrained(target)
        if config.vocab_size >= _BYTES + len(_SPECIAL_TOKENS):
            byte_tokenizer().save_pretrained(target)

    key = f"seeded-{checkpoint.architecture}-{digest[:16]}"
    path = cache.build_once(key, build, say)
    return path, f"seeded:{digest}", cache.files_digest(path)


def model_config(checkpoint: SeededCheckpoint) -> transformers.PreTrainedConfig:
    """The architecture's config with the geometry.

    Raises:
        ConfigError: an argument that the config class does not have (transformers would keep it and ignore it), or a
            value that it refuses.
    """
    kind = _CONFIGS[checkpoint.architecture]
    known = {field.name for field in dataclasses.fields(kind)}
    for name in checkpoint.geometry:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"checkpoint.geometry.{name}: {kind.__name__} has no such argument{hint}")
    try:
        return kind(**checkpoint.geometry)
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"checkpoint.geometry: {kind.__name__} refuses it: {reason}") from None


def initialise(
    checkpoint: SeededCheckpoint, config: transformers.PreTrainedConfig, device: str
) -> transformers.PreTrainedModel:
    """A model with transformers' own initialisation, drawn in float32 on `device`, then cast to `saved_dtype`."""
    operators.register()
    auto = AutoModelForCausalLM if checkpoint.head is Head.CAUSAL_LM else AutoModel
    with _seeded(checkpoint.seed, device), torch.device(device):
        model = auto.from_config(config, dtype=torch.float32)
    return model.to(getattr(torch, checkpoint.saved_dtype))


_SHARD_BYTES = 4 * 2**30


def write_by_module(
    checkpoint: SeededCheckpoint, config: transformers.PreTrainedConfig, device: str, folder: Path
) -> None:
    """Writes what transformers' own initialisation draws, module by module, in float32 on `device`, in shards."""
    auto = AutoModelForCausalLM if checkpoint.head is Head.CAUSAL_LM else AutoModel
    dtype = getattr(torch, checkpoint.saved_dtype)
    with torch.device("meta"):
        model = auto.from_config(config, dtype=torch.float32)
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - dict(model.named_parameters()).keys()
    shard: dict[str, torch.Tensor] = {}
    file_of: dict[str, str] = {}

    def write() -> None:
        name = f"model-{len(set(file_of.values())) + 1:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        file_of.update(dict.fromkeys(shard, name))
        shard.clear()

    with _seeded(checkpoint.seed, device), torch.no_grad():
        for prefix, module in list(model.named_modules()):
            if next(module.parameters(recurse=False), None) is None:
                continue
            module.to_empty(device=device, recurse=False)
            model._init_weights(module)
            for leaf, parameter in module.named_parameters(recurse=False):
                name = f"{prefix}.{leaf}" if prefix else leaf
                if name not in tied:
                    shard[name] = parameter.to(dtype).cpu()
            module.to_empty(device="meta", recurse=False)
            if sum(tensor.nbytes for tensor in shard.values()) >= _SHARD_BYTES:
                write()
    if shard:
        write()
    config.architectures, config.dtype = [type(model).__name__], dtype
    config.save_pretrained(folder)
    index = {"metadata": {}, "weight_map": file_of}
    (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=1))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, its id the byte's value; behind them `<pad>`, `<bos>` and `<eos>`, which no text contains."""
    byte_to_unicode = bytes_to_unicode()
    vocabulary = {byte_to_unicode[byte]: byte for byte in range(_BYTES)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(_SPECIAL_TOKENS.values()))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_SPECIAL_TOKENS)


@contextmanager
def _seeded(seed: int, device: str) -> Iterator[None]:
    """Seeds the generators of the CPU and of `device`; puts them back.

    Not `torch.manual_seed`: it seeds every GPU, which nobody would put back.
    """
    cuda = device == "cuda"
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed(seed)
        yield


def _digest(checkpoint: SeededCheckpoint, init_device: str) -> str:
    """Hashes the choices, the libraries and the device: another GPU or another torch may draw other numbers.

    What draws an operator's is code of our own, which may change between versions of the package.
    """
    decides = {
        **checkpoint.model_dump(mode="json", exclude=_NOT_DRAWN | (set() if checkpoint.by_module else {"by_module"})),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name() if init_device == "cuda" else init_device,
    }
    if checkpoint.architecture == _OPERATOR:
        decides["code"] = hashlib.sha256(Path(operators.__file__).read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
