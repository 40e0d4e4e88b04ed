"""What is read from JSON or written as it: models that do not change and hold no NaN or infinity."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A file, or a part of one, that only its own version writes: unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class OpenRecord(Record):
    """One that later versions, or other programs, may add to: unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore")
