"""Records with anything in any field: a verb returns, or raises a StoreError, in time and within a bound of memory."""

from pathlib import Path

import pytest

from tests.security.fuzz import STATES, OfRedis, OfSQLite, fuzz


def test_no_field_of_an_sqlite_record_breaks_a_verb(tmp_path: Path, *, full: bool) -> None:
    assert fuzz(OfSQLite(tmp_path), 1000 if full else 60)


def test_no_field_of_a_redis_record_breaks_a_verb(redis_url: str, *, full: bool) -> None:
    assert fuzz(OfRedis(redis_url), 1000 if full else 60)


@pytest.mark.parametrize("run_id", ["9" * 5000, "a line\nand another", "\x1b[2J"])
def test_a_run_id_that_would_swamp_or_break_a_message_is_refused(tmp_path: Path, redis_url: str, run_id: str) -> None:
    sqlite, redis = OfSQLite(tmp_path), OfRedis(redis_url)
    for state in STATES:
        assert sqlite.attempt(state, ("runs", "run_id"), run_id) == []
        assert redis.attempt(state, b"run_id", run_id) == []
