"""Which cells cannot run on this machine or with their checkpoint: known before any weight is loaded.

The entries of the axes say it. What depends on the shapes of a model (a kernel that refuses a mask, or grouped-query
heads) is found when it runs; see `attention.refusals_as_unsupported`.
"""

from __future__ import annotations

from functools import cache

from sweeper.config import Cell, label
from sweeper.environment import version
from sweeper.models import axes


def unsupported_reason(cell: Cell) -> str | None:
    """One sentence that says what cannot run and what would; None where nothing is known to stand in the way."""
    reasons = (axis.unsupported(cell) for axis in axes.table())
    return next((reason for reason in reasons if reason is not None), None) or _missing_package(cell)


def _missing_package(cell: Cell) -> str | None:
    for axis in axes.table():
        for package in axis.needs(cell) if axis.needs is not None else ():
            if not _installed(package):
                value = label(getattr(cell, axis.name))
                missing = f"{value} needs the package {package}, which is not installed"
                return f"{missing}; install it or use another {axis.name}"
    return None


@cache
def _installed(distribution: str) -> bool:
    return version(distribution) is not None
