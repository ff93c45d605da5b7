"""Files of texts and arrays: read, and checked line by line, before any model is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from sweeper.errors import ConfigError, shown
from sweeper.inputs.chat import Conversation, is_conversation

SUFFIXES = (".txt", ".jsonl")
ARRAY_SUFFIXES = (".npy", ".safetensors")
MOST_BYTES = 2_000_000_000


def read_file(path: Path, field: str) -> list[str | Conversation]:
    """The texts, or conversations, of a file.

    Args:
        path: `.txt`, a text a line, or `.jsonl`, an object a line.
        field: of the objects, which holds a text or messages.

    Raises:
        ConfigError: no such file, or one that cannot be read, with the line.
    """
    _require(path, SUFFIXES, "inputs.file")
    if path.stat().st_size > MOST_BYTES:
        raise ConfigError(f"inputs.file: {path} is larger than {MOST_BYTES:,} bytes, which are held in memory; cut it")
    try:
        # Not str.splitlines: it also splits at U+2028 and form feeds, which are part of a text (and legal inside JSON).
        with path.open(encoding="utf-8-sig") as lines:
            numbered = _numbered_lines(path, lines)
            texts = list(
                _json_texts(numbered, path, field) if path.suffix == ".jsonl" else (line for _, line in numbered)
            )
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}"
        raise ConfigError(f"inputs.file: {path} is not UTF-8: {reason}; save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"inputs.file: {path} cannot be read: {error.strerror}") from None
    if not texts:
        raise ConfigError(f"inputs.file: {path} holds no text")
    return texts


def check_text(text: str, where: str) -> None:
    """Raises ConfigError for what no tokenizer reads."""
    if "\0" in text:
        raise ConfigError(f"{where}: holds a NUL character, which is no text; is it UTF-16? Save it as UTF-8")
    if not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text):
        raise ConfigError(f"{where}: holds half a surrogate pair, which is no character; write it whole")


def check_array_file(path: Path) -> None:
    """Raises ConfigError where a file holds anything but one array of numbers, a row an image or sound."""
    _require(path, ARRAY_SUFFIXES, "inputs.arrays")
    import numpy as np  # only where there are arrays
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            shapes, kind = [list(array.shape)], array.dtype.kind
        else:
            with safe_open(path, "numpy") as file:
                shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 (it is no mapping)
            kind = "f"
    except (OSError, ValueError, EOFError, SafetensorError) as error:
        raise ConfigError(f"inputs.arrays: {path} cannot be read: {error}") from None
    if len(shapes) != 1:
        raise ConfigError(f"inputs.arrays: {path} must hold one tensor (given: {len(shapes)})")
    if len(shapes[0]) < 2 or not all(shapes[0]) or kind not in "fiu":
        given = f"{tuple(shapes[0])} of kind {kind}"
        raise ConfigError(f"inputs.arrays: {path} must hold numbers, a row an image or sound (given: {given})")


def _require(path: Path, suffixes: tuple[str, ...], key: str) -> None:
    if path.suffix not in suffixes:
        allowed = ", ".join(suffixes)
        raise ConfigError(f"{key}: unknown suffix {path.suffix!r} (given: {path}); allowed: {allowed}")
    try:
        found = path.is_file()
    except OSError as error:
        raise ConfigError(f"{key}: {path} cannot be read: {error.strerror}") from None
    if not found:
        raise ConfigError(f"{key}: no such file: {path} (looked in {path.absolute().parent})")


def _numbered_lines(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, each with its number."""
    for number, line in enumerate(lines, start=1):
        check_text(line, f"inputs.file: {path}, line {number}")
        if line.strip():
            yield number, line.rstrip("\n")


def _json_texts(numbered_lines: Iterable[tuple[int, str]], path: Path, field: str) -> Iterator[str | Conversation]:
    for number, line in numbered_lines:
        where = f"inputs.file: {path}, line {number}"
        record = _json(line, where, field)
        if not isinstance(record, dict):
            raise ConfigError(f"{where}: must be an object with the field {field!r} (given: {type(record).__name__})")
        if field not in record:
            known = ", ".join(list(record)[:10]) or "none"
            raise ConfigError(f"{where}: no field {field!r}; set inputs.field to one of: {known}")
        if is_conversation(record[field]):
            for message in record[field]:
                check_text(message["content"], where)
            yield record[field]
            continue
        if not isinstance(record[field], str) or not record[field]:
            given = shown(record[field])
            raise ConfigError(f"{where}: field {field!r} must be a text that is not empty (given: {given})")
        check_text(record[field], where)
        yield record[field]


def _json(line: str, where: str, field: str) -> object:
    try:
        found: object = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply; it must be an object with the field {field!r}") from None
    except ValueError as error:  # a number of thousands of digits
        raise ConfigError(f"{where}: not JSON that can be read: {str(error).partition(';')[0]}") from None
    return found
