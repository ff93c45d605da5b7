"""Turns what the user composed into the cells of a sweep: overrides, config groups, exclude rules.

Hydra composes once (a composition costs tens of milliseconds); the product over the axes is made here.
"""

from __future__ import annotations

import difflib
import itertools
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel

from sweeper import config
from sweeper.config import ADDED, Cell, Inputs, Settings, label, parse
from sweeper.errors import ConfigError, did_you_mean, shown
from sweeper.inputs.texts import validate_inputs
from sweeper.models import axes
from sweeper.models.axis import Axis
from sweeper.planning.groups import Groups, plain_data, without_hydra
from sweeper.records.recording import read_texts

DEFAULT_REFERENCE: dict[str, Any] = {"dtype": "float32", "load_strategy": "dtype_at_load", "attention": "eager"}
"""Stands for `reference: null`. Not written out in conf/config.yaml: Hydra would merge a grid's `reference` into it."""

RECORDING = "recording:"
"""What stands before a file that cells are compared with, as `reference`."""

SETTINGS: tuple[str, ...] = tuple(Settings.model_fields)
NOT_AXES: tuple[str, ...] = (*SETTINGS, "reference", "reported")
MOST_COMBINATIONS = 200_000


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """What the user asked for, validated.

    Attributes:
        grid: the chosen grid, or `single`.
        settings: what belongs to the sweep and not to a cell.
        cells: the candidates, without duplicates; at least one.
        reference: axis -> validated value. Every other axis of a reference takes the candidate's own value.
        recording: the file that the cells are compared with, in place of a reference; they read its texts.
        excluded: labels of each excluded combination, and the rule that excluded it.
        reported: the composed option of conf/reported, which `sweeper.published` reads; None without any.
        config: the composed config as plain data, with `config_dirs`, `overrides`, `params` and `exclude`; kept beside
            the results.
    """

    grid: str
    settings: Settings
    cells: tuple[Cell, ...]
    reference: dict[str, Any]
    excluded: tuple[tuple[dict[str, Any], dict[str, Any]], ...]
    recording: Path | None = None
    reported: dict[str, Any] | None = None
    config: dict[str, Any]

    @property
    def device(self) -> str:
        """The device whose versions and driver identify the results: cuda as soon as one cell runs there."""
        used = {cell.device for cell in self.cells} | {self.reference.get("device")}
        return "cuda" if "cuda" in used else "cpu"


def expand(loader: ConfigLoader, master: DictConfig, arguments: Sequence[str]) -> SweepRequest:
    """Expands a composed config into the cells of a sweep.

    Args:
        loader: Hydra's, for the config groups.
        master: the config that Hydra composed; comma-separated overrides are not applied in it.
        arguments: the overrides of the command line, without those of `hydra`.

    Raises:
        ConfigError: one line: what was given, what is allowed.
    """
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(list(arguments))
    _check_overrides(overrides)
    params = plain_data(OmegaConf.select(master, "hydra.sweeper.params")) or {}
    rules = plain_data(OmegaConf.select(master, "hydra.sweeper.exclude")) or []
    settings = {key: plain_data(master[key]) for key in SETTINGS if key in master}
    parsed_settings = parse(Settings, settings)  # first: it is the cheapest to check
    composed = plain_data(without_hydra(master))
    if isinstance(composed.get("grid"), dict):
        raise ConfigError("grid: the first line of the grid's file must be: # @package _global_")
    unknown = [key for key in composed if key not in (*axes.names(), *NOT_AXES)]
    if unknown:
        raise unknown_key(unknown[0])
    assignments = _params(loader, params) | {
        override.key_or_group: _values(override.key_or_group, override)
        for override in overrides
        if _is_axis(override.key_or_group)
    }
    _check_number(math.prod(map(len, assignments.values())), "grid")
    groups = Groups(loader, master, overrides)
    values = {axis.name: _axis_values(axis, assignments, composed, groups) for axis in axes.table()}
    given = _given_reference(overrides, composed)
    recording = _recording(given, overrides)
    if recording is not None:
        values["inputs"] = [_recorded_texts(recording, inputs) for inputs in values["inputs"]]
    cells, excluded = _product(values, rules, groups)
    for inputs in {cell.inputs for cell in cells}:
        validate_inputs(inputs)  # a file that is not there costs no model load
    shown = {"config_dirs": _named_dirs(master), "overrides": list(arguments), "params": params, "exclude": rules}
    return SweepRequest(
        grid=str(master.hydra.runtime.choices.get("grid") or "single"),
        settings=parsed_settings,
        cells=cells,
        reference={} if recording is not None else _reference(given, groups),
        recording=recording,
        excluded=excluded,
        reported=composed.get("reported"),
        config=composed | shown,
    )


