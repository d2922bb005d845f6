"""SQLite files that others may have prepared are refused."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from flowcore import Engine, StoreError, Workflow
from flowcore.stores import SQLiteStore

as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away")
posix = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="rights of files are POSIX's")


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A file with a run in it."""
    folder = tmp_path / "runs"
    folder.mkdir(mode=0o700)
    wf = Workflow("w")
    wf.add_step("a", lambda ctx: 1)
    with closing(SQLiteStore(folder / "runs.db")) as store, Engine(store=store) as engine:
        engine.run(wf, idempotency_key="k")
    yield folder / "runs.db"
    folder.chmod(0o700)


def replays(path: Path, *, shared: bool = False) -> bool:
    with closing(SQLiteStore(path, shared=shared)) as store:
        return store.find("k") is not None


@posix
@pytest.mark.parametrize("end", ["", "-wal", "-shm"])
@pytest.mark.parametrize("mode", [0o660, 0o606, 0o666])
def test_a_file_that_others_may_write_is_refused(path: Path, end: str, mode: int) -> None:
    with closing(sqlite3.connect(path)) as keeps_the_log:
        keeps_the_log.execute("SELECT count(*) FROM runs").fetchone()
        Path(f"{path}{end}").chmod(mode)
        with pytest.raises(StoreError, match=rf"runs\.db{end} is writable by others .* shared=True if you trust"):
            replays(path)
        assert replays(path, shared=True)
        for file in path.parent.iterdir():
            file.chmod(0o644)  # to be read by others is its owner's choice
        assert replays(path)


@as_root
@pytest.mark.parametrize("end", ["", "-wal", "-shm"])
def test_a_file_of_another_user_is_refused(path: Path, end: str) -> None:
    with closing(sqlite3.connect(path)) as keeps_the_log:
        keeps_the_log.execute("SELECT count(*) FROM runs").fetchone()
        os.chown(f"{path}{end}", 12345, 12345)
        with pytest.raises(StoreError, match=rf"runs\.db{end} belongs to another user \(uid 12345\)"):
            replays(path)
        assert replays(path, shared=True)


@posix
def test_a_folder_in_which_everyone_may_replace_the_file_is_refused(path: Path) -> None:
    path.parent.chmod(0o777)
    with pytest.raises(StoreError, match="is writable by everyone, so anyone may replace"):
        replays(path)
    with pytest.raises(StoreError, match="is writable by everyone"):
        SQLiteStore(path.parent / "new.db")
    assert replays(path, shared=True)
    path.parent.chmod(0o1777)  # as /tmp is: only its owner may replace a file
    assert replays(path)


PREPARED = {
    "a trigger": "CREATE TRIGGER t AFTER INSERT ON runs BEGIN UPDATE runs SET status = 'success'; END",
    "a view": "CREATE VIEW v AS SELECT * FROM runs",
    "a table": "CREATE TABLE more (x)",
    "an index": "CREATE INDEX i ON runs (workflow, started)",
    "a view for a table": (
        "ALTER TABLE runs RENAME TO real; CREATE VIEW runs AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) "
        "SELECT real.* FROM real, n"
    ),
    "a table of other columns": "ALTER TABLE runs ADD COLUMN more",
    "a generated column": "ALTER TABLE fields ADD COLUMN more AS (abs(run)) VIRTUAL",
    "a table without an index": "DROP INDEX runs_held",
    "counts without a trigger": "DROP TRIGGER count_changed",
    "counts of an earlier file": "DROP TRIGGER count_begun; DROP TRIGGER count_changed; DROP INDEX runs_held_by_workflow",
    "a check": "DROP TABLE fields; CREATE TABLE fields (run INTEGER, name TEXT, text TEXT CHECK (abs(run) > 0), "
    "PRIMARY KEY (run, name)) WITHOUT ROWID",
}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("statements", PREPARED.values(), ids=PREPARED)
def test_a_file_with_other_objects_than_flowcore_makes_is_refused(path: Path, statements: str, *, shared: bool) -> None:
    with closing(sqlite3.connect(path)) as file:
        file.executescript(statements)
    with pytest.raises(StoreError, match="has tables, indices, triggers or views that flowcore does not make"):
        replays(path, shared=shared)


def test_functions_in_a_schema_are_not_trusted(path: Path) -> None:
    with closing(SQLiteStore(path)) as store:
        for channel in (store._database._writer, store._database._reader):
            channel.run(lambda db: db)
            assert channel._connection is not None
            for pragma, value in (("trusted_schema", 0), ("secure_delete", 1), ("cell_size_check", 1)):
                assert channel._connection.execute(f"PRAGMA {pragma}").fetchone()[0] == value, pragma


@posix
def test_a_new_file_and_its_log_are_for_their_owner_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with closing(SQLiteStore(tmp_path / "new.db")) as store:
            store.find("k")
            modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    finally:
        os.umask(old)
    assert modes == {"new.db": 0o600, "new.db-wal": 0o600, "new.db-shm": 0o600}
