"""The file of an SQLiteStore, which threads and processes share.

One connection writes. A second one reads beside it, so that a listing delays no run. A third one checks the whole file.
"""

from __future__ import annotations

import functools
import os
import shutil
import sqlite3
import stat
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from ...errors import StoreError, StoreUnavailable
from .channel import Channel
from .files import Identity, check_access, create
from .group_commit import GroupCommit
from .opening import PATIENCE, Schema, open_file

__all__ = ["PATIENCE", "Database"]

T = TypeVar("T")
Fact = str | int | float


class Database:
    """The file at `path`, with the tables of `schema`. `full`: whether a commit waits for
    the disk. `shared`: accept a file that others may write. `prepare`: called with each connection that is opened.
    Thread-safe.

    Raises StoreError, with one sentence, if there cannot be such a file.
    """

    def __init__(
        self,
        path: str,
        schema: Schema,
        *,
        full: bool,
        shared: bool = False,
        prepare: Callable[[sqlite3.Connection], None] | None = None,
    ) -> None:
        self.path = path
        self._missing: StoreError | None = None
        self._opener = opener = _Opener(path, schema, prepare, full=full, shared=shared)
        create(path)
        self._writer = Channel(path, "BEGIN IMMEDIATE", functools.partial(opener.open, reads=False))
        self._reader = Channel(path, "BEGIN", functools.partial(opener.open, reads=True))
        self._examiner = Channel(path, "BEGIN", functools.partial(opener.open, reads=True))
        self._channels = (self._writer, self._reader, self._examiner)
        opener.channels.update(self._channels)
        self._writers = GroupCommit[sqlite3.Cursor](self._writer.lock)
        self._writer.open()
        _survive_forks(self)

    def write(self, work: Callable[[sqlite3.Cursor], T], *, look: bool = False) -> T:
        """Run `work` in a transaction while no other process writes, and return its result: see GroupCommit.write. If
        it raises, nothing is written. `look`: first check that the path still leads to the open file. Once it does not,
        every write raises StoreError until it does again."""
        if not (look or self._missing is not None):
            return self._writers.write(work, self._writer.transaction)

        def checked_work(db: sqlite3.Cursor) -> T:
            # It is checked in the transaction, when the file is open: a fork in another thread closes it for a moment.
            self._look()
            return work(db)

        return self._writers.write(checked_work, self._writer.transaction)

    def empty_log(self) -> None:
        """Move the whole log into the file and empty it, so that deleted content is in neither. Raises StoreUnavailable
        if readers in other processes prevent that for too long."""
        until = time.monotonic() + PATIENCE
        while not self._writer.empty_log():
            if time.monotonic() > until:
                raise StoreUnavailable(
                    f"The log of {self.path} could not be emptied, because other processes read it. Its old content stays in "
                    "it until they end; repeat the call then."
                )
            time.sleep(0.01)

    def read(self, work: Callable[[sqlite3.Cursor], T]) -> T:
        """Run `work` on a snapshot of the file and return its result. Writers do not wait for it."""
        return self._reader.run(work)

    def _look(self) -> None:
        self._missing = None
        try:
            self._opener.identity.check()
        except StoreError as error:
            self._missing = error
            raise

    def close(self) -> None:
        """Close the file. Later calls raise StoreError."""
        for channel in self._channels:
            channel.close()

    def facts(self, *, deep: bool) -> dict[str, Fact]:
        """Return facts about the file, by name. `deep`: check the integrity of the whole file too, beside the runs."""

        def ask(db: sqlite3.Cursor) -> list[str]:
            self._opener.identity.check()
            return [str(db.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("journal_mode", "synchronous")]

        journal, synchronous = self.read(ask)
        status, disk = Path(self.path).stat(), shutil.disk_usage(Path(self.path).parent)
        others = status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        log = Path(self._opener.identity.log)
        facts: dict[str, Fact] = {
            "file": self.path,
            "journal": journal,
            "synchronous": {"1": "normal", "2": "full"}.get(synchronous, synchronous),
            "rights": stat.filemode(status.st_mode) + (", so others than its owner may use it" if others else ""),
            "size": status.st_size,
            "log": log.stat().st_size if log.exists() else 0,
            "free": disk.free,
            "sqlite": sqlite3.sqlite_version,
        }
        if deep:
            try:
                facts["integrity"] = self._examiner.run(
                    lambda db: str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
                )
            finally:
                self._examiner.rest()
        return facts

    def before_fork(self) -> None:
        """Wait for the transactions in progress to end, and close all connections."""
        for channel in self._channels:
            channel.before_fork()

    def after_fork(self, *, child: bool) -> None:
        """Let the next transaction open the file again, in parent and child."""
        if child:
            self._writers.forget()
        for channel in self._channels:
            channel.after_fork()


class _Opener:
    """Opens the file for the channels. It refers to them weakly, so that a store that is dropped closes its file."""

    def __init__(
        self,
        path: str,
        schema: Schema,
        prepare: Callable[[sqlite3.Connection], None] | None,
        *,
        full: bool,
        shared: bool,
    ) -> None:
        self.identity = Identity(path)
        self.channels = weakref.WeakSet[Channel]()
        self._path = path
        self._schema = schema
        self._prepare = prepare
        self._full = full
        self._shared = shared

    def open(self, *, reads: bool) -> sqlite3.Connection:
        if not self._shared:
            check_access(self._path)
        channels = list(self.channels)
        for channel in channels:
            channel.refuse_inherited()
        others = any(channel.is_open for channel in channels)
        connection = open_file(self._path, self._schema, self._prepare, full=self._full, reads=reads)
        try:
            # SQLite removes the log when the last connection closes. So the first connection may find another log.
            self.identity.remember(again=others)
        except BaseException:
            connection.close()
            raise
        return connection


_databases: Final[weakref.WeakSet[Database]] = weakref.WeakSet()


def _survive_forks(database: Database) -> None:
    _watch_forks()
    _databases.add(database)


@functools.cache
def _watch_forks() -> None:
    """Register the fork hooks, once per process, because they cannot be removed."""
    if hasattr(os, "register_at_fork"):  # without it, there are no forks
        os.register_at_fork(
            before=_before_fork,
            after_in_parent=functools.partial(_after_fork, child=False),
            after_in_child=functools.partial(_after_fork, child=True),
        )


def _before_fork() -> None:
    for database in sorted(_databases, key=id):  # all threads that fork take the locks in one order
        database.before_fork()


def _after_fork(*, child: bool) -> None:
    for database in list(_databases):
        database.after_fork(child=child)
