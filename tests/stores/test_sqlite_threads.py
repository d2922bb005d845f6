"""What threads write to an SQLiteStore at the same time: committed together, and to each its own answer."""

import contextvars
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from flowcore import NotSerializable, StoreUnavailable
from flowcore.stores import SQLiteStore
from flowcore.stores.base import Claim, Claimed
from flowcore.stores.sqlite import group_commit, opening
from flowcore.stores.sqlite.database import Database
from flowcore.stores.sqlite.group_commit import GroupCommit
from flowcore.stores.sqlite.opening import Schema

SCHEMA = Schema(("CREATE TABLE words (word TEXT)",))
LIMIT = 10.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "words.db"


@pytest.fixture(autouse=True)
def nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waiting thread must be woken."""
    monkeypatch.setattr(group_commit, "_LOOK", 3600)


@pytest.fixture
def words(path: Path) -> Iterator[Database]:
    with closing(Database(str(path), SCHEMA, full=False)) as words:
        yield words


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def saying(word: str) -> Callable[[sqlite3.Cursor], str]:
    """What writes this word, and answers it in capitals."""

    def say(db: sqlite3.Cursor) -> str:
        db.execute("INSERT INTO words VALUES (?)", (word,))
        return word.upper()

    return say


def said(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return sorted(word for (word,) in db.execute("SELECT word FROM words"))


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@contextmanager
def nobody_gets_in(path: Path, words: Database, threads: ThreadPoolExecutor) -> Iterator[Future[str]]:
    """One thread is writing, and kept from it by another process for as long as the block goes on; then it writes "a"."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        first = threads.submit(words.write, saying("a"))
        until(words._writer.lock.locked)
        until(lambda: not words._writers._waiting)
        yield first
        other.execute("ROLLBACK")


def queue(words: Database, threads: ThreadPoolExecutor, *works: Callable[[sqlite3.Cursor], Any]) -> list[Future[Any]]:
    """Have so many more threads wait for their turn."""
    futures = [threads.submit(words.write, work) for work in works]
    until(lambda: len(words._writers._waiting) == len(works))
    return futures


def test_what_waits_while_one_writes_is_committed_at_once(
    path: Path, words: Database, threads: ThreadPoolExecutor
) -> None:
    statements: list[str] = []
    words.write(lambda db: db.connection.set_trace_callback(statements.append))
    with nobody_gets_in(path, words, threads) as first:
        others = queue(words, threads, *map(saying, "bcdef"))
    assert [first.result(LIMIT), *(other.result(LIMIT) for other in others)] == list("ABCDEF")
    assert said(path) == list("abcdef")
    assert statements.count("COMMIT") == 3  # the tracing, "a", and all others


def test_what_is_refused_costs_the_others_nothing(path: Path, words: Database, threads: ThreadPoolExecutor) -> None:
    def refuse(db: sqlite3.Cursor) -> None:
        saying("never")(db)
        raise LookupError("no")

    with nobody_gets_in(path, words, threads):
        b, refused, half, c = queue(
            words,
            threads,
            saying("b"),
            refuse,
            lambda db: db.execute("INSERT INTO words VALUES (?)", ("\ud800",)),
            saying("c"),
        )
    assert (b.result(LIMIT), c.result(LIMIT)) == ("B", "C")
    assert isinstance(refused.exception(LIMIT), LookupError)
    assert isinstance(half.exception(LIMIT), NotSerializable)
    assert said(path) == list("abc")


def test_where_the_file_cannot_be_written_each_thread_gets_the_error_and_can_retry(
    path: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "PATIENCE", 0.2)
    statements: list[str] = []
    with closing(Database(str(path), SCHEMA, full=False)) as words:
        words.write(lambda db: db.connection.set_trace_callback(statements.append))
        with nobody_gets_in(path, words, threads) as first:
            others = queue(words, threads, saying("b"), saying("c"))
            assert not wait([first, *others], LIMIT).not_done
        errors = [future.exception() for future in (first, *others)]
        assert [type(error) for error in errors] == [StoreUnavailable] * 3
        assert len(set(map(id, errors))) == 3  # an exception belongs to one thread
        assert all(error is not None and type(error.__cause__) is sqlite3.OperationalError for error in errors)
        assert statements.count("BEGIN IMMEDIATE") == 2  # no thread has waited twice
        assert said(path) == []
        assert words.write(saying("d")) == "D"
        assert said(path) == ["d"]


NAME: contextvars.ContextVar[str] = contextvars.ContextVar("name")


