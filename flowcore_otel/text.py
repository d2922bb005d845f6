"""Makes text safe to export: every name, label, attribute and message passes through `fit`."""

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
    """Return `text`, encodable as UTF-8 and at most `limit` characters long.

    A longer text is cut, and ends in … and a hash of the whole. A lone surrogate in one label would make the whole
    scrape fail, and one in a span's name the whole batch of spans.
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
    """Return the name of a span: the action and its target."""
    return _title(action, target) if len(target) <= NAME else _title.__wrapped__(action, target)


def message(error: BaseException) -> str:
    """Return the message of an error, or the name of its class if it has no message."""
    return fit(error_message(error, sys.maxsize), MESSAGE) or fit(type(error).__qualname__)


def error_type(error: BaseException | None, outcome: str = "") -> str:
    """Return the value of `error.type`: a class or an outcome, never a message or an id."""
    if outcome in {"timeout", "cancelled"}:
        return outcome
    if error is None:
        return OTHER_ERROR
    if isinstance(error, StepTimeout | RunTimeout):
        return "timeout"
    cls = type(error)
    # asyncio's CancelledError is recognized by its name, so that a program without asyncio need not import it.
    if isinstance(error, StepCancelled) or cls.__name__ == "CancelledError":
        return "cancelled"
    return fit(cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}")


def stacktrace(error: BaseException) -> str:
    """Return the traceback as text, with at most its 64 innermost frames."""
    return fit("".join(traceback.format_exception(error, limit=_FRAMES)), STACKTRACE)


def hashed(key: str) -> str:
    """Return the first 16 hex digits of the key's SHA-256. They find a known key, and do not hide a guessable one."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:16]
