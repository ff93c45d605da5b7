"""What all records have in common: the version of their schema, and how they are written as JSON."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 1


class Record(BaseModel):
    """A part of a document on disk. Nothing in it changes, and a field that is not known is an error.

    Not-a-number and infinity are written as the strings "NaN", "Infinity" and "-Infinity", because JSON has no word for
    them; reading turns them back into floats.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")
