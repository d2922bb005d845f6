"""One connection to the file of an SQLiteStore, which threads share under a lock.

SQLite admits one writer at a time. Threads that wait for a lock are woken in turn, while connections that wait for each
other poll: 16 threads with a connection each take five times as long for a durable commit. The connection is opened
when it is first needed, and closed while the process forks.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable
from typing import Final, TypeVar

from ...errors import StoreError
from .opening import PATIENCE
from .words import in_words

__all__ = ["Channel"]

T = TypeVar("T")


class Channel:
    """A connection that `opens` returns. Each transaction starts with the statement `begin`. Thread-safe, except for
    methods marked (lock), whose caller must hold the lock."""

    def __init__(self, path: str, begin: str, opens: Callable[[], sqlite3.Connection]) -> None:
        self.lock = threading.Lock()
        self._path = path
        self._begin = begin
        self._opens = opens
        self._connection: sqlite3.Connection | None = None
        self._cursor: sqlite3.Cursor | None = None
        self._letting_go: weakref.finalize[[sqlite3.Connection, int], Channel] | None = None
        self._process = os.getpid()
        self._closed = False
        self._forking = False

    def run(self, work: Callable[[sqlite3.Cursor], T]) -> T:
        """Run `work` in a transaction and return its result. If it raises, nothing is written."""
        with self.lock:
            return self.transaction(work)

    def transaction(self, work: Callable[[sqlite3.Cursor], T]) -> T:
        """(lock) Run `work` in a transaction and return its result. If it raises, nothing is written."""
        cursor = self._cursor
        if cursor is None or self._process != os.getpid() or cursor.connection.in_transaction:
            cursor = self._connected()
        try:
            cursor.execute(self._begin)
            answer = work(cursor)
            cursor.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):  # `error` already says what is wrong
                cursor.connection.rollback()
            if isinstance(error, sqlite3.Error | UnicodeEncodeError | OverflowError):
                raise in_words(self._path, error) from error
            raise
        return answer

    def empty_log(self) -> bool:
        """Move the whole log into the file, and empty it. Returns False if readers prevented that."""
        with self.lock:
            cursor = self._connected()
            try:
                (busy, _, _) = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except sqlite3.Error as error:
                raise in_words(self._path, error) from error
            return not busy

    @property
    def is_open(self) -> bool:
        """Whether there is a connection at the moment."""
        return self._connection is not None

    def refuse_inherited(self) -> None:
        """Raise StoreError if the connection belongs to a parent process."""
        if self._process != os.getpid() and self._connection is not None:
            raise StoreError(
                f"this SQLiteStore of {self._path} was opened by process {self._process}, which then forked in a way that "
                "Python did not notice: make the store in the process that uses it."
            )

    def open(self) -> None:
        """Open the file now."""
        with self.lock:
            self._connected()

    def close(self) -> None:
        """Close the connection for good. Later calls raise StoreError."""
        with self.lock:
            self._closed = True
            self._disconnect()

    def rest(self) -> None:
        """Close the connection until it is needed again."""
        with self.lock:
            self._disconnect()

    def _connected(self) -> sqlite3.Cursor:
        """Return the cursor of the connection, which is opened if there is none. The cursor is kept, because making one
        takes as long as a small statement."""
        if self._closed:
            raise StoreError(f"this SQLiteStore of {self._path} is closed: make another one.")
        self.refuse_inherited()
        if self._connection is None or self._cursor is None:
            self._connection = self._opens()
            self._cursor = self._connection.cursor()
            self._process = os.getpid()
            # Of a cycle, the garbage collector may finalize the connection before __del__ is called here, and then
            # CPython 3.13 warns that it was not closed.
            self._letting_go = weakref.finalize(self, _let_go, self._connection, self._process)
            self._letting_go.atexit = False
        if self._connection.in_transaction:  # an interrupt came in the middle of a rollback
            with contextlib.suppress(sqlite3.Error):
                self._connection.rollback()
        return self._cursor

    # A child process must not use its parent's connection, nor open one of its own while it has an inherited one:
    # SQLite would take the parent's locks for its own. So the connection is closed while the process forks. Source:
    # https://www.sqlite.org/howtocorrupt.html, 2.6.

    def before_fork(self) -> None:
        """Wait for the transaction in progress to end, and close the connection."""
        if self.lock.acquire(timeout=PATIENCE):  # not for ever: the thread that forks may itself hold the lock
            self._forking = True
            self._disconnect()

    def after_fork(self) -> None:
        """Release the lock, in parent and child. The next transaction opens the file again."""
        if self._forking:
            self._forking = False
            self.lock.release()

    def _disconnect(self) -> None:
        connection, self._connection, self._cursor = self._connection, None, None
        if self._letting_go is not None:
            self._letting_go.detach()
        if connection is not None:
            _let_go(connection, self._process)

    def __del__(self) -> None:
        if getattr(self, "_connection", None) is not None:  # the interpreter exits: finalizers are not called any more
            self._disconnect()


_inherited: Final[list[sqlite3.Connection]] = []
"""connections that an unnoticed fork has inherited; closing them could break the parent's use of the file"""


def _let_go(connection: sqlite3.Connection, process: int) -> None:
    """Close a connection that this process opened, and keep one of its parent's."""
    if process == os.getpid():
        connection.close()
    else:
        _inherited.append(connection)