def _named_dirs(master: DictConfig) -> list[str]:
    """What `--config-dir` named, as seen from here: the command that is shown again has to name them too."""
    sources = master.hydra.runtime.config_sources
    return [os.path.relpath(source.path) for source in sources if source.provider.endswith("command-line")]


def unknown_key(key: str) -> ConfigError:
    """The error for a key that no config has: what is allowed in its place."""
    root, _, rest = key.partition(".")
    if root == "reference":
        return ConfigError(f"{key}: write the whole reference, e.g. 'reference={{dtype:float64,attention:eager}}'")
    allowed = [*axes.names(), *NOT_AXES]
    if root == "wandb" and rest:
        allowed = [f"wandb.{field}" for field in config.WandbSettings.model_fields]
    return ConfigError(f"{key}: no such key{did_you_mean(key, allowed)}")


# ---- overrides and params ----------------------------------------------------------------------------------------


def _check_overrides(overrides: Iterable[Override]) -> None:
    """Refuses what cannot be swept, and what Hydra would ignore without a word."""
    for override in overrides:
        key = override.key_or_group
        if override.is_delete():
            raise ConfigError(f"{override.input_line}: nothing can be deleted; give {key} a value")
        if not override.is_sweep_override() or _is_axis(key):
            continue
        if key == "grid":
            first = next(override.sweep_string_iterator())
            raise ConfigError(f"{override.input_line}: one grid at a time: type +grid={first}")
        raise _not_an_axis(key)


def _params(loader: ConfigLoader, params: dict[str, Any]) -> dict[str, list[Any]]:
    """The axes that a grid file varies."""
    found: dict[str, list[Any]] = {}
    parser = OverridesParser.create(config_loader=loader)
    for key, value in params.items():
        if not isinstance(key, str) or not _is_axis(key):
            raise _not_an_axis(str(key))
        if not isinstance(value, str):
            found[key] = _several(key, value)
            continue
        try:
            found[key] = _values(key, parser.parse_override(f"{key}={value}"))
        except HydraException:
            hint = "write the values with commas, or as a list: [A, B]"
            raise ConfigError(f"hydra.sweeper.params.{key}: cannot read {shown(value)}; {hint}") from None
    return found


def _several(key: str, value: Any) -> list[Any]:
    """The values that a list means: a grid, unless the setting itself is a list (`inputs.token_ids`)."""
    if not isinstance(value, list) or _is_list(key):
        return [value]
    if not value:
        raise ConfigError(f"{key}: the list is empty; give a value")
    return value


def _is_list(key: str) -> bool:
    """Whether one value of the key is a list; what a geometry holds is as it is written."""
    group, _, setting = key.partition(".")
    return group in axes.groups() and setting.partition(".")[0] in (
        *(name for name, field in Inputs.model_fields.items() if "tuple" in str(field.annotation)),
        *("ignore_weights", "geometry"),
    )


def _is_axis(key: str) -> bool:
    return key in axes.names() or key.partition(".")[0] in axes.groups()


