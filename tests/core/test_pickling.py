"""Errors and runs leave their process: with ids, texts and reports, without live objects (semantics 13)."""

import inspect
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest

from flowcore import (
    CompensationFailed,
    Engine,
    FlowcoreError,
    IdempotencyInProgress,
    MemoryStore,
    NoResult,
    Run,
    RunFailed,
    Status,
    Workflow,
    errors,
)

from .conftest import Drive


class Declined(Exception):
    """What pickle makes of it cannot be read again: __init__ takes two arguments."""

    def __init__(self, code: int, card: str) -> None:
        super().__init__(f"{card}: code {code}")


class Holding(Exception):
    """Holds what cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


def saga(undo_error: Exception, error: Exception) -> Workflow:
    def raises(failure: Exception) -> Any:
        def fail(ctx: Any) -> None:
            raise failure

        return fail

    wf = Workflow("order")
    wf.add_step("lock", lambda ctx: threading.Lock())
    pay = wf.add_step("pay", lambda ctx: {"receipt": 1}, depends_on="lock")
    pay.compensate(retry=1)(raises(undo_error))
    wf.add_step("ship", raises(error), depends_on="pay", retry=2)
    wf.add_step("never", lambda ctx: 1, depends_on="ship")
    return wf


def back(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize(
    "error", [ValueError("plain"), Declined(7, "visa"), Holding()], ids=lambda error: type(error).__name__
)
def test_a_run_and_its_error_can_be_pickled_whatever_failed_it(drive: Drive, error: Exception) -> None:
    run = drive(saga(error, error), check=False)
    copy = back(run)
    assert (type(copy), copy.id, copy.status, copy.explain()) == (
        Run,
        run.id,
        Status.COMPENSATION_FAILED,
        run.explain(),
    )
    assert copy.to_dict()["steps"].keys() == run.to_dict()["steps"].keys()
    assert (copy["pay"], copy.steps["ship"].attempts, copy.workflow) == ({"receipt": 1}, 2, "order")
    with pytest.raises(NoResult):
        copy["lock"]
    with pytest.raises(NoResult):
        copy["never"]
    assert back(copy).explain() == run.explain()

    failed = run.error
    assert isinstance(failed, CompensationFailed)
    read = back(failed)
    assert (type(read), str(read), read.run.id) == (CompensationFailed, str(failed), run.id)
    assert [str(one).rpartition(": ")[2] for one in read.exceptions] == [str(error).rpartition(": ")[2]]
    assert read.failures["pay"] is read.exceptions[0]
    assert str(error) in str(read.__cause__)
    if not isinstance(error, ValueError):
        assert isinstance(read.exceptions[0], RunFailed)
        assert read.exceptions[0].error_type == type(error).__name__


@pytest.mark.parametrize("name", [name for name in errors.__all__ if isinstance(getattr(errors, name), type)])
def test_every_error_can_be_pickled(name: str) -> None:
    kind: Any = getattr(errors, name)
    error: Any
    if kind is CompensationFailed:
        error = kind("undone in part", {"pay": ValueError("bank")})
    elif kind is errors.RetryAfter:
        error = kind(3, "quota")
    else:
        error = kind("a message")
    for option in inspect.signature(kind.__init__).parameters.values():
        if option.kind is option.KEYWORD_ONLY:
            setattr(error, option.name, "kept")
    error.add_note("a note")
    error.__cause__ = KeyError("the cause")
    read = back(error)
    assert (type(read), str(read), read.args, read.__notes__) == (kind, str(error), read.args, ["a note"])
    assert {key: repr(value) for key, value in vars(read).items()} == {
        key: repr(value) for key, value in vars(error).items()
    }
    if isinstance(error, FlowcoreError):
        assert repr(read.__cause__) == "KeyError('the cause')"


def in_a_worker() -> Run:
    with Engine(store=MemoryStore()) as engine:
        return engine.run(saga(Holding(), Declined(7, "visa")))


def test_the_error_of_a_run_in_a_process_pool_reaches_the_caller() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool, pytest.raises(CompensationFailed) as caught:
        pool.submit(in_a_worker).result(60)
    assert caught.value.run is not None
    assert "visa: code 7" in caught.value.run.explain()


def test_what_an_error_carries_survives() -> None:
    error = IdempotencyInProgress("busy", retry_after=1.5, run_id="r1")
    assert (back(error).retry_after, back(error).run_id) == (1.5, "r1")
