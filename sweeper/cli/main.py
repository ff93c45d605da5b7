"""The command `sweeper`: which subcommand a command line asks for, and what its end says to the shell."""

from __future__ import annotations

import atexit
import contextlib
import errno
import faulthandler
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from sweeper.cli.streams import OutputError, usable_streams
from sweeper.errors import ConfigError, SweeperError, UnsupportedError, did_you_mean, one_line, shown

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130

SUBCOMMANDS = {
    "run": "run a sweep: what is done without a subcommand",
    "report": "show a sweep again from its files, write it as Markdown or as a page",
    "explain": "run a stored cell again and find out why it differs",
    "record": "write what a model gives for texts into a file, to compare others with it",
    "compare": "say whether two environments (versions, machines) gave the same in two sweeps of one grid",
    "published": "write a page of published figures beside a sweep's",
    "wandb": "write the runs of a sweep that Weights & Biases has not, from its files",
    "wandb-workspace": "save a workspace of Weights & Biases with the charts of a sweep, or write it as a file",
    "verify": "read every prepared checkpoint, or a sweep's cells, and say what is not as it was written",
}
"""Each is a module of `sweeper.cli` whose `main` takes its arguments and returns the exit code."""


def command() -> NoReturn:
    """`sweeper` and `python -m sweeper`: `main` in a process of its own, which ends once all that Python code has to do
    at its end is done. What native libraries free behind that takes a second, and has aborted: pyarrow's
    threads, and torch's profiler once a GPU's context was released."""
    code = FAILED  # of an error that is not ours

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)

    atexit.register(leave)  # the first to be registered is the last to be called
    with contextlib.suppress(Exception):  # standard error is closed, or nothing that a crash can write to
        faulthandler.enable()  # where native code crashes, it says which line of ours called it
    try:
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else FAILED if ended.code else 0
        raise
    except KeyboardInterrupt:
        code = INTERRUPTED
        raise


def main() -> NoReturn:
    """Runs what the command line asks for. Exit code 0, 1 (a cell failed), 2 (bad input), 130 (Ctrl-C)."""
    exit_code: int | str | None = 0  # of who reads no further
    try:
        with usable_streams():
            exit_code = dispatch(sys.argv[1:])
    except OutputError as error:
        print(f"sweeper: {one_line(str(error))}", file=sys.stderr)
        exit_code = BAD_INPUT
    sys.exit(exit_code)


def dispatch(arguments: Sequence[str]) -> int | str | None:
    """Hands the arguments to their subcommand; `run` where none is named. An error on purpose is one line.

    With HYDRA_FULL_ERROR=1 in the environment, as Hydra has it, errors keep their traceback.
    """
    named = arguments[:1] and arguments[0] in SUBCOMMANDS
    name, rest = (arguments[0], arguments[1:]) if named else ("run", arguments)
    try:
        if not named:
            _refuse_unknown_word(arguments)
        exit_code: int | str | None = import_module(f"sweeper.cli.{name.replace('-', '_')}").main(rest)
    except KeyboardInterrupt:
        print("sweeper: interrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(f"sweeper: {one_line(f'{shown(error.filename)}: {error.strerror}')}", file=sys.stderr)
        return BAD_INPUT
    except SweeperError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"sweeper{f' {name}' if named else ''}: {one_line(str(error))}", file=sys.stderr)
        return FAILED if name == "explain" and isinstance(error, UnsupportedError) else BAD_INPUT
    return exit_code


def _refuse_unknown_word(arguments: Sequence[str]) -> None:
    """A first word that is neither an option nor a choice can only be meant for a subcommand."""
    word = next(iter(arguments), "")
    if word.replace("_", "").isalnum():
        hint = did_you_mean(word, SUBCOMMANDS)
        raise ConfigError(f"{word}: no such subcommand{hint}; a choice is written KEY=VALUE")
