"""Hydra's side of the command line: the order of the arguments, the start, and its errors as ours."""

from __future__ import annotations

import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from sweeper.config import ADDED
from sweeper.errors import ConfigError
from sweeper.models import axes
from sweeper.planning.groups import is_place

if TYPE_CHECKING:
    from sweeper.planning.grid import SweepRequest

_FULL_ERROR = "HYDRA_FULL_ERROR"

CarryOut = Callable[["SweepRequest"], int]
_carry_out: ContextVar[CarryOut] = ContextVar("carry_out")


def carry_out(request: SweepRequest) -> int:
    """Does with a request what the command line asked for; the plugin calls it. Returns the exit code."""
    return _carry_out.get()(request)


def start(arguments: Sequence[str], config_folder: Path, then: CarryOut) -> int | str | None:
    """Lets Hydra compose the arguments, and the sweeper plugin make a request of them. Returns the exit code.

    Args:
        then: what is done with the request.

    Raises:
        ConfigError: what Hydra refused, in one line.
    """
    given = _carry_out.set(then)
    try:
        sys.argv[1:] = arrange(arguments)  # Hydra reads them from there alone
        with _hydra_raises():
            hydra.main(version_base="1.3", config_path=str(config_folder), config_name="config")(_other_sweeper)()
    except SystemExit as end:  # the plugin's exit code
        return end.code
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(one_line(error)) from error
    finally:
        _carry_out.reset(given)
    return 0


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
    if unknown or parsed.run:
        raise ConfigError(f"{unknown[0] if unknown else '--run'}: no such option; see `python -m sweeper --help`")
    options = [word for word in arguments if word not in ("-m", "--multirun", *parsed.overrides)]
    overrides = [_added(override) for override in parsed.overrides]
    shows_something = parsed.hydra_help or parsed.cfg or parsed.info or parsed.shell_completion
    return [*options, *([] if shows_something else ["--multirun"]), *overrides]


def _added(override: str) -> str:
    """An override as Hydra takes it where the composed config lacks the key, or the value is the name of no config."""
    key, _, value = override.partition("=")
    if key == "fail_on" and not value.startswith("["):
        return f"{key}=[{value}]"  # several of them are one setting, no grid
    if key == "checkpoint" and is_place(value):  # a choice, which is made here and not by Hydra
        places = ",".join("'" + place.replace("'", "\\'") + "'" for place in value.strip("'\"").split(","))
        return f"checkpoint=choice({places})"
    root, dot, _ = key.partition(".")
    if root in axes.groups():
        return f"++{override}" if dot else f"+{override}" if root in ADDED else override
    return f"++{override}" if key == "reference" or key in ADDED else override


def one_line(error: Exception) -> str:
    """What the user did wrong, in one line: what was given, what is allowed."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        places = "; or a folder, ./NAME, or a model of the hub, ORG/NAME" if group == "checkpoint" else ""
        return f"{group}: no config named {name!r}. Allowed: {', '.join(sorted(error.options))}{places}"
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}; write KEY=VALUE, with a value that has spaces or brackets in quotes"
    if isinstance(error, MissingMandatoryValue):
        key = error.full_key or str(error).rpartition(" ")[2]
        return f"{key}: a value is missing; type {key}=..."
    refused = re.search(r"Could not override '([^']+)'", str(error))
    if refused:
        from sweeper.planning.grid import unknown_key

        key = refused.group(1)
        return "grid: write it with a plus: +grid=NAME" if key == "grid" else str(unknown_key(key))
    return " ".join(" ".join(str(part) for part in (error, error.__cause__) if part is not None).split())


def _other_sweeper(_: Any) -> None:
    """What Hydra would call under another sweeper."""
    raise ConfigError("hydra/sweeper: leave it as it is")


@contextmanager
def _hydra_raises() -> Iterator[None]:
    """Hydra raises instead of printing: it has no other switch for it than this environment variable."""
    before = os.environ.get(_FULL_ERROR)
    os.environ[_FULL_ERROR] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FULL_ERROR]
        else:
            os.environ[_FULL_ERROR] = before
