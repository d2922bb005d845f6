"""An exception as text, for a durable store."""

from __future__ import annotations

import traceback
from typing import Final

from ..errors import RunFailed, error_message

__all__ = ["texts_of"]

_MESSAGE: Final = 1024  # characters of an error's message that are kept
_TRACEBACK: Final = 16 * 1024  # characters of its traceback that are kept: the last ones


def texts_of(error: BaseException, *, brief: bool = False) -> dict[str, str]:
    """The type, message and traceback of an error. With `brief`, the traceback is only the class and the line that
    raised the error."""
    if isinstance(error, RunFailed) and error.error_type:  # it only stands for the original error
        kept = "" if brief and "\n" in error.traceback_text else error.traceback_text
        return {"type": error.error_type, "message": error.message, "traceback": kept}
    kind = type(error).__name__
    try:
        text = f"{kind}{_line(error)}" if brief else "".join(traceback.format_exception(error))
    except Exception as failure:  # noqa: BLE001 - formatting a user's exception may raise anything
        text = f"(its traceback could not be formatted: {type(failure).__name__})"
    if len(text) > _TRACEBACK:
        text = "…" + text[-_TRACEBACK:]
    return {"type": kind, "message": error_message(error, _MESSAGE), "traceback": text}


def _line(error: BaseException) -> str:
    """The file and the line where an error was raised, or an empty text."""
    frames = traceback.extract_tb(error.__traceback__, limit=-1)
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
