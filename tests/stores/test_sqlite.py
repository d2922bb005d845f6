"""SQLiteStore and its file: what it makes, what it refuses, what it makes of a file that others have been at, and time."""

import errno
import gc
import itertools
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from flowcore import (
    CorruptRecord,
    DefinitionError,
    Engine,
    NotSerializable,
    RunFailed,
    RunNotFound,
    Status,
    StepReport,
    StoreError,
    StoreUnavailable,
    Workflow,
)
from flowcore.errors import hashed_key
from flowcore.stores import SQLiteStore
from flowcore.stores.base import (
    Busy,
    Checkpoint,
    Claim,
    Claimed,
    Ending,
    Finished,
    Lease,
    Lost,
    Renewal,
    RunRecord,
    StepRecord,
    Write,
)
from flowcore.stores.opening import open_store

LEASE = 30.0


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


@pytest.fixture
def store(path: Path, clock: Clock) -> Iterator[SQLiteStore]:
    with closing(SQLiteStore(path, durability="normal", retention=60, wall=clock)) as store:
        yield store


def claim(key: str = "k", run_id: str = "r1", **more: Any) -> Claim:
    options = {"values": {"a": 1}, "lease": LEASE, "begins": ("s",)} | more
    return Claim(key, run_id, "w", "f", "g", {"trace": "parent"}, **options)


def done(seq: int, result: Any = 1) -> StepRecord:
    return StepRecord(seq, StepReport(Status.SUCCESS, 1), has_result=True, result=result, effect=True)


def checkpoint(owner: Claimed, seq: int = 2, key: str = "k", run_id: str = "r1", **more: Any) -> Checkpoint:
    return Checkpoint(key, run_id, owner.fence, LEASE, {"s": done(seq)}, {"c": Write(seq + 1, "v")}, **more)


def ending(owner: Claimed, status: Status, key: str = "k", run_id: str = "r1", **more: Any) -> Ending:
    return Ending(RunRecord(key, run_id, "w", "f", "g", status=status, fence=owner.fence, **more))


def granted(store: SQLiteStore, **more: Any) -> Claimed:
    answer = store.claim(claim(**more))
    assert isinstance(answer, Claimed)
    return answer


