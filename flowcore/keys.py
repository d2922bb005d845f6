"""Idempotency keys, of runs and of their steps."""

# Arguments are checked at run time, for callers without a type checker.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

from enum import Enum
from typing import Final, TypeAlias

from .errors import IdempotencyError

__all__ = ["LONGEST_KEY", "NO_KEY", "Key", "NoKey", "checked_key", "step_key"]


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


def step_key(namespace: str, workflow: str, key: str, generation: int, step: str, *, undo: bool) -> str:
    """Return the value of `ctx.step_key`. It is the same for each attempt and takeover, and another one for the undo
    and for a new run after the key was released."""
    import hashlib

    digest = hashlib.sha256()
    for part in (namespace, workflow, key, str(generation), step, "undo" if undo else "do"):
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()
