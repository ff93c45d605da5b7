"""Hydra's side of the command line: the order of the arguments, the start, and its errors as ours."""

from __future__ import annotations

import os
import re
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import GrammarParseError, MissingMandatoryValue, OmegaConfBaseException

from sweeper.cli.config_files import install
from sweeper.cli.hydra_settings import refuse_ignored
from sweeper.config import ADDED
from sweeper.errors import ConfigError
from sweeper.models import axes
from sweeper.planning.groups import is_place

if TYPE_CHECKING:
    from sweeper.planning.grid import SweepRequest

_FULL_ERROR = "HYDRA_FULL_ERROR"
_REFUSED = ("run", "config_path", "config_name", "experimental_rerun")
"""Options of Hydra that mean nothing here: the primary config is sweeper's own."""
_UNREADABLE = (
    UserWarning,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    AssertionError,
    RecursionError,
    OSError,
    OverflowError,
)


class Expanded(Exception):
    """How the plugin hands over what it expanded: Hydra drops what a sweeper returns."""

    def __init__(self, request: SweepRequest) -> None:
        self.request = request


def start(arguments: Sequence[str], config_folder: Path, then: Callable[[SweepRequest], int]) -> int:
    """Composes the arguments, then hands the request on, with Hydra behind it. Returns the exit code.

    Args:
        then: what is done with the request.

    Raises:
        ConfigError: what Hydra or the plugin refused, in one line.
    """
    request = compose(arguments, config_folder)
    return 0 if request is None else then(request)


def compose(arguments: Sequence[str], config_folder: Path) -> SweepRequest | None:
    """Lets Hydra compose the arguments and the sweeper plugin expand them; None where Hydra showed something instead.

    Raises:
        ConfigError: what Hydra or the plugin refused, in one line.
    """
    install()
    try:
        arranged = arrange(arguments)
        with _hydra_raises():
            if "--multirun" in arranged:
                _compose_sweep(arranged, config_folder)
            else:
                sys.argv[1:] = arranged  # Hydra reads them from there alone
                hydra.main(version_base="1.3", config_path=str(config_folder), config_name="config")(_other_sweeper)()
    except Expanded as expanded:
        return expanded.request
    except ConfigError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(describe(error)) from error
    except _UNREADABLE as error:  # what Hydra and OmegaConf raise where they did not think of an input
        reason = str(error) if isinstance(error, UserWarning) else f"{type(error).__name__}: {error}"
        raise ConfigError(f"these settings cannot be composed ({reason}); {_FULL_ERROR}=1 shows where") from error
    return None


