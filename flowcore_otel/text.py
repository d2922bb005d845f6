"""Text from outside, made fit to leave the process: every name, label, attribute and message comes through `fit`."""

from __future__ import annotations

import hashlib
import sys
import traceback
from functools import lru_cache
from typing import Final

from flowcore.errors import RunTimeout, StepCancelled, StepTimeout, error_message

from .names import OTHER_ERROR

__all__ = ["error_type", "fit", "hashed", "message", "stacktrace", "title"]

NAME: Final = 128
MESSAGE: Final = 1024
STACKTRACE: Final = 16_384
_FRAMES: Final = -64  # the innermost ones


def fit(text: str, limit: int = NAME) -> str:
    """`text`, encodable as UTF-8 and at most `limit` characters long; what was longer ends in … and a hash of it all.

    A lone surrogate in one label would kill a whole scrape, and one in a span's name its whole batch.
    """
    if text.isascii() and len(text) <= limit:
        return text
    data = text.encode("utf-8", "backslashreplace")
    clean = data.decode("utf-8")
    if len(clean) <= limit:
        return clean
    mark = "…" + hashlib.sha256(data).hexdigest()[:8]
    return clean[: limit - len(mark)] + mark


@lru_cache(maxsize=4096)
def _title(action: str, target: str) -> str:
    return f"{action} {fit(target)}"


def title(action: str, target: str) -> str:
    """A span's name."""
    return _title(action, target) if len(target) <= NAME else _title.__wrapped__(action, target)


def message(error: BaseException) -> str:
    """What an error says, or its class where it says nothing."""
    return fit(error_message(error, sys.maxsize), MESSAGE) or fit(type(error).__qualname__)


def error_type(error: BaseException | None, outcome: str = "") -> str:
    """The value of `error.type`: few values, never an id."""
    if outcome in {"timeout", "cancelled"}:
        return outcome
    if error is None:
        return OTHER_ERROR
    if isinstance(error, StepTimeout | RunTimeout):
        return "timeout"
    cls = type(error)
    # asyncio's CancelledError goes by its name, so that a program without asyncio need not import it.
    if isinstance(error, StepCancelled) or cls.__name__ == "CancelledError":
        return "cancelled"
    return fit(cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}")


def stacktrace(error: BaseException) -> str:
    """The traceback as text; of a deep one, its innermost frames."""
    return fit("".join(traceback.format_exception(error, limit=_FRAMES)), STACKTRACE)


def hashed(key: str) -> str:
    """The first 16 hex digits of SHA-256: enough to find a key that is known, and to guess one that is easy to guess."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]
