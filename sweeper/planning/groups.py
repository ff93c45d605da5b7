"""The axes that are config groups. An option is composed by Hydra once, however many cells use it."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from sweeper.config import ADDED, LONGEST_NAME, parse
from sweeper.errors import ConfigError, shown
from sweeper.models import axes
from sweeper.models.axis import Axis


class Groups:
    """The config groups: composes an option when it is first asked for."""

    def __init__(self, loader: ConfigLoader, master: DictConfig, overrides: Iterable[Override]) -> None:
        self._loader = loader
        self._master = master
        self._choices = master.hydra.runtime.choices
        self._lines = [
            str(override.input_line)
            for override in overrides
            if not override.is_sweep_override() and override.key_or_group.partition(".")[0] not in axes.groups()
        ]
        self._composed: dict[str | None, DictConfig] = {}
        roots = (override.key_or_group.partition(".") for override in overrides)
        self._master_as_it_is = not any(dot and root in axes.groups() for root, dot, _ in roots)

    def variants(self, axis: Axis, assignments: dict[str, list[Any]]) -> Iterator[Any]:
        """The validated models of a group: its options times the values of its dotted keys (`checkpoint.seed=1,2`)."""
        dotted = {key: values for key, values in assignments.items() if key.startswith(f"{axis.name}.")}
        for choice in assignments.get(axis.name, [None]):
            if choice is None and axis.name in ADDED and axis.name not in self._choices:
                yield ADDED[axis.name][1]
                continue
            composed = self._compose(axis, choice)
            if not dotted:
                yield _model(composed, axis)
                continue
            before = _stated(composed, axis)
            for values in itertools.product(*dotted.values()):
                yield _changed(composed, axis, before, dict(zip(dotted, values, strict=True)))

    def option(self, axis: Axis, choice: str) -> Any:
        """The validated model of one option, as its file states it."""
        return _model(self._compose(axis, choice), axis)

    def names(self, axis: Axis) -> list[str]:
        """The names of a group's config files, those of `hydra.searchpath` too."""
        hydra = self._master.hydra
        path = [line for line in hydra.overrides.hydra if line.partition("=")[0] == "hydra.searchpath"]
        return list(self._loader.get_group_options(axis.name, config_name=hydra.job.config_name, overrides=path))

    def _compose(self, axis: Axis, choice: Any) -> DictConfig:
        """The whole config with one option of a group; None is what the config files and the command line chose."""
        if axis.name == "checkpoint" and is_place(str(choice)):
            return self._at_place(axis, str(choice))
        if self._master_as_it_is and choice in (None, self._choices.get(axis.name)):
            choice = None  # the master has it
            self._composed.setdefault(None, without_hydra(self._master))
        line = None if choice is None else f"{'+' if axis.name in ADDED else ''}{axis.name}={choice}"
        if line not in self._composed:
            lines = self._lines if line is None else [*self._lines, line]
            self._composed[line] = without_hydra(self._loader.load_sweep_config(self._master, lines))
        return self._composed[line]

    def _at_place(self, axis: Axis, place: str) -> DictConfig:
        """The whole config with a folder, or a model of the hub, as its checkpoint."""
        path = Path(place).expanduser()
        is_folder = os.path.exists(path) or not re.fullmatch(r"[\w.-]+/[\w.-]+", place) or place.startswith(".")
        found = copy.deepcopy(self._compose(axis, "folder" if is_folder else "hub"))
        name = path.resolve().name.removesuffix(".gguf")
        stated = {"path": place, "name": name} if is_folder else {"repo_id": place, "name": path.name}
        for key, value in stated.items():
            OmegaConf.update(found, f"{axis.name}.{key}", value)
        return found


def is_place(choice: str) -> bool:
    """Whether this names a folder, a GGUF file or a model of the hub, in place of a config file."""
    return "/" in choice or choice in (".", "..", "~") or choice.endswith(".gguf")


def _changed(composed: DictConfig, axis: Axis, before: dict[str, Any], changes: dict[str, Any]) -> Any:
    """A group's option with dotted overrides on top. Its name says what they changed: `default+bf16_reduction=off`."""
    changed = copy.deepcopy(composed)
    for key, value in changes.items():
        OmegaConf.update(changed, key, value, force_add=True)
    model = _model(changed, axis)
    after = model.model_dump(mode="json")
    if after["name"] != before.get("name"):
        return model  # the name was overridden, or is made of other settings
    paths = {key.removeprefix(f"{axis.name}."): value for key, value in changes.items()}
    suffixes = [f"{path}={_short(value)}" for path, value in paths.items() if _at(before, path) != _at(after, path)]
    return model.model_copy(update={"name": "+".join([after["name"], *suffixes])})


def _stated(composed: DictConfig, axis: Axis) -> dict[str, Any]:
    """An option as its file states it, defaults included; if a value is still missing, only what it states."""
    stated: Any
    try:
        stated = _model(composed, axis).model_dump(mode="json")
    except (ConfigError, MissingMandatoryValue):
        stated = OmegaConf.to_container(composed[axis.name])
    return stated


def _at(settings: dict[str, Any], path: str) -> Any:
    for part in path.split("."):
        settings = settings.get(part, {})
    return settings


def _short(value: Any) -> str:
    """A value in a label: whole while it is short, else its end and a hash."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[-24:]}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _model(composed: DictConfig, axis: Axis) -> Any:
    if OmegaConf.select(composed, axis.name) is None:
        raise ConfigError(f"{axis.name}: nothing is chosen; type {axis.name}=...")
    plain = OmegaConf.to_container(composed[axis.name], resolve=True, throw_on_missing=True)
    name = plain.get("name") if isinstance(plain, dict) else None
    if isinstance(name, str) and len(name) > LONGEST_NAME:  # not in config/: those that are made here may be longer
        raise ConfigError(f"{axis.name}.name: at most {LONGEST_NAME} characters (given: {len(name)}, {shown(name)})")
    return parse(axis.kind, plain, axis.name)


def without_hydra(composed: DictConfig) -> DictConfig:
    """A copy of the user's part of a composed config; the interpolations in it still work."""
    return OmegaConf.masked_copy(composed, list(filter("hydra".__ne__, composed)))


def plain_data(value: Any) -> Any:
    """Dicts, lists and scalars, interpolations resolved."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