def test_each_writes_in_its_own_context_on_whichever_thread(
    path: Path, words: Database, threads: ThreadPoolExecutor
) -> None:
    def named(db: sqlite3.Cursor) -> tuple[str, int]:
        return NAME.get(), threading.get_ident()

    def write(name: str) -> tuple[str, int]:
        NAME.set(name)
        return words.write(named)

    with nobody_gets_in(path, words, threads):
        futures = [threads.submit(contextvars.Context().run, write, name) for name in "bcd"]
        until(lambda: len(words._writers._waiting) == 3)
    names, idents = zip(*(future.result(LIMIT) for future in futures), strict=True)
    assert names == ("b", "c", "d")
    assert len(set(idents)) == 1


@pytest.mark.parametrize("place", [0, 1])
def test_what_an_interrupt_has_ended_is_not_written_by_others(
    place: int, path: Path, words: Database, threads: ThreadPoolExecutor
) -> None:
    def interrupt() -> list[Future[str]]:
        until(lambda: len(words._writers._waiting) == place + 1)
        behind = [threads.submit(words.write, saying(word)) for word in "bc"[place:]]
        until(lambda: len(words._writers._waiting) == 3)
        os.kill(os.getpid(), signal.SIGINT)
        return behind

    with nobody_gets_in(path, words, threads) as first:
        before = queue(words, threads, *map(saying, "bc"[:place]))
        interrupting = threads.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            words.write(saying("given up"))
    others = [*before, *interrupting.result(LIMIT)]
    assert [future.result(LIMIT) for future in (first, *others)] == list("ABC")
    assert said(path) == list("abc")


@pytest.mark.parametrize(("moment", "look"), [("_pass_on", 0.1), ("_others", 3600)])
def test_an_interrupt_of_who_writes_keeps_no_other_waiting(
    moment: str, look: float, path: Path, words: Database, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "_LOOK", look)
    struck, method = list[str](), getattr(GroupCommit, moment)

    def strike(self: GroupCommit[Any], *arguments: Any) -> Any:
        if not struck:
            struck.append(moment)
            raise KeyboardInterrupt
        return method(self, *arguments)

    monkeypatch.setattr(GroupCommit, moment, strike)
    with nobody_gets_in(path, words, threads) as first:
        others = queue(words, threads, *map(saying, "bcd"))
    assert not wait([first, *others], LIMIT).not_done
    errors = [error for future in (first, *others) if (error := future.exception()) is not None]
    assert [type(error) for error in errors] == [KeyboardInterrupt]
    assert words.write(saying("e")) == "E"
    assert len(said(path)) == (4 if moment == "_others" else 5)


def test_however_they_come_each_word_is_written_once(
    path: Path, words: Database, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "_LOOK", 1e-6)  # they get into each other's way
    spoken = [f"{number:04}" for number in range(2_000)]
    assert list(threads.map(lambda word: words.write(saying(word)), spoken)) == spoken
    assert said(path) == spoken


FORK = """
import os, sys, threading, time

def begin():  # after the store has shut its file for the fork: the hooks that run before one go backwards
    for number in range(3):
        thread = threading.Thread(target=words.write, args=(lambda db: db.execute("INSERT INTO words VALUES ('parent')"),))
        thread.start()
        writers.append(thread)
    while len(words._writers._waiting) < 2:  # the first one leads
        time.sleep(0.001)

writers = []
os.register_at_fork(before=begin)
from flowcore.stores.sqlite.database import Database
from flowcore.stores.sqlite.opening import Schema
from flowcore.stores.sqlite.opening import Schema
words = Database(sys.argv[1], Schema(("CREATE TABLE words (word TEXT)",)), full=False)
child = os.fork()
if child == 0:
    for number in range(2):
        words.write(lambda db: db.execute("INSERT INTO words VALUES ('child')"))
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
for thread in writers:
    thread.join()
"""


def test_a_child_does_not_write_what_threads_of_its_parent_wait_to_write(path: Path) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK, path], check=True, timeout=60)
    assert said(path) == ["child"] * 2 + ["parent"] * 3


def test_of_claims_that_are_committed_together_one_gets_the_key(path: Path, threads: ThreadPoolExecutor) -> None:
    with closing(SQLiteStore(path, durability="normal")) as store:

        def claim(number: int) -> object:
            return store.claim(Claim("k", f"r{number}", "w", "f", "g", {}, {}, lease=30.0, begins=()))

        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            answers = [threads.submit(claim, number) for number in range(8)]
            until(lambda: len(store._database._writers._waiting) == 7)
            other.execute("ROLLBACK")
        granted = [type(answer.result(LIMIT)) is Claimed for answer in answers]
        assert granted.count(True) == 1
