"""Opening the file of an SQLiteStore. A new file gets its tables; an existing one is used only if it has exactly these,
or those of an earlier flowcore.

A file of an earlier flowcore stays as it is. During a rolling deploy its processes use the file too, and after a
roll-back they use it again; they would refuse a file with tables that they do not know.
"""

from __future__ import annotations

import functools
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from ...errors import StoreError
from .words import in_words

__all__ = ["PATIENCE", "Schema", "open_file"]

PATIENCE: Final = 5.0
"""seconds to wait for another process that is writing"""
_APPLICATION: Final = 0x666C6F77
"""the application id in the file's header: "flow" in ASCII"""
_VERSION: Final = 2
_OBJECTS: Final = (
    "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE substr(name, 1, 7) <> 'sqlite_' ORDER BY 2, 1"
)


class Schema(NamedTuple):
    """What a file consists of. `statements`: create its tables, indices and triggers. `added`: the names of those that
    the files of an earlier flowcore lack."""

    statements: tuple[str, ...]
    added: frozenset[str] = frozenset()


# Bytes that are not UTF-8 are read as lone surrogates, so that the decoder can refuse them and name their record.
_text: Final = functools.partial(str, encoding="utf-8", errors="surrogateescape")


def open_file(
    path: str,
    schema: Schema,
    prepare: Callable[[sqlite3.Connection], None] | None = None,
    *,
    full: bool,
    reads: bool,
) -> sqlite3.Connection:
    """Open a connection to the file. A new file gets the tables that the statements of `schema` create. `prepare`:
    called with the connection; `full`: whether a commit waits for the disk; `reads`: the connection never writes.
    Raises StoreError if the file is not of this version of flowcore."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return _prepared(path, schema, prepare, full=full, reads=reads)
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            # SQLite itself waits for others, except when it switches to a write-ahead log.
            if code != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise in_words(path, error) from error
            time.sleep(0.01)


def _prepared(
    path: str,
    schema: Schema,
    prepare: Callable[[sqlite3.Connection], None] | None,
    *,
    full: bool,
    reads: bool,
) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{Path(path).as_uri()}?mode=rw", uri=True, timeout=PATIENCE, isolation_level=None, check_same_thread=False
    )
    connection.text_factory = _text
    try:
        _prepare(connection, path, schema, full=full)
        if prepare is not None:
            prepare(connection)
        if reads:
            connection.execute("PRAGMA query_only = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: str, schema: Schema, *, full: bool) -> None:
    def ask(sql: str) -> Any:
        return connection.execute(sql).fetchone()[0]

    connection.execute("PRAGMA trusted_schema = OFF")  # a prepared file cannot have code run by its schema
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA secure_delete = ON")  # what is erased or forgotten is overwritten
    empty = not ask("SELECT count(*) FROM sqlite_master") and not ask("PRAGMA user_version")
    if not empty:
        if ask("PRAGMA application_id") != _APPLICATION:
            raise StoreError(f"{path} is a database of another application: SQLiteStore needs a file of its own.")
        if (version := ask("PRAGMA user_version")) != _VERSION:
            raise StoreError(
                f"{path} was written by another version of flowcore (its schema is {version}, and this one supports "
                f"{_VERSION}): use that version, or another file."
            )
    if ask("PRAGMA journal_mode = WAL") != "wal":
        raise StoreError(f"SQLite cannot use a write-ahead log for {path}: choose a file on a local disk.")
    connection.execute(f"PRAGMA synchronous = {'FULL' if full else 'NORMAL'}")
    connection.execute(f"PRAGMA fullfsync = {int(full)}")  # macOS: a plain fsync leaves data in the drive's cache
    if empty:
        connection.execute("BEGIN IMMEDIATE")
        if not ask("PRAGMA user_version"):  # another process may have been quicker
            for statement in schema.statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {_VERSION}")
        connection.execute("COMMIT")
    expected, found = _expected(schema.statements), connection.execute(_OBJECTS).fetchall()
    if found != expected and found != [row for row in expected if row[1] not in schema.added]:
        raise StoreError(
            f"{path} has tables, indices, triggers or views that flowcore does not make, so it may have been prepared "
            "by someone: use another file, or remove what was added."
        )


@functools.cache
def _expected(statements: tuple[str, ...]) -> list[Any]:
    connection = sqlite3.connect(":memory:")
    try:
        for statement in statements:
            connection.execute(statement)
        return connection.execute(_OBJECTS).fetchall()
    finally:
        connection.close()