def sql(path: Path, statement: str, *values: Any) -> list[Any]:
    """What any program can do to a file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        return db.execute(statement, values).fetchall()


def dump(path: Path) -> list[Any]:
    """Everything in the file, byte by byte."""
    columns = [name for _, name, *_ in sql(path, "PRAGMA table_info(runs)")]
    quoted = ", ".join(f"quote(CAST({name} AS BLOB)), typeof({name})" for name in columns)
    return [
        *sql(path, f"SELECT {quoted} FROM runs ORDER BY id"),
        *sql(path, "SELECT run, quote(CAST(name AS BLOB)), quote(CAST(text AS BLOB)) FROM fields"),
        *sql(path, "SELECT * FROM counts"),
    ]


# -- the file ----------------------------------------------------------------------------------------------------------


def test_a_run_is_replayed_by_another_store_of_the_same_file(path: Path) -> None:
    wf = Workflow("trip")
    wf.add_step("book", lambda ctx: {"seat": ctx["seat"]})
    with closing(SQLiteStore(path)) as store, Engine(store=store) as engine:
        first = engine.run(wf, {"seat": "4A"}, idempotency_key="T-1")
    with closing(SQLiteStore(str(path))) as store, Engine(store=store) as engine:
        again = engine.run(wf, {"seat": "4A"}, idempotency_key="T-1")
    assert again.replayed
    assert (again.id, again["book"]) == (first.id, {"seat": "4A"})


def test_a_new_file_is_for_its_owner_only_and_one_that_was_there_keeps_its_rights(path: Path, tmp_path: Path) -> None:
    with closing(SQLiteStore(path)) as store:
        granted(store)
        helpers = [Path(f"{path}{end}") for end in ("", "-wal", "-shm")]
        assert [stat.filemode(file.stat().st_mode) for file in helpers] == ["-rw-------"] * 3
        assert store.doctor()["rights"] == "-rw-------"
    shared = tmp_path / "shared.db"
    shared.touch(0o600)
    shared.chmod(0o660)
    with closing(SQLiteStore(shared, shared=True)) as store:
        assert store.doctor()["rights"] == "-rw-rw----, so others than its owner may use it"


def test_a_path_means_the_same_file_wherever_the_process_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(SQLiteStore("runs.db")) as store:
        monkeypatch.chdir("/")
        assert store.path == str(tmp_path / "runs.db")
    for odd in ("a?mode=ro", "50%41", "#1", "ü \u202e.db", "new\nline"):
        with closing(SQLiteStore(tmp_path / odd)) as store:
            granted(store)
        assert (tmp_path / odd).stat().st_size


@pytest.mark.parametrize("name", ["", ":memory:", "file:runs.db?mode=memory"])
def test_what_names_no_file_is_refused(name: str) -> None:
    with pytest.raises(DefinitionError, match=re.escape(f"SQLiteStore({name!r}) names no file, so its runs would end")):
        SQLiteStore(name)


@pytest.mark.parametrize("url", ["sqlite:runs.db", "SQLite:///runs.db", "redis://user:" + "hidden" + "@localhost/0"])
def test_a_url_is_no_path(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DefinitionError, match=r"must be a path, not a URL\. Open a URL with flowcore\.stores\.open"
    ) as error:
        SQLiteStore(url)
    assert "hidden" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [None, 5, "a\0b", b"a\0b", "a\ud800b"], ids=ascii)
def test_what_can_be_no_path_is_refused(wrong: Any) -> None:
    with pytest.raises(DefinitionError, match=r"SQLiteStore\(path\) must be the path of a file, not "):
        SQLiteStore(wrong)


@pytest.mark.parametrize("wrong", [None, Path("runs.db"), b"sqlite:runs.db"], ids=repr)
def test_a_store_is_opened_by_a_url_that_is_a_string(wrong: Any) -> None:
    with pytest.raises(DefinitionError, match="the URL of a store must be a string, not "):
        open_store(wrong)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://user:" + "hidden" + "@localhost/0", "postgresql://localhost/0"),
        ("//user:" + "hidden" + "@localhost/0", "localhost/0"),
        ("user:" + "hidden" + "@localhost/0", "localhost/0"),
        ("user:" + "hid?hidden" + "@localhost/0", "localhost/0"),
        ("http://localhost/0?password=" + "hidden", "http://localhost/0?password=…"),
        ("temporal://localhost/0?api_key=" + "hidden", "temporal://localhost/0?api_key=…"),
        ("what? a store", "what? a store"),
    ],
)
def test_a_url_that_opens_no_store_is_shown_without_its_password(url: str, shown: str) -> None:
    with pytest.raises(DefinitionError, match=rf"'{re.escape(shown)}' names no (store|task queue)") as error:
        open_store(url)
    assert "hid" not in str(error.value)


@pytest.mark.parametrize("scheme", ["sqlite:", "SQLite:", "sqlite://"])
def test_the_scheme_of_a_url_is_read_in_upper_and_lower_case(path: Path, scheme: str) -> None:
    SQLiteStore(path).close()
    with closing(cast("SQLiteStore", open_store(f"{scheme}{path}"))) as store:
        assert store.path == str(path)


def test_options_that_cannot_be_meant_are_refused(path: Path) -> None:
    for option in ("durability", "traceback"):
        with pytest.raises(DefinitionError, match=rf"{option}=\)? must be .*, not \[\]"):
            SQLiteStore(path, **{option: []})
    with pytest.raises(DefinitionError, match=r"SQLiteStore\(shared=\) must be True or False, not 'no'"):
        SQLiteStore(path, shared=cast("Any", "no"))
    with pytest.raises(DefinitionError, match=r'SQLiteStore\(durability=\) must be "full" or "normal", not \'fast\''):
        SQLiteStore(path, durability="fast")
    with pytest.raises(DefinitionError, match=r"SQLiteStore\(retention=\) must be seconds"):
        SQLiteStore(path, retention=-1)
    with pytest.raises(DefinitionError, match="max_value_bytes= must be a whole number from 1 up"):
        SQLiteStore(path, max_value_bytes=0)
    with pytest.raises(DefinitionError, match="codec= must have the methods"):
        SQLiteStore(path, codec=object())
    assert not path.exists()


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot make .*runs\.db: its folder does not exist; create it first"):
        SQLiteStore(tmp_path / "nowhere" / "runs.db")


def test_a_path_that_no_file_can_have_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "circle").symlink_to("circle")
    for name, why in (("circle", os.strerror(errno.ELOOP)), ("x" * 252, os.strerror(errno.ENAMETOOLONG))):
        with pytest.raises(StoreError, match=rf"SQLiteStore cannot .* \({why}\): "):
            SQLiteStore(tmp_path / name)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(StoreError, match=r"the current folder of this process was removed: give an absolute path"):
        SQLiteStore("runs.db")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="which is a folder: name a file in it"):
        SQLiteStore(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cannot make .*runs\.db \(Not a directory\): choose a place"):
        SQLiteStore(tmp_path / "file" / "runs.db")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(StoreError, match="let this process read and write the file and its folder"):
        SQLiteStore(tmp_path / "link")


def test_what_is_no_database_is_left_as_it_is(path: Path) -> None:
    path.write_text("Dear diary, " * 1000)
    with pytest.raises(
        StoreError, match="is not an SQLite database: name another file, or one that does not exist yet"
    ):
        SQLiteStore(path)
    assert path.read_text() == "Dear diary, " * 1000


def test_another_applications_database_is_left_as_it_is(path: Path) -> None:
    sql(path, "CREATE TABLE runs (marathon TEXT)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="is a database of another application: SQLiteStore needs a file of its own"):
        SQLiteStore(path)
    assert path.read_bytes() == before


def test_a_file_of_a_newer_flowcore_is_left_as_it_is(path: Path) -> None:
    SQLiteStore(path).close()
    sql(path, "PRAGMA user_version = 3")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"another version of flowcore \(its schema is 3, and this one supports 2\)"):
        SQLiteStore(path)
    assert path.read_bytes() == before


WITHOUT_RIGHTS = """
import os, sys, tempfile
from flowcore import StoreError
from flowcore.stores import SQLiteStore
with tempfile.TemporaryDirectory() as folder:  # What is imported late may lie where only root can read.
    SQLiteStore(folder + "/runs.db").close()