def _not_an_axis(key: str) -> ConfigError:
    if key.partition(".")[0] not in NOT_AXES:
        return unknown_key(key)
    allowed = ", ".join(axes.names())
    return ConfigError(f"{key}: belongs to the whole sweep and takes one value; only axes can be swept: {allowed}")


def _values(key: str, override: Override) -> list[Any]:
    """The values that an override gives: several for `a,b`, `[a,b]`, `choice(a,b)`, `range(0,4)` and `glob(*)`."""
    if not override.is_sweep_override():
        return _several(key, override.value())
    if not override.is_discrete_sweep():
        hint = "an interval has no list of values; write them with commas or range()"
        raise ConfigError(f"{override.input_line}: {hint}")
    parser = OverridesParser.create()
    texts = list(itertools.islice(override.sweep_string_iterator(), MOST_COMBINATIONS + 1))
    _check_number(len(texts), override.input_line)
    if not texts:
        raise ConfigError(f"{override.input_line}: gives no value")
    return [_value(parser, text) for text in texts]


def _value(parser: OverridesParser, text: str) -> Any:
    """One of several values; what is no value of Hydra's grammar was quoted, and is itself."""
    try:
        return parser.parse_override(f"value={text}").value()
    except HydraException:
        return text


def _check_number(combinations: int, what: str | None) -> None:
    if combinations > MOST_COMBINATIONS:
        raise ConfigError(
            f"{what}: more than {MOST_COMBINATIONS:,} combinations, which no sweep ends; give fewer values"
        )


# ---- values of an axis -------------------------------------------------------------------------------------------


def _axis_values(axis: Axis, assignments: dict[str, list[Any]], composed: dict[str, Any], groups: Groups) -> list[Any]:
    if axis.group:
        values = list(groups.variants(axis, assignments))
    else:
        default = ADDED[axis.name][1] if axis.name in ADDED else None  # conf/config.yaml has the package's own
        values = [_validated(axis, value) for value in assignments.get(axis.name, [composed.get(axis.name, default)])]
    return list(dict.fromkeys(values))


def _validated(axis: Axis, value: Any, where: str = "") -> Any:
    """A scalar axis' value; `where` is the key under which it was given, if that is not the axis itself."""
    if value is None or value == "???":
        raise ConfigError(f"{where or axis.name}: a value is missing; type {axis.name}=...")
    if isinstance(value, str) and value in axis.typed:
        value = axis.typed[value]()
    try:
        return parse(axis.kind, value, where or axis.name)
    except ConfigError as error:
        word = _meant(axis, value)
        hint = f"; type {axis.name}={word}" if word and not where else f"; did you mean {word}?" if word else ""
        raise ConfigError(f"{error}{hint}") from None


def _meant(axis: Axis, value: Any) -> str | None:
    """The word that the user most likely meant, if there is one."""
    if isinstance(value, list):
        return ",".join(str(element) for element in value)
    close = difflib.get_close_matches(str(value), axis.words(), n=1)
    return axis.aliases.get(str(value).lower()) or (close[0] if close else None)


# ---- the product -------------------------------------------------------------------------------------------------


def _product(
    values: dict[str, list[Any]], rules: list[dict[str, Any]], groups: Groups
) -> tuple[tuple[Cell, ...], tuple[tuple[dict[str, Any], dict[str, Any]], ...]]:
    _check_number(math.prod(len(one) for one in values.values()), "grid")
    if not isinstance(rules, list):
        raise ConfigError(f"hydra.sweeper.exclude: a list of rules, each with a dash before it (given: {shown(rules)})")
    matchers = [(rule, _matcher(rule, values, groups)) for rule in rules]
    cells: list[Cell] = []
    excluded: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for combination in itertools.product(*values.values()):
        cell = Cell(**dict(zip(values, combination, strict=True)))
        labels = cell.axes()
        matching = (
            rule for rule, wanted in matchers if all(labels[axis] in allowed for axis, allowed in wanted.items())
        )
        rule = next(matching, None)
        if rule is None:
            cells.append(cell)
        else:
            excluded.append((labels, rule))
    if not cells:
        raise ConfigError(f"no cell is left: hydra.sweeper.exclude rules out all {len(excluded)} combinations")
    return tuple(cells), tuple(excluded)


