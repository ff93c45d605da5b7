"""The parser of a subcommand's arguments, whose errors are one line like all others."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import NoReturn

from sweeper.errors import ConfigError


class Arguments(ArgumentParser):
    """argparse's parser without abbreviations; what it refuses is a `ConfigError` that names the help."""

    def __init__(self, prog: str, description: str, usage: str | None = None) -> None:
        super().__init__(prog=prog, description=description, usage=usage, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")
