"""Checks of an SQLiteStore's files: a new file is for its owner only, a file that others may have prepared is refused,
and an open file is compared with its path.
"""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import Final

from ...errors import StoreError

__all__ = ["Identity", "check_access", "create"]

_creating: Final = threading.Lock()


def create(path: str) -> None:
    """Create the file, if there is none, for its owner only, because it holds the results of runs. SQLite gives the log
    the same rights. Raises StoreError."""
    # Closing any descriptor of a file drops all locks of this process on it. So no other store may open the new file
    # before it is closed here.
    with _creating:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            pass
        except FileNotFoundError:
            raise StoreError(f"SQLiteStore cannot make {path}: its folder does not exist; create it first.") from None
        except OSError as error:
            raise StoreError(
                f"SQLiteStore cannot make {path} ({error.strerror}): choose a place where this process may write."
            ) from error
    if Path(path).is_dir():
        raise StoreError(f"SQLiteStore cannot use {path}, which is a folder: name a file in it.")


def check_access(path: str) -> None:
    """Raise StoreError if another user may have written the file or its log, or may replace them."""
    if not hasattr(os, "geteuid"):
        return
    trusted, file = {os.geteuid(), 0}, os.path.realpath(path)
    for name in (file, f"{file}-wal", f"{file}-shm"):
        try:
            status = os.stat(name)  # noqa: PTH116 - as everywhere here
        except FileNotFoundError:
            continue
        except OSError as error:  # a circle of links, or a log whose name is too long
            raise StoreError(f"SQLiteStore cannot use {name} ({error.strerror}): name another file.") from error
        if status.st_uid not in trusted:
            raise StoreError(
                f"{name} belongs to another user (uid {status.st_uid}), who may have prepared it: give it to this "
                "process's user, or pass shared=True if you trust all users who may write it."
            )
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise StoreError(
                f"{name} is writable by others ({stat.filemode(status.st_mode)}): remove that permission with chmod "
                "go-w, or pass shared=True if you trust them."
            )
    for folder in {os.path.dirname(path), os.path.dirname(file)}:  # noqa: PTH120 - as everywhere here
        try:
            mode = os.stat(folder).st_mode  # noqa: PTH116
        except OSError as error:
            raise StoreError(
                f"The folder {folder} cannot be read ({error.strerror}): create it, or let this process read it."
            ) from error
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise StoreError(
                f"the folder {folder} is writable by everyone, so anyone may replace {path}: remove that permission "
                "with chmod o-w, or pass shared=True if you trust all users of this machine."
            )


class Identity:
    """Remembers which file was opened, to notice when the path leads to another one. `log`: the name of its log, which
    SQLite keeps beside the file itself, not beside a symbolic link to it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._target = path
        self.log = f"{path}-wal"
        self._file = self._known_log = (0, 0)

    def remember(self, *, again: bool) -> None:
        """Remember which file was opened or, if it was open before (`again`), check that it is the same one."""
        if again:
            return self.check()
        target = os.path.realpath(self._path)
        status = self._status(target)
        file = (status.st_dev, status.st_ino)
        if self._file not in {(0, 0), file}:
            raise self._replaced()
        if status.st_nlink != 1:
            raise self._linked()
        self._target, self.log = target, f"{target}-wal"
        log = self._status(self.log)
        self._file, self._known_log = file, (log.st_dev, log.st_ino)
        return None

    def check(self) -> None:
        """Raise StoreError if the path does not lead to the file that was opened, or the file has a second name."""
        status, log = self._status(self._target), self._status(self.log)
        if (status.st_dev, status.st_ino) != self._file or (log.st_dev, log.st_ino) != self._known_log:
            raise self._replaced()
        if self._target != self._path:
            named = self._status(self._path, follow=True)
            if (named.st_dev, named.st_ino) != self._file:
                raise self._replaced()
        if status.st_nlink != 1:
            raise self._linked()

    def _status(self, name: str, *, follow: bool = False) -> os.stat_result:
        try:
            # Path would take twice as long, for every claim.
            return os.stat(name, follow_symlinks=follow)  # noqa: PTH116
        except FileNotFoundError:
            raise StoreError(
                f"{name} was removed while this SQLiteStore had it open, so nothing that is written now would be found "
                "again: put the file and its log back, or restart this process."
            ) from None
        except OSError as error:
            raise StoreError(
                f"{name} cannot be read ({error.strerror}): check the permissions of its folder."
            ) from error

    def _replaced(self) -> StoreError:
        return StoreError(
            f"{self._path} or its log was replaced while this SQLiteStore had it open, so others would not see what is "
            "written now: restart this process."
        )

    def _linked(self) -> StoreError:
        return StoreError(
            f"{self._path} has more than one name (a hard link), and SQLite keeps a log for each, so one would not see "
            "the other's runs: remove the link, or copy the file instead."
        )
