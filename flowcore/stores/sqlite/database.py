"""The file of an SQLiteStore: made, opened, shared by threads and processes, given up across a fork; its errors in words.

One connection per process, guarded by a lock: SQLite lets one writer in at a time, and threads that wait for a lock are
woken in turn, while connections that wait for each other poll (measured: 16 threads on a connection each need five times
as long for a durable commit).
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from ...errors import CorruptRecord, NotSerializable, StoreError, StoreUnavailable, safe_repr
from .group_commit import GroupCommit

__all__ = ["PATIENCE", "Database"]

T = TypeVar("T")
PATIENCE: Final = 5.0
"""seconds to wait for another process that is writing"""
_WRITE: Final = "BEGIN IMMEDIATE"
_APPLICATION: Final = 0x666C6F77
"""says in the file's header whose it is: "flow" """
_VERSION: Final = 1
_PASSING: Final = frozenset(
    {
        *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM),
        *(sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_INTERRUPT),
    }
)
_FORBIDDEN: Final = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH})
_creating: Final = threading.Lock()


class Database:
    """The file at `path`, with what the statements of `schema` make; `full`: whether a commit waits for the disk. Thread-safe.

    Raises StoreError, in one sentence, where there can be no such file.
    """

    def __init__(self, path: str, schema: tuple[str, ...], *, full: bool) -> None:
        self.path = path
        self._schema = schema
        self._full = full
        self._lock = threading.Lock()
        self._writers = GroupCommit[sqlite3.Cursor](self._lock)
        self._connection: sqlite3.Connection | None = None
        self._cursor: sqlite3.Cursor | None = None
        self._process = os.getpid()
        self._closed = False
        self._forking = False
        self._create()
        with self._lock:
            self._connect()
        _survive_forks(self)

    def write(self, work: Callable[[sqlite3.Cursor], T]) -> T:
        """All of `work`, or nothing, with nobody else writing; see GroupCommit.write."""
        return self._writers.write(work, self._transaction)

    def read(self, work: Callable[[sqlite3.Cursor], T]) -> T:
        """`work` on what was there at one moment."""
        with self._lock:
            return self._transaction(work, "BEGIN")

    def close(self) -> None:
        """Close the file; what comes after raises StoreError."""
        with self._lock:
            self._closed = True
            self._disconnect()

    def _transaction(self, work: Callable[[sqlite3.Cursor], T], begin: str = _WRITE) -> T:
        """(lock) All of `work`, or nothing."""
        cursor = self._cursor
        if cursor is None or self._process != os.getpid() or cursor.connection.in_transaction:
            cursor = self._connected()
        try:
            cursor.execute(begin)
            answer = work(cursor)
            cursor.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):  # what it has to tell, `error` has told
                cursor.connection.rollback()
            if isinstance(error, sqlite3.Error | UnicodeEncodeError):
                raise self._in_words(error) from error
            raise
        return answer

    def _connected(self) -> sqlite3.Cursor:
        """What to ask, where the cursor of the last time may not do. It mostly does, for to make one takes as long as a small
        statement."""
        if self._closed:
            raise StoreError(f"this SQLiteStore of {self.path} is closed: make another one.")
        if self._process != os.getpid() and self._connection is not None:
            raise StoreError(
                f"this SQLiteStore of {self.path} was opened by process {self._process}, which then forked in a way that "
                "Python was not told of: make the store in the process that uses it."
            )
        if self._connection is None or self._cursor is None:
            return self._connect()
        if self._connection.in_transaction:  # an interrupt came in the middle of a rollback
            with contextlib.suppress(sqlite3.Error):
                self._connection.rollback()
        return self._cursor

    def _connect(self) -> sqlite3.Cursor:
        self._connection = self._opened()
        self._cursor = self._connection.cursor()
        self._process = os.getpid()
        return self._cursor

    def facts(self) -> dict[str, str]:
        """What is to be known of the file. Reads all of it."""

        def ask(db: sqlite3.Cursor) -> list[str]:
            questions = ("quick_check(1)", "journal_mode", "synchronous")
            return [str(db.execute(f"PRAGMA {question}").fetchone()[0]) for question in questions]

        damage, journal, synchronous = self.read(ask)
        status, disk = Path(self.path).stat(), shutil.disk_usage(Path(self.path).parent)
        others = status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        log = Path(f"{self.path}-wal")
        return {
            "file": self.path,
            "integrity": damage,
            "journal": journal,
            "synchronous": {"1": "normal", "2": "full"}.get(synchronous, synchronous),
            "rights": stat.filemode(status.st_mode) + (", so others than its owner may use it" if others else ""),
            "size": f"{status.st_size:,} bytes, and {log.stat().st_size if log.exists() else 0:,} in its log",
            "free": f"{disk.free:,} bytes on its disk",
            "sqlite": sqlite3.sqlite_version,
        }

    # -- opening -------------------------------------------------------------------------------------------------------

    def _create(self) -> None:
        """Have a file there, for its owner only: it holds what runs return. SQLite gives its helpers the same rights."""
        # Closing any descriptor of a file drops all locks of this process on it: nobody may have it open meanwhile.
        with _creating:
            try:
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            except FileExistsError:
                pass
            except FileNotFoundError:
                raise StoreError(
                    f"SQLiteStore cannot make {self.path}: its folder is not there, so make that first."
                ) from None
            except OSError as error:
                raise StoreError(
                    f"SQLiteStore cannot make {self.path} ({error.strerror}): choose a place where this process may write."
                ) from error
        if Path(self.path).is_dir():
            raise StoreError(f"SQLiteStore cannot use {self.path}, which is a folder: name a file in it.")

    def _opened(self) -> sqlite3.Connection:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return self._prepared()
            except sqlite3.Error as error:
                code = getattr(error, "sqlite_errorcode", 0) & 0xFF
                # SQLite waits for others everywhere but where it turns to a write-ahead log.
                if code != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    if code == sqlite3.SQLITE_CANTOPEN:
                        raise StoreError(_no_rights(self.path, error)) from error
                    raise self._in_words(error) from error
                time.sleep(0.01)

    def _prepared(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{Path(self.path).as_uri()}?mode=rw",
            uri=True,
            timeout=PATIENCE,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.text_factory = _text
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        def ask(sql: str) -> object:
            return connection.execute(sql).fetchone()[0]

        def version() -> object:
            return ask("PRAGMA user_version")

        empty = not ask("SELECT count(*) FROM sqlite_master") and not version()
        if not empty and ask("PRAGMA application_id") != _APPLICATION:
            raise StoreError(f"{self.path} is a database of another application: SQLiteStore wants a file of its own.")
        if not empty and version() != _VERSION:
            raise StoreError(
                f"{self.path} was written by another version of flowcore (its schema is {version()}, and this one knows "
                f"{_VERSION}): use that version, or another file."
            )
        if ask("PRAGMA journal_mode = WAL") != "wal":
            raise StoreError(f"SQLite can keep no write-ahead log for {self.path}: choose a file on a local disk.")
        connection.execute(f"PRAGMA synchronous = {'FULL' if self._full else 'NORMAL'}")
        connection.execute(f"PRAGMA fullfsync = {int(self._full)}")  # macOS: a plain fsync stays in the drive's cache
        if empty:
            connection.execute(_WRITE)
            if not version():  # another process may have been quicker
                for statement in self._schema:
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                connection.execute(f"PRAGMA user_version = {_VERSION}")
            connection.execute("COMMIT")

    # -- across a fork -------------------------------------------------------------------------------------------------
    # A child must not use its parent's connection, nor even open one of its own while it has inherited one: SQLite takes
    # the locks that the parent has for its own. So there is none while the process forks. Source:
    # https://www.sqlite.org/howtocorrupt.html, 2.6.

    def before_fork(self) -> None:
        """Let the transaction that is going on come to its end, and close."""
        if self._lock.acquire(timeout=PATIENCE):  # not for ever: the thread that forks may be the one that has it
            self._forking = True
            self._disconnect()

    def after_fork(self, *, child: bool) -> None:
        """In parent and child: the next transaction opens the file again."""
        if child:
            self._writers.forget()
        if self._forking:
            self._forking = False
            self._lock.release()

    def _disconnect(self) -> None:
        connection, self._connection, self._cursor = self._connection, None, None
        if connection is not None and self._process == os.getpid():
            connection.close()
        elif connection is not None:
            _inherited.append(connection)

    def __del__(self) -> None:
        if getattr(self, "_connection", None) is not None:  # it may not even have been opened
            self._disconnect()

    # -- errors --------------------------------------------------------------------------------------------------------

    def _in_words(self, error: Exception) -> StoreError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _PASSING:
            return StoreUnavailable(f"{self.path} cannot be used just now ({error}): the same may be asked again.")
        if code in _FORBIDDEN:
            return StoreError(_no_rights(self.path, error))
        if code == sqlite3.SQLITE_NOTADB:
            return StoreError(
                f"{self.path} is not an SQLite database: name another file, or one that is not there yet."
            )
        if code == sqlite3.SQLITE_CORRUPT:
            return CorruptRecord(f"{self.path} is damaged ({error}): put a copy in its place.")
        if isinstance(error, UnicodeEncodeError):
            return NotSerializable(f"{safe_repr(error.object)} holds half a surrogate pair, which no store can keep.")
        return StoreError(f"SQLite refused to work on {self.path}: {type(error).__name__}: {error}.")


# What is no UTF-8 is still read, as halves of surrogate pairs: the decoder refuses it, and can say whose it is.
_text: Final = functools.partial(str, encoding="utf-8", errors="surrogateescape")


def _no_rights(path: str, error: Exception) -> str:
    return f"{path} cannot be used ({error}): let this process read and write the file and its folder."


_databases: Final[weakref.WeakSet[Database]] = weakref.WeakSet()
_inherited: Final[list[sqlite3.Connection]] = []
"""connections of a parent that did not say that it forks: never closed, which could take the file from under it"""


def _survive_forks(database: Database) -> None:
    _watch_forks()
    _databases.add(database)


@functools.cache
def _watch_forks() -> None:
    """Once a process, since hooks of this kind cannot be taken back."""
    if hasattr(os, "register_at_fork"):  # else there are no forks
        os.register_at_fork(
            before=_before_fork,
            after_in_parent=functools.partial(_after_fork, child=False),
            after_in_child=functools.partial(_after_fork, child=True),
        )


def _before_fork() -> None:
    for database in sorted(_databases, key=id):  # in the same order by every thread that forks
        database.before_fork()


def _after_fork(*, child: bool) -> None:
    for database in list(_databases):
        database.after_fork(child=child)
