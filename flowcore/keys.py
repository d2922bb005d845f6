"""Idempotency keys."""

# Arguments are checked at run time, for callers without a type checker.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

from enum import Enum
from typing import Final, TypeAlias

from .errors import IdempotencyError

__all__ = ["LONGEST_KEY", "NO_KEY", "Key", "NoKey", "checked_key"]


class NoKey(Enum):
    """The type of NO_KEY."""

    NO_KEY = "no key"


NO_KEY: Final = NoKey.NO_KEY
"""the idempotency key of a run that is to have none, and so is not protected against being repeated"""

Key: TypeAlias = "str | NoKey"
"""what a caller may give as an idempotency key"""

LONGEST_KEY: Final = 1024
"""the most characters that an idempotency key may have"""


def checked_key(key: object) -> str:
    """Return an idempotency key as a plain str. Raises IdempotencyError unless it is a string of a valid length."""
    if not isinstance(key, str):
        raise IdempotencyError(f"an idempotency key must be a string, not of type {type(key).__name__}.")
    if not key:
        raise IdempotencyError("an idempotency key must not be empty. Pass flowcore.NO_KEY for a run without one.")
    if len(key) > LONGEST_KEY:
        raise IdempotencyError(
            f"an idempotency key has {len(key):,} characters; the limit is {LONGEST_KEY:,}. Use a shorter one, or a "
            "hash of it.",
            key=key,
        )
    return str.__str__(key)  # a member of an Enum is formatted as something else
