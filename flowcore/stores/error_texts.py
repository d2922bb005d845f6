"""An exception as text, for a durable store."""

from __future__ import annotations

import traceback
from typing import Final

from ..errors import RunFailed, error_message

__all__ = ["texts_of"]

_MESSAGE: Final = 1024  # characters of an error's message that are kept
_TRACEBACK: Final = 16 * 1024  # of its traceback: the last ones


def texts_of(error: BaseException, *, brief: bool = False) -> dict[str, str]:
    """An error's type, message and traceback; `brief`: of the traceback only the class and the line that raised it."""
    if isinstance(error, RunFailed) and error.error_type:  # which only stands for another one
        kept = "" if brief and "\n" in error.traceback_text else error.traceback_text
        return {"type": error.error_type, "message": error.message, "traceback": kept}
    kind = type(error).__name__
    try:
        text = f"{kind}{_line(error)}" if brief else "".join(traceback.format_exception(error))
    except Exception as failure:  # noqa: BLE001 - an exception may be anything
        text = f"(its traceback cannot be had: {type(failure).__name__})"
    if len(text) > _TRACEBACK:
        text = "…" + text[-_TRACEBACK:]
    return {"type": kind, "message": error_message(error, _MESSAGE), "traceback": text}


def _line(error: BaseException) -> str:
    """Where it was raised."""
    frames = traceback.extract_tb(error.__traceback__, limit=-1)
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
