"""Config files as Hydra reads them, checked first: an error names the file and the line, and none costs its memory."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf

from sweeper.cli.hydra_settings import refuse_ignored_in
from sweeper.errors import ConfigError

DEEPEST = 50  # levels; Python's own stack ends at a few hundred
MOST_NODES = 100_000  # of a file, every alias counted as what it stands for
MOST_BYTES = 10_000_000
_SCANNER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class CheckedFiles(FileConfigSource):
    """Hydra's source of config files, with every file checked before it is composed."""

    def load_config(self, config_path: str) -> ConfigResult:
        """Reads a file.

        Raises:
            ConfigError: it is no YAML, or sets what would be ignored; with the file and, where there is one, the line.
        """
        path = Path(os.path.realpath(os.path.join(self.path, self._normalize_file_name(config_path))))
        if path.exists():
            facts = path.stat()
            _check_once(path, facts.st_mtime_ns, facts.st_size)
        return super().load_config(config_path)


def install() -> None:
    """Makes Hydra read its config files through `CheckedFiles`: it has no other place to say so."""
    Plugins.instance()  # registers Hydra's own, which would refuse to come second
    SourcesRegistry.instance().types[FileConfigSource.scheme()] = CheckedFiles


@lru_cache(maxsize=256)
def _check_once(path: Path, _changed_ns: int, _size: int) -> None:
    """Hydra reads a file several times to compose a command."""
    check(path)


def check(path: Path) -> None:
    """Raises ConfigError where a config file cannot be read, or would be ignored in part."""
    text = _text(path)
    try:
        _measure(path, text)
        content: Any = OmegaConf.create(text)
    except yaml.YAMLError as error:
        raise ConfigError(_located(path, text, error)) from None
    except (ValueError, OverflowError, RecursionError, AttributeError, TypeError) as error:
        raise ConfigError(f"{path}: no valid config: {error}") from None
    refuse_ignored_in(OmegaConf.to_container(content), str(path))


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"{path}: larger than {MOST_BYTES:,} bytes, which no config file needs to be")
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _measure(path: Path, text: str) -> None:
    """Counts levels and nodes without building any of them."""
    anchors: dict[str, int] = {}
    open_: list[tuple[str | None, int]] = []  # of each collection that is open: its anchor, nodes before it
    nodes = 0
    for event in yaml.parse(text, Loader=_SCANNER):
        line = event.start_mark.line + 1
        if not open_ and (isinstance(event, yaml.SequenceStartEvent) or getattr(event, "value", None)):
            raise ConfigError(f"{path}, line {line}: a config maps keys to values, KEY: VALUE")
        if isinstance(event, yaml.AliasEvent):
            nodes += anchors.get(event.anchor, 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, nodes))
            nodes += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            if anchor is not None:
                anchors[anchor] = nodes - before
        elif isinstance(event, yaml.ScalarEvent):
            nodes += 1
        if len(open_) > DEEPEST:
            raise ConfigError(f"{path}, line {line}: nested more than {DEEPEST} levels deep; no config needs that")
        if nodes > MOST_NODES:
            raise ConfigError(
                f"{path}, line {line}: more than {MOST_NODES:,} values, aliases written out; give texts in a file: "
                "inputs=file inputs.file=PATH"
            )


def _located(path: Path, text: str, error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return f"{path}: no YAML: {error}"
    mark = error.problem_mark or error.context_mark
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    hint = ""
    if mark is not None and text.splitlines()[mark.line : mark.line + 1][:1]:
        line = text.splitlines()[mark.line]
        hint = "; indent with spaces, not with a tab" if line[mark.column : mark.column + 1] == "\t" else ""
    return f"{path}{place}: no YAML: {error.problem or error.context}{hint}"
