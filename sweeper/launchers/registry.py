"""The launchers by name. A new one is a module beside this one and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sweeper.errors import ConfigError, did_you_mean
from sweeper.launchers.inline import InlineLauncher
from sweeper.launchers.launcher import Launcher

LAUNCHERS: Mapping[str, Callable[[], Launcher]] = {
    "inline": InlineLauncher,
}


def make_launcher(name: str) -> Launcher:
    """The launcher of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in LAUNCHERS:
        raise ConfigError(f"launcher: no launcher named {name!r}{did_you_mean(name, LAUNCHERS)}")
    return LAUNCHERS[name]()