if os.getuid() == 0:
    os.setuid(65534)
try:
    SQLiteStore(sys.argv[1])
except StoreError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("there", "rights", "reported"),
    [
        (
            False,
            0o555,
            r"StoreError SQLiteStore cannot make .* \(Permission denied\): choose a place where this process",
        ),
        (
            True,
            0o555,
            r"StoreUnavailable .*runs\.db cannot be used \(.*\): let this process read and write the file and its",
        ),
    ],
)
def test_a_place_where_one_may_not_write_is_reported(*, there: bool, rights: int, reported: str) -> None:
    with tempfile.TemporaryDirectory() as folder:  # not under tmp_path, which only its owner may enter
        path = Path(folder) / "runs.db"
        if there:
            SQLiteStore(path).close()
            path.chmod(0o644)
        Path(folder).chmod(rights)
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_RIGHTS, str(path)], capture_output=True, text=True, timeout=60, check=True
        )
        Path(folder).chmod(0o755)
    assert re.fullmatch(reported + r".*\n", done.stdout)


def test_a_closed_store_says_so(path: Path) -> None:
    store = SQLiteStore(path)
    store.close()
    store.close()
    with pytest.raises(StoreError, match=r"this SQLiteStore of .*runs\.db is closed: make another one"):
        store.find("k")


def test_a_store_that_is_no_longer_used_closes_its_file(path: Path) -> None:
    granted(SQLiteStore(path))
    assert not Path(f"{path}-wal").exists()  # the last to close it takes the log away


def test_full_durability_waits_for_the_disk_and_normal_does_not(path: Path) -> None:
    for durability in ("full", "normal"):
        with closing(SQLiteStore(path, durability=durability)) as store:
            reported = store.doctor()
            assert reported["synchronous"] == durability
            assert reported["durability"].startswith(f"{durability}: ")
            assert reported["journal"] == "wal"


def test_the_doctor_counts_runs_and_looks_at_the_file(store: SQLiteStore, path: Path, clock: Clock) -> None:
    for number, status in enumerate((Status.SUCCESS, Status.FAILURE, Status.PARKED, Status.COMPENSATION_FAILED)):
        owner = granted(store, key=f"k{number}")
        store.finish(ending(owner, status, key=f"k{number}", held=status == Status.COMPENSATION_FAILED))
    granted(store, key="expired")
    clock.now += 31
    granted(store, key="running")
    reported = store.doctor()
    numbers = {name: reported[name] for name in ("runs", "running", "expired", "held", "parked", "to forget")}
    assert numbers == {"runs": 6, "running": 1, "expired": 1, "held": 1, "parked": 1, "to forget": 0}
    assert (reported["store"], reported["file"], reported["retention"]) == ("sqlite", str(path), 60.0)
    assert "integrity" not in reported
    assert store.doctor(deep=True)["integrity"] == "ok"
    assert reported["sqlite"] == sqlite3.sqlite_version
    assert reported["size"] == path.stat().st_size
    assert reported["log"] == Path(f"{path}-wal").stat().st_size
    assert reported["free"] > 0
    clock.now += 60
    assert store.doctor()["to forget"] == 2


# -- trouble -----------------------------------------------------------------------------------------------------------


def test_a_file_that_others_write_for_too_long_is_unavailable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowcore.stores.sqlite.opening.PATIENCE", 0.05)
    with closing(SQLiteStore(path)) as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(
            StoreUnavailable,
            match=r"is locked by another process \(database is locked\)\. The same call may succeed later",
        ):
            store.claim(claim())
        assert store.find("k") is None  # readers are not blocked
        other.execute("ROLLBACK")
        granted(store)


def test_a_full_disk_is_unavailable_and_nothing_is_half_written(store: SQLiteStore, path: Path) -> None:
    owner = granted(store)
    before = dump(path)
    (pages,) = sql(path, "PRAGMA page_count")[0]
    store._database.write(lambda db: db.execute(f"PRAGMA max_page_count = {pages}"))
    big = Checkpoint("k", "r1", owner.fence, LEASE, {"s": done(2), "t": done(3, "x" * 100_000)})
    with pytest.raises(StoreUnavailable, match=r"The disk of .*runs\.db is full \(database or disk is full\)"):
        store.checkpoint(big)
    assert dump(path) == before
    store._database.write(lambda db: db.execute("PRAGMA max_page_count = 100000"))
    assert store.checkpoint(big) is None
    assert store.find("k").results["t"] == "x" * 100_000