def _compose_sweep(arranged: Sequence[str], config_folder: Path) -> None:
    """What `hydra.main` does for `--multirun`, without composing everything once more to learn that it is one.

    Raises:
        Expanded: always, unless something is wrong.
    """
    parsed = get_args_parser().parse_args(arranged)
    path = create_config_search_path(str(config_folder))
    if parsed.config_dir is not None:
        folder = Path(parsed.config_dir).absolute()
        if not folder.is_dir():
            raise ConfigError(
                f"--config-dir: {folder} is no folder; it holds grid/NAME.yaml, checkpoint/NAME.yaml, ..."
            )
        path.prepend("command-line", f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
    try:
        composer = Hydra.create_main_hydra2(task_name="sweeper", config_search_path=path)
        composer.multirun(config_name="config", task_function=_other_sweeper, overrides=parsed.overrides)
    finally:
        GlobalHydra.instance().clear()


def arrange(arguments: Sequence[str]) -> list[str]:
    """Arguments in an order that Hydra takes: options, then overrides, and always `--multirun`.

    Hydra refuses overrides on both sides of an option. Every sweep, of one cell too, goes through the sweeper plugin.
    What Hydra would refuse as unknown gets `++`, and an added axis whose values are config files `+`: config files
    leave out what has a default, and the table of axes knows what there is; a reference may name other axes than the
    grid's.
    """
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        parsed, unknown = parser.parse_known_intermixed_args(list(arguments))
    except ArgumentError as error:
        raise ConfigError(f"{error}; see `python -m sweeper --hydra-help`") from None
    refused = [*unknown, *(f"--{name.replace('_', '-')}" for name in _REFUSED if getattr(parsed, name))]
    if refused:
        raise ConfigError(f"{refused[0]}: no such option; see `python -m sweeper --help`")
    shows_something = parsed.hydra_help or parsed.cfg or parsed.info or parsed.shell_completion
    options = [word for word in arguments if word not in ("-m", "--multirun", *parsed.overrides)]
    overrides = [_added(override) for override in parsed.overrides]
    for override in () if parsed.shell_completion else parsed.overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if re.match(r"hydra[./]", key):
            refuse_ignored(key, value)
    if any(override.startswith("hydra.verbose=") for override in overrides):
        overrides.append("hydra/hydra_logging=default")  # without a log there is nothing to be verbose in
    return [*options, *([] if shows_something else ["--multirun"]), *overrides]


def _added(override: str) -> str:
    """An override as Hydra takes it where the composed config lacks the key, or the value is the name of no config."""
    key, _, value = override.partition("=")
    name = key.lstrip("+~")
    if not name or (name in axes.groups() and value in ("", "null") and "=" in override):
        raise ConfigError(f"cannot read {override!r}; write {name or 'KEY'}={'NAME' if name else 'VALUE'}")
    if name in axes.groups() and value.startswith("[") and value.endswith("]"):
        value = value[1:-1]  # several options, as with commas; Hydra would merge them into one
        override = f"{key}={value}"
    if key == "fail_on" and not value.startswith("["):
        return f"{key}=[{value}]"  # several of them are one setting, no grid
    if key == "checkpoint" and is_place(value):  # a choice, which is made here and not by Hydra
        places = ",".join("'" + place.replace("'", "\\'") + "'" for place in value.strip("'\"").split(","))
        return f"checkpoint=choice({places})"
    root, dot, _ = key.partition(".")
    if root in axes.groups():
        return f"++{override}" if dot else f"+{override}" if root in ADDED else override
    return f"++{override}" if key == "reference" or key in ADDED else override


def describe(error: Exception) -> str:
    """What the user did wrong, in one line: what was given, what is allowed."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        places = "; or a folder, ./NAME, or a model of the hub, ORG/NAME" if group == "checkpoint" else ""
        allowed = ", ".join(sorted(error.options))
        return f"{group}: no config named {name!r}. Allowed: {allowed}{places} (files end in .yaml, not in .yml)"
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}; write KEY=VALUE, what is no plain word in quotes: KEY=\"'a b'\""
    if isinstance(error, MissingMandatoryValue):
        key = error.full_key or str(error).rpartition(" ")[2]
        return f"{key}: a value is missing; type {key}=..."
    refused = re.search(r"Could not override '([^']+)'", str(error))
    if refused:
        from sweeper.planning.grid import unknown_key

        key = refused.group(1)
        return "grid: write it with a plus: +grid=NAME" if key == "grid" else str(unknown_key(key))
    lines = [str(part).strip().partition("\n")[0] for part in (error, error.__cause__) if part is not None]
    said = " ".join(filter(None, dict.fromkeys(lines)))
    if isinstance(error, GrammarParseError) or "no viable alternative" in said:
        return f"an interpolation cannot be read: {said}; write ${{KEY}}"
    named = re.search(r"full_key: (\S+)", str(error))
    place = f"{named.group(1)}: " if named else ""
    return f"{place}{said}"


def _other_sweeper(_: Any) -> None:
    """What Hydra would call under another sweeper."""
    raise ConfigError("hydra/sweeper: leave it as it is")


@contextmanager
def _hydra_raises() -> Iterator[None]:
    """Hydra raises instead of printing: it has no other switch for it than this environment variable."""
    before = os.environ.get(_FULL_ERROR)
    os.environ[_FULL_ERROR] = "1"
    try:
        with warnings.catch_warnings():
            for meant in ("is not available", "Support for .yml files"):  # a folder, or a file, that is passed over
                warnings.filterwarnings("error", message=f".*{re.escape(meant)}")
            yield
    finally:
        if before is None:
            del os.environ[_FULL_ERROR]
        else:
            os.environ[_FULL_ERROR] = before
