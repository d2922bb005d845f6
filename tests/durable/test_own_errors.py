"""Workflow(errors=): an error has its type in every process (semantics 18)."""

from pathlib import Path
from typing import Any, Self

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


class Unmade(Exception):
    """Its __new__ takes something else than a message."""

    def __new__(cls, *, code: int) -> Self:
        return super().__new__(cls)

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


class Attributed(Exception):
    """Its text is that of an attribute."""

    def __init__(self, code: int) -> None:
        self.code = code

    def __str__(self) -> str:
        return f"code {self.code + 1}"


class Multi(ExceptionGroup[Exception]):
    pass


class Missing(KeyError):
    pass


class Foreign(Exception):
    pass


def failing(error: Exception, **options: Any) -> Workflow:
    wf = Workflow("order", errors=(Declined, Coded, Missing, *map(type, UNMADE.values())), **options)

    def charge(ctx: Any) -> None:
        raise error

    wf.add_step("reserve", lambda ctx: 1, pivot=True, compensate=lambda ctx: None)
    wf.add_step("charge", charge, depends_on="reserve")
    return wf


ERRORS: dict[str, Exception] = {
    "a listed one": Declined("card declined"),
    "one with an __init__ of its own": Coded(7, card="visa"),
    "a subclass of a listed one": CardDeclined("expired"),
    "a KeyError": Missing("seat"),
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


UNMADE: dict[str, Exception] = {
    "a group": Multi("several", [ValueError("x")]),
    "one with a __new__ of its own": Unmade(code=7),
    "one whose text is that of an attribute": Attributed(7),
    "one whose text is made of its arguments": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
}


@pytest.mark.parametrize("what", UNMADE)
def test_a_listed_error_that_no_message_makes_is_a_run_failed_with_its_text(tmp_path: Path, what: str) -> None:
    error = UNMADE[what]
    with Engine(store=SQLiteStore(tmp_path / "runs.db")) as engine:
        engine.run(failing(error), idempotency_key="k", check=False)
        engine.store.hold("k")
        record = engine.store.find("k")
    assert record is not None
    known = own_error(failing(error), record.error)
    assert isinstance(known, RunFailed)
    assert (known.error_type, known.message) == (type(error).__name__, str(error))


def test_an_error_that_is_not_listed_stays_run_failed(tmp_path: Path) -> None:
    with Engine(store=SQLiteStore(tmp_path / "runs.db")) as engine:
        engine.run(failing(Foreign("x")), idempotency_key="k", check=False)
        record = engine.store.find("k")
    assert record is not None
    error = own_error(failing(Foreign("x")), record.error)
    assert isinstance(error, RunFailed)
    assert error.error_type == "Foreign"