NO_MORE = """
import resource, sys
from flowcore import StoreUnavailable
from flowcore.stores import SQLiteStore
from flowcore.stores.base import Claim
store = SQLiteStore(sys.argv[1])
large = Claim("k", "r", "w", "f", "g", {}, {"a": "x" * 1_000_000}, 30.0)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
try:
    store.claim(large)
except StoreUnavailable as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(store.find("k"), type(store.claim(large)).__name__)
"""


def test_a_write_that_the_system_refuses_is_unavailable(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_MORE, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    refused, after = done.stdout.splitlines()
    assert re.search(r"runs\.db is temporarily unavailable \(disk I/O error\)", refused)
    assert after == "None Claimed"


def test_a_damaged_file_is_reported_and_never_taken_for_an_empty_one(path: Path) -> None:
    with closing(SQLiteStore(path)) as store:
        for number in range(100):
            granted(store, key=f"k{number}", run_id=f"r{number}")
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + bytes(range(256)) * ((len(whole) - 4096) // 256))
    with closing(SQLiteStore(path)) as store:
        for ask in (lambda: store.find("k50"), lambda: store.claim(claim("k50")), store.list_runs, store.gc):
            with pytest.raises(CorruptRecord, match=r"runs\.db is damaged \(.*malformed.*\): restore it from a backup"):
                ask()
        with pytest.raises(StoreError, match=r"runs\.db is damaged"):
            store.doctor(deep=True)


def test_a_file_without_its_tables_is_refused(store: SQLiteStore, path: Path) -> None:
    sql(path, "DROP TABLE fields")
    with pytest.raises(StoreError, match=r"SQLite refused to work on .*: OperationalError: no such table: .*fields\."):
        store.claim(claim())


class Interrupted(sqlite3.Cursor):
    """A cursor whose user is interrupted right after its n-th statement, as Ctrl-C may do."""

    left = -1

    def execute(self, *asked: Any) -> Any:
        return self.interrupted(super().execute(*asked))

    def executemany(self, *asked: Any) -> Any:
        return self.interrupted(super().executemany(*asked))

    def interrupted(self, answer: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return answer


class WithInterrupts(sqlite3.Connection):
    def cursor(self, factory: Any = Interrupted) -> Any:
        return super().cursor(factory)


def test_an_interrupt_after_any_statement_leaves_all_of_a_verb_or_nothing(
    store: SQLiteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = granted(store)
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, factory=WithInterrupts, **options))
    with closing(SQLiteStore(path, durability="normal", wall=store._wall)) as struck:
        monkeypatch.undo()
        kept = list[bool]()
        for statement in itertools.count(1):
            before, reported = dump(path), checkpoint(owner, seq=2 * statement)
            struck._database._writer._cursor.left = statement
            try:
                struck.checkpoint(reported)
            except KeyboardInterrupt:
                kept.append(store.find("k").seq == 2 * statement + 1)
                assert kept[-1] or dump(path) == before
                assert struck.checkpoint(reported) is None  # it goes on as if nothing had been
            else:
                break
    assert kept == [False] * 4 + [True]  # the last interrupt came after the COMMIT


@pytest.mark.parametrize("verb", ["find", "get_run", "hold", "release", "resume", "undo"])
def test_half_a_surrogate_pair_for_a_key_is_refused_by_every_verb(store: SQLiteStore, verb: str) -> None:
    known = hashed_key("k\ud800")
    with pytest.raises(NotSerializable, match=f"{known} contains a lone surrogate, which cannot be encoded"):
        getattr(store, verb)("k\ud800")
    with pytest.raises(NotSerializable, match=f"its key {known} contains a lone surrogate") as refused:
        store.claim(claim("k\ud800"))
    assert refused.value.key == "k\ud800"


# -- what others have written ------------------------------------------------------------------------------------------

FULL_OF = (
    *("schema", "key", "run_id", "owner", "workflow", "fingerprint", "status", "held", "undoing", "decision", "reason"),
    *("by", "since", "before_status", "before_expires", "before_by", "before_since", "takeovers", "retries", "delay"),
    *("not_before", "deadline", "generation", "fence", "seq", "started", "finished", "expires"),
)
FIELDS = ("graph", "values", "carrier", "undone", "failed_step", "error", "s:s", "w:c")
GARBAGE = ("x'ff00'", "CAST(x'ff' AS TEXT)", "1.5", "-1", "99999999999999999999", "'garbage'", "''")
NO_TEXT = GARBAGE[:2]
ANY_TEXT = {"key", "run_id", "owner", "workflow", "fingerprint", "graph", "reason"}


@pytest.fixture
def parked(store: SQLiteStore, path: Path) -> SQLiteStore:
    """A store with a run that has something in each field."""
    owner = granted(store)
    store.checkpoint(checkpoint(owner, undoing=True, failed_step="s", error=ValueError("no")))
    error = RunFailed(error_type="ValueError", error_message="no")
    store.finish(ending(owner, Status.PARKED, undone=("s",), failed_step="s", error=error))
    again = granted(store, run_id="r2")
    store.finish(ending(again, Status.PARKED, undone=("s",), failed_step="s", error=error))
    store.undo("k")
    sql(path, "UPDATE runs SET expires = 5, before_expires = 5")
    granted(store, key="innocent", run_id="r3")
    return store


def test_a_file_is_opened_by_a_symbolic_link_too(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(path)
    with closing(SQLiteStore(path)) as store, closing(SQLiteStore(link)) as linked:
        granted(linked)
        assert store.find("k") is not None
        assert linked.doctor()["log"] == store.doctor()["log"] != 0
        link.unlink()
        link.symlink_to(tmp_path / "other.db")
        with closing(SQLiteStore(tmp_path / "other.db")), pytest.raises(StoreError, match="was replaced while"):
            granted(linked, key="l")
        assert store.find("l") is None


def test_a_log_beside_the_target_of_a_link_must_not_be_writable_by_others(path: Path, tmp_path: Path) -> None:
    with closing(SQLiteStore(path)):
        Path(f"{path}-wal").chmod(0o666)
        (tmp_path / "link.db").symlink_to(path)
        with pytest.raises(StoreError, match=r"-wal is writable by others"):
            SQLiteStore(tmp_path / "link.db")


def test_a_file_that_was_moved_is_not_written_even_if_a_link_leads_to_it(path: Path, tmp_path: Path) -> None:
    """Others who open the file by the link would use another log."""
    with closing(SQLiteStore(path)) as store:
        granted(store)
        path.rename(tmp_path / "moved.db")
        path.symlink_to(tmp_path / "moved.db")
        with pytest.raises(StoreError, match="was replaced while this SQLiteStore had it open"):
            granted(store, key="l")


def test_the_doctor_says_that_the_file_or_its_folder_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with closing(SQLiteStore(folder / "runs.db")) as store, closing(SQLiteStore(folder / "runs.db")) as looked:
        looked.doctor()
        shutil.rmtree(folder)
        with pytest.raises(StoreError, match="was removed while this SQLiteStore had it open"):
            looked.doctor()
        with pytest.raises(StoreError, match=r"folder cannot be read \(No such file or directory\)"):
            store.doctor()


@pytest.mark.parametrize("verb", ["cancel", "erase", "hold", "release", "resume", "send", "undo"])
@pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
def test_no_verb_succeeds_on_a_file_that_was_removed_or_replaced(
    parked: SQLiteStore, path: Path, verb: str, replaced: bool
) -> None:
    copy = path.with_name("copy.db")
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as restored:
        source.backup(restored)
    before = dump(copy)
    parked.find("k")
    for name in (path, f"{path}-wal", f"{path}-shm"):
        Path(name).unlink()
    if replaced:
        copy.rename(path)
    with pytest.raises(StoreError, match=r"was re(mov|plac)ed while this SQLiteStore had it open"):
        getattr(parked, verb)("k", *(("go", 1) if verb == "send" else ()))
    assert dump(path if replaced else copy) == before


def put(path: Path, place: str, garbage: str) -> None:
    if place in FULL_OF:
        sql(path, f"UPDATE runs SET {place} = {garbage} WHERE key IS NOT 'innocent'")
    else:
        sql(path, f"UPDATE fields SET text = {garbage} WHERE run = 1 AND name = '{place}'")


@pytest.mark.parametrize("place", [*FULL_OF, *FIELDS])
def test_garbage_anywhere_in_a_record_is_reported_by_its_key_and_left_as_it_is(
    parked: SQLiteStore, path: Path, place: str
) -> None:
    assert parked.find("k").results == {"s": 1}
    for garbage in GARBAGE:
        if place in ANY_TEXT and garbage not in NO_TEXT:
            continue  # SQLite makes a text of it, and any text will do
        put(path, place, garbage)
        before = dump(path)
        asks = [lambda: parked.claim(claim(run_id="r9")), lambda: parked.find("k"), lambda: parked.get_run("r1")]
        listed = {record.key: record.problem for record in parked.list_runs()}
        assert listed.pop("innocent") is None
        if place not in {"values", "s:s", "w:c"}:  # which a listing does not read
            assert "is corrupted: it" in next(iter(listed.values()))
        for ask in {"key": [], "run_id": asks[:2]}.get(place, asks):
            with pytest.raises(CorruptRecord, match=r"the record of key .* is corrupted: its") as caught:
                ask()
            assert place == "key" or caught.value.key == "k"
        parked.list_resumable(["w"])
        assert dump(path) == before
        assert parked.find("innocent").status == Status.RUNNING


def test_a_record_that_cannot_be_read_is_left_out_of_recovery_with_one_warning(
    parked: SQLiteStore, path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    sql(path, "UPDATE runs SET fence = 'high' WHERE key = 'k'")
    clock.now += 31
    for _ in range(3):
        assert [record.key for record in parked.list_resumable(["w"])] == ["innocent"]
    (warning,) = caplog.messages
    about = f"the record of key {hashed_key('k')} is corrupted: its fence"
    assert warning.startswith(f"{path} cannot be recovered: {about}")


def test_a_record_that_cannot_be_read_is_given_up_by_force_only(parked: SQLiteStore, path: Path) -> None:
    sql(path, "UPDATE runs SET fence = 'high' WHERE key = 'k'")
    for verb in (parked.release, parked.hold, parked.resume, parked.undo):
        with pytest.raises(CorruptRecord):
            verb("k")
    parked.release("k", force=True)
    assert parked.find("k") is None
    assert granted(parked, run_id="r9").record is None


def test_a_foreign_row_in_a_record_is_refused(parked: SQLiteStore, path: Path) -> None:
    sql(path, "INSERT INTO fields VALUES (1, 'surprise', '1 {}')")
    with pytest.raises(CorruptRecord, match=r"the record of key .* is corrupted: it has a field 'surprise'"):
        parked.find("k")


def test_a_row_cannot_speak_for_the_head_of_a_record(parked: SQLiteStore, path: Path) -> None:
    sql(path, "INSERT INTO fields VALUES (1, 'status', 'success')")
    assert parked.find("k").status == Status.PARKED


def test_a_status_that_means_nothing_makes_no_owner(store: SQLiteStore, path: Path) -> None:
    owner = granted(store)
    sql(path, "UPDATE runs SET status = 'paused'")
    before = dump(path)
    for reported in (lambda: store.checkpoint(checkpoint(owner)), lambda: store.finish(ending(owner, Status.SUCCESS))):
        with pytest.raises(CorruptRecord, match="its field 'status' has the unknown value 'paused'"):
            reported()
    assert store.renew([Lease("k", "r1", owner.fence)], LEASE) == [Renewal.LOST]
    sql(path, "UPDATE runs SET status = 'compensation_failed'")  # and not held
    with pytest.raises(CorruptRecord, match="has the status 'compensation_failed', but is not held"):
        store.claim(claim(run_id="r2"))
    sql(path, "UPDATE runs SET status = 'paused'")
    assert dump(path) == before


def test_all_runs_to_recover_are_listed_in_pages_the_oldest_first(store: SQLiteStore, clock: Clock) -> None:
    for number in range(1005):
        clock.now += 1
        granted(store, key=f"k{number}", run_id=f"r{number}", lease=0.0)
    page = store.list_resumable(["v", "w"], limit=600)
    assert [record.key for record in page] == [f"k{number}" for number in range(600)]
    page = store.list_resumable(["v", "w"], limit=600, after=page.cursor)
    assert [record.key for record in page] == [f"k{number}" for number in range(600, 1005)]
    assert page.cursor is None
    assert store.list_resumable(["v"]) == store.list_resumable([]) == []


# -- time --------------------------------------------------------------------------------------------------------------


def test_a_clock_set_forward_lets_others_take_over_and_the_old_owner_learns_it(
    store: SQLiteStore, clock: Clock
) -> None:
    owner = granted(store)
    clock.now += 3600
    taken = granted(store, run_id="r2")
    assert taken.record.run_id == "r1"
    assert taken.fence == int(clock.now * 1e6) > owner.fence
    assert store.checkpoint(checkpoint(owner)) == Lost()


def test_a_clock_set_back_costs_at_most_one_lease(store: SQLiteStore, clock: Clock) -> None:
    owner = granted(store)
    clock.now -= 3600  # and then the owner dies
    assert [record.key for record in store.list_resumable(["w"])] == ["k"]
    busy = store.claim(claim(run_id="r2"))
    assert isinstance(busy, Busy)
    assert (busy.lease_left, busy.age) == (LEASE, 0.0)
    clock.now += LEASE - 1
    assert isinstance(store.claim(claim(run_id="r2")), Busy)
    assert store.list_resumable(["w"]) == []
    clock.now += 1
    taken = granted(store, run_id="r2")
    assert taken.fence == owner.fence + 1  # it never falls


def test_a_lease_that_is_renewed_while_recovery_looks_is_no_clock_set_back(
    store: SQLiteStore, path: Path, clock: Clock
) -> None:
    owner = granted(store)
    with closing(SQLiteStore(path, durability="normal", wall=lambda: clock.now + 0.5)) as other:

        def late() -> float:
            assert other.renew([Lease("k", "r1", owner.fence)], LEASE) == [Renewal.OURS]
            return clock.now

        with closing(SQLiteStore(path, durability="normal", wall=late)) as looking:
            assert looking.list_resumable(["w"]) == []


def test_a_clock_set_back_does_not_cost_an_owner_its_run(store: SQLiteStore, clock: Clock) -> None:
    owner = granted(store)
    clock.now -= 3600
    assert isinstance(store.claim(claim(run_id="r2")), Busy)
    assert store.renew([Lease("k", "r1", owner.fence)], LEASE) == [Renewal.OURS]
    clock.now += LEASE - 1
    assert store.checkpoint(checkpoint(owner)) is None
    clock.now += LEASE - 1
    assert isinstance(store.claim(claim(run_id="r2")), Busy)
    assert store.finish(ending(owner, Status.SUCCESS)) is None
    assert isinstance(store.claim(claim(run_id="r2")), Finished)


def test_a_clock_before_its_time_does_no_harm(store: SQLiteStore, clock: Clock) -> None:
    clock.now = -5.0
    owner = granted(store)
    assert store.finish(ending(owner, Status.SUCCESS)) is None
    assert store.find("k").started == 0.0


def test_an_endless_lease_is_a_century(store: SQLiteStore, clock: Clock) -> None:
    owner = granted(store, lease=float("inf"))
    assert store.renew([Lease("k", "r1", owner.fence)], float("inf")) == [Renewal.OURS]
    clock.now += 99 * 365 * 24 * 3600
    assert isinstance(store.claim(claim(run_id="r2")), Busy)


# -- forgetting --------------------------------------------------------------------------------------------------------


def rows(path: Path) -> tuple[int, int]:
    return sql(path, "SELECT count(*) FROM runs")[0][0], sql(path, "SELECT count(*) FROM fields")[0][0]


def test_claims_forget_what_is_past_its_retention_bit_by_bit(store: SQLiteStore, path: Path, clock: Clock) -> None:
    owner = granted(store)
    steps = {f"s{number}": done(number + 2) for number in range(1000)}
    assert store.checkpoint(Checkpoint("k", "r1", owner.fence, LEASE, steps)) is None
    assert store.finish(ending(owner, Status.SUCCESS)) is None
    clock.now += 61
    left = [rows(path)[1]]
    assert store.find("k") is None
    for number in range(5):
        granted(store, key=f"new{number}", run_id=f"r{number + 2}", lease=float("inf"))
        left.append(rows(path)[1])
        assert store.find("k") is None
        assert [record.key for record in store.list_runs()] == [f"new{each}" for each in range(number, -1, -1)]
        with pytest.raises(RunNotFound):
            store.get_run("r1")
    assert all(before - after <= 256 for before, after in itertools.pairwise(left))
    assert rows(path) == (5, 20)


def test_a_process_that_only_continues_forgets_too(store: SQLiteStore, path: Path, clock: Clock) -> None:
    for number in range(20):
        store.finish(ending(granted(store, key=f"old{number}"), Status.FAILURE, key=f"old{number}"))
    owner = granted(store)
    clock.now += 61
    for number in range(200):
        store.checkpoint(Checkpoint("k", "r1", owner.fence, 1e6, {f"s{number}": done(2)}, {f"c{number}": Write(3, 1)}))
    assert rows(path)[0] == 1


def test_nothing_grows_without_bound(path: Path, clock: Clock) -> None:
    with closing(SQLiteStore(path, durability="normal", retention=10, wall=clock)) as store:
        sizes: list[int] = []
        for number in range(300):
            clock.now += 1
            owner = granted(store, key=f"k{number % 7}", run_id=f"r{number}")
            steps = {f"s{each}": done(each + 2) for each in range(number % 40)}
            reported = Checkpoint(f"k{number % 7}", f"r{number}", owner.fence, LEASE, steps)
            store.finish(Ending(ending(owner, Status.FAILURE, f"k{number % 7}", f"r{number}").record, reported))
            sizes.append(rows(path)[0])
        assert max(sizes) < 20
        clock.now += 60
        assert store.gc() == 0
        assert rows(path) == (0, 0)


def test_gc_forgets_everything_that_is_due_and_says_what_is_left(store: SQLiteStore, path: Path, clock: Clock) -> None:
    for number in range(50):
        owner = granted(store, key=f"k{number}")
        steps = {f"s{each}": done(each + 2) for each in range(20)}
        reported = Checkpoint(f"k{number}", "r1", owner.fence, LEASE, steps)
        status = Status.PARKED if number == 7 else Status.SUCCESS
        store.finish(Ending(ending(owner, status, f"k{number}").record, reported))
        clock.now += 1
    assert store.gc() == 50
    clock.now += 30
    assert store.gc() == 30  # those that ended later, and the parked one
    assert rows(path)[0] == 30


def test_a_key_that_is_claimed_anew_begins_without_the_old_fields(store: SQLiteStore) -> None:
    owner = granted(store)
    store.checkpoint(checkpoint(owner))
    store.finish(ending(owner, Status.FAILURE))
    again = granted(store, run_id="r2", begins=())
    assert (again.generation, again.fence > owner.fence) == (1, True)
    record = store.find("k")
    assert (record.steps, record.values, record.seq) == ({}, {"a": 1}, 0)
    with pytest.raises(RunNotFound):
        store.get_run("r1")


def test_retention_may_be_a_timedelta(path: Path) -> None:
    with closing(SQLiteStore(path, retention=timedelta(days=1))) as store:
        assert store.retention == 24 * 3600
        assert SQLiteStore(path).retention == 7 * 24 * 3600


# -- many threads ------------------------------------------------------------------------------------------------------


def test_threads_share_one_store(store: SQLiteStore) -> None:
    owner, failures = granted(store, begins=()), list[BaseException]()
    seqs = iter(range(1, 10_000))

    def tell(thread: int) -> None:
        try:
            for number in range(50):
                step = {f"{thread}-{number}": done(next(seqs))}
                assert store.checkpoint(Checkpoint("k", "r1", owner.fence, LEASE, step)) is None
                assert isinstance(store.claim(claim(run_id="other")), Busy)
        except BaseException as failure:  # noqa: BLE001 - told below
            failures.append(failure)

    threads = [threading.Thread(target=tell, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(store.find("k").results) == 400


def test_a_checkpoint_costs_as_much_in_a_long_run_with_large_values_as_in_a_short_one(store: SQLiteStore) -> None:
    """By SQLite's own steps and by the bytes it writes, which are the same on every computer."""
    owner, steps, sizes = granted(store, values={"large": "x" * 500_000}), [0], list[int]()

    def count() -> int:
        steps[-1] += 1
        return 0

    log = Path(f"{store.path}-wal")
    store._database.read(lambda db: db.execute("PRAGMA wal_autocheckpoint = 0"))
    store._database.read(lambda db: db.connection.set_progress_handler(count, 1))
    for number in range(2000):
        steps.append(0)
        reported = {f"s{number}": done(2 * number + 2), f"s{number + 1}": StepRecord(2 * number + 3, StepReport())}
        store.checkpoint(Checkpoint("k", "r1", owner.fence, LEASE, reported))
        sizes.append(log.stat().st_size)
    assert sorted(steps)[1000] == steps[10]
    assert sizes[-1] - sizes[-101] < 2 * (sizes[110] - sizes[10]) < 4_000_000


def test_what_counts_and_a_page_of_held_runs_cost_does_not_grow_with_the_runs_that_stay_in_the_store(
    store: SQLiteStore,
) -> None:
    """By SQLite's own steps, which are the same on every computer."""
    steps = [0]

    def count() -> int:
        steps[-1] += 1
        return 0

    store._database.read(lambda db: db.connection.set_progress_handler(count, 1))
    kept = (Status.WAITING, Status.PARKED, Status.INCOMPLETE, Status.COMPENSATION_FAILED)
    for number in range(40):
        for status in (*kept, Status.SUCCESS):
            owner = granted(store, key=f"{status} {number}")
            store.finish(ending(owner, status, f"{status} {number}", held=status is Status.COMPENSATION_FAILED))
        granted(store, key=f"queued {number}", queued=True)
        steps.append(0)
        store.counts()
        steps.append(0)
        assert store.list_runs(status="held", workflow="another") == []
    assert steps[1:3] == steps[79:81]
    assert store.counts() == {("w", status): 40 for status in ("waiting", "parked", "incomplete", "held", "queued")}


def test_a_forgotten_store_in_a_cycle_closes_its_connections_whatever_is_collected_first(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CPython 3.13 warns of a connection that is finalized before it is closed."""
    problems = list[Any]()
    monkeypatch.setattr(sys, "unraisablehook", problems.append)
    gc.collect()
    gc.disable()
    try:
        store: Any = SQLiteStore(path, durability="normal")
        gc.collect(0)  # from here on, what is made later comes before it
        assert store.find("k") is None
        store._database._reader.cycle = store
        closed = weakref.ref(store._database._reader)
        del store
        gc.collect()
    finally:
        gc.enable()
    assert closed() is None
    assert problems == []


def test_a_store_that_is_open_when_the_interpreter_exits_is_closed(path: Path) -> None:
    script = "import sys; from flowcore.stores import SQLiteStore; store = SQLiteStore(sys.argv[1]); store.find('k')"
    command = [sys.executable, "-W", "always", "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""


def test_a_checkpoint_that_comes_late_lowers_no_number(tmp_path: Path) -> None:
    """As those of two steps beside each other may: the record would count as one that has gone back in time."""
    store = SQLiteStore(tmp_path / "runs.db", durability="normal")
    claimed = store.claim(Claim("k", "run", "w", None, "[]", {}, lease=60.0))
    assert isinstance(claimed, Claimed)

    def of(seq: int, base: int = 0) -> Checkpoint:
        report = StepReport(Status.SUCCESS, 1)
        return Checkpoint("k", "run", claimed.fence, 60.0, {f"step {seq}": StepRecord(seq, report)}, {}, base=base)

    assert store.checkpoint(of(9)) is None
    assert store.checkpoint(of(8)) is None
    assert store.checkpoint(of(10, base=9)) is None


def test_a_run_whose_record_has_too_low_a_number_is_resumed(tmp_path: Path) -> None:
    """Earlier releases wrote such records. An owner that took one over healed it again and again, without end."""
    path, wf = tmp_path / "runs.db", Workflow("w")
    wf.add_step("a", lambda ctx: 1)
    store = SQLiteStore(path, durability="normal")
    Engine(store=store).run(wf, idempotency_key="k")
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE runs SET seq = 1, status = 'parked', forget = NULL")
    with Engine(store=store) as engine:
        assert engine.submit(wf, idempotency_key="k").result(20)["a"] == 1
    record = store.find("k")
    assert record is not None
    assert record.status == Status.SUCCESS
