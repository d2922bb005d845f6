"""Translates SQLite's errors into flowcore's: which of them a retry may cure, and what to do about the others."""

from __future__ import annotations

import errno
import os
import sqlite3
from typing import Final

from ...errors import CorruptRecord, NotSerializable, StoreError, StoreUnavailable, hashed_key

__all__ = ["in_words"]

_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
_FORBIDDEN: Final = frozenset(
    {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_CANTOPEN}
)
_PASSING: Final = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT})


def in_words(path: str, error: Exception) -> StoreError:
    """Return the StoreError for an error of sqlite3. StoreUnavailable means that the same call may succeed later."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return StoreUnavailable(f"The disk of {path} is full ({error}). Free some space on it.")
    if code in _BUSY:
        return StoreUnavailable(f"{path} is locked by another process ({error}). The same call may succeed later.")
    if code in _FORBIDDEN:
        return StoreUnavailable(_cannot_open(path, error))
    if code in _PASSING:
        return StoreUnavailable(f"{path} is temporarily unavailable ({error}). The same call may succeed later.")
    if code == sqlite3.SQLITE_NOTADB:
        return StoreError(f"{path} is not an SQLite database: name another file, or one that does not exist yet.")
    if code == sqlite3.SQLITE_CORRUPT:
        return CorruptRecord(f"{path} is damaged ({error}): restore it from a backup.")
    if isinstance(error, UnicodeEncodeError):
        return NotSerializable(
            f"The key or name with the hash {hashed_key(error.object)} contains a lone surrogate, which cannot be encoded as "
            "UTF-8. Use another."
        )
    return StoreError(f"SQLite refused to work on {path}: {type(error).__name__}: {error}.")


def _cannot_open(path: str, error: Exception) -> str:
    """Return the message for a file or a folder that this process cannot use."""
    if _too_many_files():
        return (
            f"{path} cannot be opened ({error}), because this process has as many files open as it may have. "
            "Raise its limit on open files, or close some."
        )
    return f"{path} cannot be used ({error}): let this process read and write the file and its folder."


def _too_many_files() -> bool:
    """Return whether this process, or the system, can open no further file. SQLite does not say so."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno in {errno.EMFILE, errno.ENFILE}
    return False