def _matcher(rule: Any, varied: dict[str, list[Any]], groups: Groups) -> dict[str, tuple[Any, ...]]:
    """An exclude rule as axis -> labels; a rule's value is one label or a list of them."""
    where = "hydra.sweeper.exclude"
    if not isinstance(rule, dict) or not rule:
        example = "{dtype: float32, attention: sdpa}"
        raise ConfigError(f"{where}: a rule maps axes to values, e.g. {example} (given: {shown(rule)})")
    matcher = {}
    for axis, given in rule.items():
        _check_axis(axis, where)
        values = given if isinstance(given, list) else [given]
        matcher[axis] = tuple(_excluded_label(axes.axis(axis), value, varied[axis], groups) for value in values)
    return matcher


def _excluded_label(axis: Axis, value: Any, varied: list[Any], groups: Groups) -> str | bool:
    """The label that a rule names. Of a group, one of its values here, or the name of one of its files."""
    where = f"hydra.sweeper.exclude.{axis.name}"
    if not axis.group:
        return label(_validated(axis, value, where))
    known = dict.fromkeys([*(str(label(one)) for one in varied), *groups.names(axis)])
    if str(value) not in known:
        raise ConfigError(f"{where}: nothing is named {shown(value)}{did_you_mean(str(value), known)}")
    return str(value)


def _check_axis(axis: Any, where: str) -> None:
    if axis not in axes.names():
        raise ConfigError(f"{where}.{axis}: no such axis. Allowed: {', '.join(axes.names())}")


def _given_reference(overrides: Iterable[Override], composed: dict[str, Any]) -> Any:
    """What the user gave. `reference={...}` on the command line replaces the grid's; Hydra would merge."""
    typed = [override.value() for override in overrides if override.key_or_group == "reference"]
    given = typed[-1] if typed else composed.get("reference")
    return DEFAULT_REFERENCE if given is None else given


def _recording(given: Any, overrides: Iterable[Override]) -> Path | None:
    """The file of `reference=recording:FILE`; None for any other reference."""
    if not isinstance(given, str) or not given.startswith(RECORDING):
        return None
    path = Path(given.removeprefix(RECORDING)).expanduser()
    try:
        read_texts(path)
    except ConfigError as error:
        raise ConfigError(f"reference: {error}") from None
    others = (override for override in overrides if override.key_or_group.partition(".")[0] == "inputs")
    for override in others:
        if override.key_or_group != "inputs.batch_size":
            raise ConfigError(f"{override.input_line}: a recording brings its own texts; leave out inputs=")
    return path


def _recorded_texts(recording: Path, inputs: Inputs) -> Inputs:
    return Inputs(name=recording.stem, recording=str(recording), batch_size=inputs.batch_size)


def _reference(given: Any, groups: Groups) -> dict[str, Any]:
    """The axes that a reference fixes."""
    if not isinstance(given, dict):
        example = f"{{dtype: float32, attention: eager}}, or {RECORDING}FILE"
        raise ConfigError(f"reference: maps axes to values, e.g. {example} (given: {shown(given)})")
    return {axis: _reference_value(axis, value, groups) for axis, value in given.items()}


def _reference_value(axis: str, value: Any, groups: Groups) -> Any:
    _check_axis(axis, "reference")
    if axis not in axes.groups():
        return _validated(axes.axis(axis), value, f"reference.{axis}")
    if isinstance(value, dict | list | BaseModel):
        raise ConfigError(f"reference.{axis}: write the name of one of conf/{axis} (given: {shown(value)})")
    return groups.option(axes.axis(axis), str(value))
