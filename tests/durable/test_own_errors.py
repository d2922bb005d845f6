"""Workflow(errors=): an error has its type in every process (semantics 18)."""

from pathlib import Path
from typing import Any

import pytest

from flowcore import Engine, RunFailed, Workflow
from flowcore.own_errors import own_error
from flowcore.stores import SQLiteStore


class Declined(Exception):
    pass


class CardDeclined(Declined):
    pass


class Coded(Exception):
    """Takes something else than a message."""

    def __init__(self, code: int, *, card: str) -> None:
        super().__init__(f"card {card}:\ncode {code}")


class Foreign(Exception):
    pass


def failing(error: Exception, **options: Any) -> Workflow:
    wf = Workflow("order", errors=(Declined, Coded), **options)

    def charge(ctx: Any) -> None:
        raise error

    wf.add_step("reserve", lambda ctx: 1, pivot=True, compensate=lambda ctx: None)
    wf.add_step("charge", charge, depends_on="reserve")
    return wf


ERRORS: dict[str, Exception] = {
    "a listed one": Declined("card declined"),
    "one with an __init__ of its own": Coded(7, card="visa"),
    "a subclass of a listed one": CardDeclined("expired"),
}


@pytest.mark.parametrize("what", ERRORS)
def test_a_listed_error_has_its_type_for_later_callers(tmp_path: Path, what: str) -> None:
    error, path = ERRORS[what], tmp_path / "runs.db"
    with Engine(store=SQLiteStore(path)) as engine:
        run_id = engine.run(failing(error), idempotency_key="k", check=False).id
        engine.store.hold("k")
    store = SQLiteStore(path)
    record = store.find("k")
    assert record is not None
    assert record.run_id == run_id
    rebuilt = own_error(failing(error), record.error)
    assert (type(rebuilt), str(rebuilt)) == (type(error), str(error))
    assert isinstance(rebuilt.__cause__, RunFailed)


def test_an_error_that_is_not_listed_stays_run_failed(tmp_path: Path) -> None:
    with Engine(store=SQLiteStore(tmp_path / "runs.db")) as engine:
        engine.run(failing(Foreign("x")), idempotency_key="k", check=False)
        record = engine.store.find("k")
    assert record is not None
    error = own_error(failing(Foreign("x")), record.error)
    assert isinstance(error, RunFailed)
    assert error.error_type == "Foreign"
