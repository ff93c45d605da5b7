"""Hydra's own settings: which of them act here, and for all others what to type instead.

One that is taken without acting would be a lie, so that it is refused, on the command line and in config files alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sweeper.errors import ConfigError, shown

_ACT = ("hydra.sweeper.params", "hydra.sweeper.exclude", "hydra.searchpath", "hydra.verbose", "hydra.hydra_logging")
_ACT_ON_OUTPUT = ("hydra.help", "hydra.hydra_help", "hydra.env")

_FOLDER = (
    "results lie in OUTPUT_DIR/GRID/SWEEP, with the composed config in its .hydra; type output_dir=FOLDER sweep=NAME"
)
_RULES: dict[str, tuple[tuple[str, ...], str]] = {
    "hydra.run": ((".",), _FOLDER),
    "hydra.sweep": ((".",), _FOLDER),
    "hydra.output_subdir": (("null",), _FOLDER),
    "hydra.job.chdir": (("false", "null"), "relative paths are those of the folder where the command is typed"),
    "hydra.job.env_set": ((), "set variables before the command: NAME=VALUE python -m sweeper ..."),
    "hydra.job.name": (("sweeper",), "type sweep=NAME to name a sweep's folder"),
    "hydra.launcher": (("basic",), "sweeper has launchers of its own; type launcher=NAME"),
    "hydra.sweeper": (("grid",), "every command, of one cell too, goes through sweeper's own, grid; leave it out"),
    "hydra.job_logging": (("none", "disabled"), "no log is written: what became of a cell is in its cell.json"),
    "hydra.mode": (("multirun", "null"), "several values, separated by commas, make a grid; leave it out"),
}
"""Prefix of a key -> the values that say how it is anyway, in lower case, and what is said to any other."""


def refuse_ignored(key: str, value: Any, where: str = "") -> None:
    """Raises ConfigError for one of Hydra's settings that would be ignored.

    Args:
        key: `hydra.run.dir`, or a group as Hydra writes it: `hydra/launcher`.
        value: what it was given.
        where: the config file, if not the command line.
    """
    dotted = key.replace("/", ".")
    if dotted == "hydra.verbose" and str(value).startswith("{"):
        raise ConfigError(f"hydra.verbose: true, the name of a logger or a list of names (given: {shown(value)})")
    if any(_below(dotted, prefix) for prefix in (*_ACT, *_ACT_ON_OUTPUT)):
        return
    found = next((rule for prefix, rule in _RULES.items() if _below(dotted, prefix)), ((), "leave it out"))
    same, instead = found
    if _word(value) not in same:
        place = f"{where}: " if where else ""
        raise ConfigError(f"{place}{key}={value}: this setting of Hydra has no effect here; {instead}")


def refuse_ignored_in(config: Any, where: str) -> None:
    """Raises ConfigError for what a config file sets of Hydra that would be ignored; `config` is its plain content."""
    if not isinstance(config, dict):
        return
    _check_kinds(config, where)
    for key, value in _leaves(config.get("hydra"), "hydra"):
        refuse_ignored(key, value, where)
    defaults = config.get("defaults")
    for entry in defaults if isinstance(defaults, list) else ():
        for group, choice in entry.items() if isinstance(entry, dict) else ():
            name = str(group).removeprefix("override").removeprefix("optional").strip().lstrip("/")
            if name.startswith("hydra/"):
                refuse_ignored(name, choice, where)


def _check_kinds(config: dict[Any, Any], where: str) -> None:
    """Whether what Hydra would merge is of the kind that it merges with."""
    kinds: tuple[tuple[tuple[str, ...], type, str], ...] = (
        (("hydra",), dict, "maps its settings to values"),
        (("hydra", "sweeper"), dict, "maps params and exclude to values"),
        (("hydra", "sweeper", "params"), dict, "maps axes to values, e.g. {dtype: 'float32,bfloat16'}"),
        (("hydra", "sweeper", "exclude"), list, "is a list of rules, each with a dash before it"),
    )
    for path, kind, what in kinds:
        value: Any = config
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None and not isinstance(value, kind):
            raise ConfigError(f"{where}: {'.'.join(path)} {what} (given: {shown(value)})")


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value and not any(_below(key, prefix) for prefix in _ACT):
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}")
    elif key != "hydra":
        yield key, value


def _below(key: str, prefix: str) -> bool:
    return key == prefix or key.startswith(f"{prefix}.")


def _word(value: Any) -> str:
    return "null" if value is None else str(value).strip("'\"").lower()
