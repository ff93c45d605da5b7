"""A recording: what a model gave for texts, in one safetensors file that any program can write (docs/recordings.md).

Shapes: N tokens of all texts one after another, S texts, V vocabulary, D hidden, F features of a module's output.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper.errors import ConfigError
from sweeper.records.store import write_whole

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "sweeper recording 1"
LOGITS, LOG_PROBABILITIES, HIDDEN, OUTPUT, EMBEDDINGS = (
    "logits",
    "log_probabilities",
    "hidden_states",
    "output",
    "embeddings",
)
OUTPUTS = (LOGITS, LOG_PROBABILITIES, HIDDEN, OUTPUT, EMBEDDINGS)
"""What a model's output may be recorded as; what tells the most first."""
MODULE, FLOAT64 = "module:", "float64:"
"""What stands before a module's name, and before the name of what was given in float64."""

_TOKEN_IDS, _LENGTHS = "token_ids", "lengths"
_FLOATS = ("F64", "F32", "F16", "BF16")
_INTEGERS = ("I64", "I32", "I16", "U8")
_HOW = "see docs/recordings.md for the layout"


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What was recorded.

    Attributes:
        token_ids: of each text.
        tensors: by name: `OUTPUTS`, `module:NAME`, and each of these in float64 behind `float64:`.
        about: who gave it and how; plain data. Keys as in docs/recordings.md.
    """

    token_ids: list[list[int]]
    tensors: Mapping[str, Tensor]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def main(self) -> str:
        """The name of the output that tells the most."""
        return next(name for name in OUTPUTS if name in self.tensors)

    @property
    def modules(self) -> list[str]:
        """The names of the modules, in the order in which they ran, where that was written down."""
        recorded = [name.removeprefix(MODULE) for name in self.tensors if name.startswith(MODULE)]
        order = {name: place for place, name in enumerate(self.about.get("modules", []))}
        return sorted(recorded, key=lambda name: order.get(name, len(order)))

    @classmethod
    def read(cls, path: Path, *, nan: bool = False) -> Recording:
        """Reads all of a recording.

        Args:
            nan: an output may be NaN throughout.

        Raises:
            ConfigError: in one line, why `path` is none.
        """
        token_ids, about = read_texts(path)
        from safetensors.torch import load_file

        tensors = {name: tensor for name, tensor in load_file(path).items() if name not in (_TOKEN_IDS, _LENGTHS)}
        for name in (name for name in OUTPUTS if name in tensors):
            if not nan and tensors[name].isnan().all():
                raise ConfigError(f"{path}: every number of {name} is NaN: nothing can be compared with it")
        return cls(token_ids=token_ids, tensors=tensors, about=about)

    def write(self, path: Path) -> None:
        """Writes it, whole or not at all.

        Raises:
            ConfigError: the file cannot be written.
        """
        import torch
        from safetensors.torch import save

        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        tensors[_TOKEN_IDS] = torch.tensor(list(itertools.chain.from_iterable(self.token_ids)), dtype=torch.int64)
        tensors[_LENGTHS] = torch.tensor([len(ids) for ids in self.token_ids], dtype=torch.int64)
        header = {"format": FORMAT, "about": json.dumps(self.about, default=str)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, save(tensors, header))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def read_texts(path: Path) -> tuple[list[list[int]], dict[str, Any]]:
    """The token ids of each text, and who recorded them; checks the whole layout and loads no output.

    Raises:
        ConfigError: in one line, why `path` is no recording.
    """
    with _one_line(path):
        if not path.is_file():
            raise ConfigError(f"{path}: no such file (looked in {path.absolute().parent})")
        path.open("rb").close()  # of a file that may not be read, safetensors says that there is none
        return _read_texts(path.absolute(), path, path.stat().st_mtime_ns)


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Says why a file cannot be read, as for lack of permission."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None


@functools.lru_cache(maxsize=16)
def _read_texts(path: Path, shown: Path, _changed_ns: int) -> tuple[list[list[int]], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
            layout = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
            about = _about(header, shown)
            _check(layout, shown)
            ids_N, lengths_S = (file.get_tensor(name).tolist() for name in (_TOKEN_IDS, _LENGTHS))
    except SafetensorError as error:
        raise ConfigError(f"{shown}: no safetensors file: {error}; {_HOW}") from None
    if min(lengths_S, default=0) < 1 or sum(lengths_S) != len(ids_N):
        raise ConfigError(
            f"{shown}: {_LENGTHS} must be 1 or more each and sum up to the {len(ids_N)} {_TOKEN_IDS} (given: they sum "
            f"up to {sum(lengths_S)}, the least is {min(lengths_S, default=0)})"
        )
    _check_rows(layout, lengths_S, shown)
    ids = iter(ids_N)
    return [list(itertools.islice(ids, length)) for length in lengths_S], about


def _about(header: Mapping[str, str], path: Path) -> dict[str, Any]:
    if header.get("format") != FORMAT:
        given = header.get("format", "nothing")
        raise ConfigError(f"{path}: no recording: `format` in its header must be {FORMAT!r} (given: {given}); {_HOW}")
    try:
        about = json.loads(header.get("about", "{}"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: `about` in its header is not JSON: {error.msg}; {_HOW}") from None
    if not isinstance(about, dict):
        raise ConfigError(f"{path}: `about` in its header must be an object (given: {type(about).__name__}); {_HOW}")
    modules = about.get("modules", [])
    if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
        raise ConfigError(f"{path}: `modules` in `about` must be a list of names (given: {modules!r:.60}); {_HOW}")
    return about


def _check(layout: Mapping[str, tuple[str, tuple[int, ...]]], path: Path) -> None:
    for name in (_TOKEN_IDS, _LENGTHS):
        dtype, shape = layout.get(name, ("", ()))
        if dtype not in _INTEGERS or len(shape) != 1:
            given = f"{dtype} of shape {list(shape)}" if dtype else "nothing"
            raise ConfigError(f"{path}: {name} must be integers in one dimension (given: {given}); {_HOW}")
    if not any(name in layout for name in OUTPUTS):
        given = ", ".join(layout.keys() - {_TOKEN_IDS, _LENGTHS}) or "nothing"
        raise ConfigError(f"{path}: holds no output: one of {', '.join(OUTPUTS)} (given: {given}); {_HOW}")


def _check_rows(layout: Mapping[str, tuple[str, tuple[int, ...]]], lengths: Sequence[int], path: Path) -> None:
    """Modules may have the rows of the first texts alone."""
    N, S, ends = sum(lengths), len(lengths), set(itertools.accumulate(lengths))
    for name, (dtype, shape) in layout.items():
        plain = name.removeprefix(FLOAT64)
        if plain in (_TOKEN_IDS, _LENGTHS):
            continue
        if plain not in OUTPUTS and not plain.startswith(MODULE):
            allowed = ", ".join((*OUTPUTS, f"{MODULE}NAME"))
            raise ConfigError(f"{path}: {name}: no such tensor. Allowed: {allowed}; {_HOW}")
        rows, dimensions = S if plain == EMBEDDINGS else N, 1 if plain == LOG_PROBABILITIES else 2
        free = plain == OUTPUT or (plain.startswith(MODULE) and shape[:1] and shape[0] in ends)
        fits = len(shape) == dimensions and (shape[0] == rows or free)
        if dtype not in _FLOATS or not fits:
            wanted = f"[{rows}{', features' if dimensions == 2 else ''}]"
            raise ConfigError(
                f"{path}: {name} must be floating-point numbers of shape {wanted}, a row a "
                f"{'text' if plain == EMBEDDINGS else 'token'} (given: {dtype} of shape {list(shape)}); {_HOW}"
            )


def digest(path: Path) -> str:
    """12 hex digits of a hash of the file: what a recording goes by where a cell has its id.

    Raises:
        ConfigError: the file cannot be read.
    """
    with _one_line(path):
        return _digest(path.absolute(), path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _digest(path: Path, _changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]
