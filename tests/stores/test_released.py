"""Records and pickled errors of every released version are read as they were written, and their runs go on."""

import contextlib
import json
import pickle
import sqlite3
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest
import redis

from flowcore import Engine, IdempotencyHeld, Run
from tests.stores.redis_runs import check_statuses
from tests.stores.redis_servers import StartRedis, start_redis
from tests.stores.released import FOLDER, PREFIX, etl, order, restored_redis, restored_sqlite, story

__all__ = ["start_redis"]  # a fixture

VERSIONS = sorted(FOLDER.iterdir())


def goes_on(store: Any) -> None:
    """Callers get what they would have got from the version that wrote the records."""
    with Engine(store=store) as engine:
        good = engine.run(order(), {"card": "good"}, idempotency_key="good")
        assert (good.replayed, good["charge"]) == (True, "paid")
        with pytest.raises(IdempotencyHeld):
            engine.run(order(), {"card": "stuck"}, idempotency_key="stuck")
        assert engine.run(order(), {"card": "stolen"}, idempotency_key="stolen", check=False).status == "compensated"
        continued = engine.run(etl(), {"fails": True}, idempotency_key="nightly", check=False)
        assert (str(continued.status), continued["extract"]) == ("incomplete", [1, 2, 3])


def objects(path: Path) -> list[tuple[str, str]]:
    """The tables, indices and triggers of an SQLite file, with the statements that made them."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return sorted(connection.execute("SELECT name, coalesce(sql, '') FROM sqlite_master"))


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda folder: folder.name)
def test_an_sqlite_file_of_a_release_is_read_and_stays_readable_for_that_release(folder: Path, tmp_path: Path) -> None:
    """During a rolling deploy, and after a roll-back, the release uses the file too. It refuses one with other tables."""
    store = restored_sqlite(folder, tmp_path / "runs.db")
    tables = objects(tmp_path / "runs.db")
    assert story(store) == read(folder, "expected.json")["runs"]
    assert store.counts() == {("order", "held"): 1, ("etl", "incomplete"): 1}
    goes_on(store)
    assert store.counts() == {("order", "held"): 1, ("etl", "incomplete"): 1}
    store.close()
    assert objects(tmp_path / "runs.db") == tables


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda folder: folder.name)
def test_a_redis_store_of_a_release_is_read(folder: Path, start_redis: StartRedis) -> None:
    with redis.Redis.from_url(start_redis().url) as client:
        store = restored_redis(folder, client)
        assert story(store) == read(folder, "expected.json")["runs"]
        assert store.counts() == {("order", "held"): 1, ("etl", "incomplete"): 1}
        goes_on(store)
        check_statuses(client, PREFIX)


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda folder: folder.name)
def test_errors_and_runs_that_a_release_pickled_are_read(folder: Path) -> None:
    expected = read(folder, "expected.json")
    pickled = {name: pickle.loads(b64decode(text)) for name, text in read(folder, "errors.json").items()}
    run = pickled.pop("Run")
    assert isinstance(run, Run)
    # The last line advises the operator of a held run, in words that may change between releases.
    assert run.explain().splitlines()[:-1] == expected["explain"].splitlines()[:-1]
    assert {report.undo_started for report in run.steps.values()} == {None}  # which a later release came to know
    assert run.html()
    assert {name: str(error) for name, error in pickled.items()} == expected["errors"]
    assert all(type(error).__name__ == name for name, error in pickled.items())
