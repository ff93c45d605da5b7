"""What the classes of settings are built on: frozen models, and words that a terminal and a file system take."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from sweeper.errors import printable, shown

LONGEST_NAME = 120  # of what becomes a folder, or a word in a table; file systems end at 255


def _plain(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    if printable(text) != text or "\n" in text or "\t" in text:
        raise ValueError(f"holds a character that cannot be printed (given: {shown(text)})")
    return text


def _folder_name(text: str) -> str:
    if text in (".", "..") or "/" in text or "\\" in text:
        raise ValueError(
            f"names one folder, without / or \\ (given: {shown(text)}); output_dir=FOLDER says where it lies"
        )
    if len(os.fsencode(text)) > LONGEST_NAME:
        raise ValueError(f"holds {len(text)} characters; at most {LONGEST_NAME}")
    return text


Plain = Annotated[str, AfterValidator(_plain)]
"""One line of text that shows in a terminal as it is."""
FolderName = Annotated[Plain, AfterValidator(_folder_name)]
"""The name of one folder."""


class Frozen(BaseModel):
    """Settings that never change; a key that they do not have is an error."""

    # built when it first validates something: --help never does
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)
