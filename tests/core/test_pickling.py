"""Errors and runs leave their process: with ids, texts and reports, without live objects (semantics 13)."""

import copy
import inspect
import json
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
from flowcore._wire import pack_error, unpack_error
from flowcore.portable import portable

from .conftest import Drive


class Declined(Exception):
    """Pickle itself cannot restore it: __init__ takes two arguments."""

    def __init__(self, code: int, card: str) -> None:
        super().__init__(f"{card}: code {code}")


class Priced(Exception):
    """Pickle itself would change it: __init__ formats its argument."""

    def __init__(self, price: object) -> None:
        super().__init__(f"too dear: {price}")
        self.price = price


class Forgetful(Exception):
    """Pickle itself would drop its notes: __reduce__ leaves them out."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args


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
    read_run = back(run)
    assert (type(read_run), read_run.id, read_run.status, read_run.explain()) == (
        Run,
        run.id,
        Status.COMPENSATION_FAILED,
        run.explain(),
    )
    assert read_run.to_dict()["steps"].keys() == run.to_dict()["steps"].keys()
    assert (read_run["pay"], read_run.steps["ship"].attempts, read_run.workflow) == ({"receipt": 1}, 2, "order")
    with pytest.raises(NoResult, match="it succeeded, but its result of type lock could not be pickled"):
        read_run["lock"]
    with pytest.raises(NoResult, match="could not be pickled"):
        back(read_run)["lock"]
    with pytest.raises(NoResult):
        read_run["never"]
    assert back(read_run).explain() == run.explain()

    failed = run.error
    assert isinstance(failed, CompensationFailed)
    read = back(failed)
    assert (type(read), str(read), read.run.id) == (CompensationFailed, str(failed), run.id)
    assert [str(one).rpartition(": ")[2] for one in read.exceptions] == [str(error).rpartition(": ")[2]]
    assert read.failures["pay"] is read.exceptions[0]
    assert str(error) in str(read.__cause__)
    if isinstance(error, Holding):
        assert isinstance(read.exceptions[0], RunFailed)
        assert read.exceptions[0].error_type == type(error).__name__


def noted(error: BaseException) -> BaseException:
    error.add_note("flowcore says")
    return error


DECODING = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


@pytest.mark.parametrize(
    "error",
    [
        Priced(5),
        Forgetful("it"),
        DECODING,
        KeyError("k"),
        OSError(2, "gone", "file"),
        ExceptionGroup("all", [Priced(5)]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_pickled_error_keeps_its_type_text_and_notes(error: BaseException) -> None:
    wf = Workflow("order")
    wf.add_step("ship", lambda ctx: (_ for _ in ()).throw(noted(error)))
    run = Drive("threads")(wf, check=False)
    assert run.error is error
    pickled = back(run)
    read = pickled.error
    assert pickled.steps["ship"].error is read
    for found in (read, back(CompensationFailed("not undone", {"pay": error})).failures["pay"]):
        assert (type(found), str(found), found.__notes__) == (type(error), str(error), error.__notes__)
        assert found.__dict__.keys() == error.__dict__.keys()
    if isinstance(error, ExceptionGroup):
        assert list(map(str, read.exceptions)) == list(map(str, error.exceptions))


@pytest.mark.parametrize(
    "error",
    [
        *(Priced(5), DECODING, UnicodeEncodeError("utf-8", "\udcff", 0, 1, "no"), KeyError("k")),
        *(OSError(2, "gone", "file"), PermissionError("declined"), errors.StepTimeout("late"), errors.RunTimeout()),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_that_crosses_as_plain_data_keeps_its_text(error: BaseException) -> None:
    read = unpack_error(json.loads(json.dumps(pack_error(error))))
    if isinstance(error, UnicodeError):  # its text is not made of its arguments
        assert isinstance(read, RunFailed)
        assert (read.error_type, read.message) == (type(error).__name__, str(error))
    else:
        assert (type(read), str(read), read.args) == (type(error), str(error), error.args)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_run_and_its_error_can_be_copied(copied: Any) -> None:
    run = Drive("threads")(saga(Priced(5), Priced(6)), check=False)
    assert isinstance(run.error, CompensationFailed)
    for error in (copied(run.error), copied(run).error):
        assert (type(error), str(error), str(error.__cause__)) == (CompensationFailed, str(run.error), "too dear: 6")
        assert [str(one) for one in (*error.exceptions, error.failures["pay"])] == ["too dear: 5"] * 2
    assert str(copied(run).steps["ship"].error) == "too dear: 6"


def test_a_run_whose_error_refers_to_it_is_pickled_without_recursion(monkeypatch: pytest.MonkeyPatch) -> None:
    run, asked = Drive("threads")(saga(Priced(5), Priced(6)), check=False), list[BaseException | None]()
    assert run.error.run is run

    def counted(error: BaseException | None) -> Any:
        asked.append(error)
        return portable(error)

    monkeypatch.setattr("flowcore.run.portable", counted)
    assert back(run).error.run.id == back(run.error).run.id == run.id
    assert 3 <= len(asked) <= 30


def test_an_error_that_cannot_be_pickled_leaves_its_notes() -> None:
    read = back(CompensationFailed("not undone", {"pay": noted(Holding())})).failures["pay"]
    assert (type(read), read.message, read.__notes__) == (RunFailed, "holds a lock", ["flowcore says"])


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
