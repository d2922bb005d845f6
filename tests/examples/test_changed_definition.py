"""What the README says of changing a workflow that has runs under way: what is refused, and the two ways forward."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowcore import Backoff, Engine, IdempotencyMismatch, Retry, StoreError, Workflow
from flowcore.stores import SQLiteStore

DIES_IN_PAY = """
import os, sys
from flowcore import Engine, Workflow
from flowcore.stores import SQLiteStore
wf = Workflow("trip")
wf.add_step("book", lambda ctx: "12A", compensate=lambda ctx: None)
wf.add_step("pay", lambda ctx: os.kill(os.getpid(), 9), depends_on="book", compensate=lambda ctx: None)
Engine(store=SQLiteStore(sys.argv[1]), lease=0.2).run(wf, idempotency_key="k")
"""


@pytest.fixture(scope="module")
def died(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store with a run that a process has died of in its second step."""
    folder = tmp_path_factory.mktemp("died")
    result = subprocess.run([sys.executable, "-c", DIES_IN_PAY, str(folder / "runs.db")], check=False)
    assert result.returncode == -9
    return folder


@pytest.fixture
def store(died: Path, tmp_path: Path) -> Iterator[SQLiteStore]:
    shutil.copytree(died, tmp_path, dirs_exist_ok=True)
    store = SQLiteStore(tmp_path / "runs.db")
    yield store
    store.close()


def trip(name: str = "trip", *, insured: bool = False, log: list[str] | None = None, dear: bool = False) -> Workflow:
    """The workflow of the process that died, or what became of it later."""
    reported = [] if log is None else log
    wf = Workflow(name)
    wf.add_step("book", lambda ctx: reported.append("book"), compensate=lambda ctx: reported.append("cancel"))
    if insured:
        wf.add_step("insure", lambda ctx: reported.append("insure"), depends_on="book")
    before = "insure" if dear else "book"
    wf.add_step(
        "pay", lambda ctx: reported.append("pay"), depends_on=before, compensate=lambda ctx: reported.append("refund")
    )
    return wf


def test_another_graph_is_refused_and_the_run_left_as_it_is(store: SQLiteStore) -> None:
    log: list[str] = []
    with Engine(store=store) as engine:
        with pytest.raises(StoreError, match=r"Run \w+ of 'trip' was started with a different step graph"):
            engine.run(trip(insured=True, dear=True, log=log), idempotency_key="k", wait=5)
        refused = store.find("k")
        run = engine.run(trip(log=log), idempotency_key="k")

    assert refused is not None
    assert (refused.status, list(refused.results)) == ("running", ["book"])
    assert (run.status, log) == ("success", ["pay"])


def without(wf: Workflow, undo_of: str) -> Workflow:
    step = next(step for step in wf.steps if step.name == undo_of)
    step.compensation = None
    return wf


def with_pivot() -> Workflow:
    wf = trip()
    wf.steps[1].pivot = True
    return wf


@pytest.mark.parametrize(
    "changed",
    [trip(insured=True, dear=True), without(trip(), undo_of="pay"), with_pivot()],
    ids=["another dependency", "an undo less", "a pivot"],
)
def test_what_belongs_to_the_graph(store: SQLiteStore, changed: Workflow) -> None:
    with Engine(store=store) as engine, pytest.raises(StoreError, match="different step graph"):
        engine.run(changed, idempotency_key="k", wait=5)


def test_code_retries_timeouts_and_what_to_do_after_a_crash_may_change(store: SQLiteStore) -> None:
    wf = Workflow("trip")
    wf.add_step("book", lambda ctx: "another seat", compensate=lambda ctx: None, retry=5, timeout=3)
    wf.add_step(
        "pay",
        lambda ctx: "paid in another way",
        depends_on="book",
        compensate=lambda ctx: None,
        retry=Retry(2, Backoff.fixed(0.1)),
        on_crash="undo",
        verify=lambda ctx: None,
    )
    with Engine(store=store) as engine:
        run = engine.run(wf, idempotency_key="k", wait=5, check=False)

    assert (run.status, run["book"], run.undone) == ("compensated", "12A", ("pay", "book"))


def test_draining_lets_the_old_definition_finish_and_the_new_one_begin(store: SQLiteStore) -> None:
    log: list[str] = []
    with Engine(store=store, workflows=[trip(log=log)]) as old:
        while store.list_runs(status="running"):
            old.recover()
    with Engine(store=store) as new:
        replayed = new.run(trip(insured=True, log=log), idempotency_key="k")
        run = new.run(trip(insured=True, log=log), idempotency_key="another")

    # The new definition runs "insure" and "pay" beside each other.
    assert (log[:2], sorted(log[2:])) == (["pay", "book"], ["insure", "pay"])
    assert (replayed.status, replayed.replayed) == ("success", True)
    assert (run.status, run.replayed) == ("success", False)


def test_draining_may_undo_what_should_not_go_forward(store: SQLiteStore) -> None:
    log: list[str] = []
    while not store.list_runs(status="expired"):
        pass
    store.undo("k")
    with Engine(store=store, workflows=[trip(log=log)]) as old:
        (undone,) = old.recover()
    with Engine(store=store) as new:
        run = new.run(trip(insured=True, log=log), idempotency_key="k")

    assert (undone.status, log[:2]) == ("compensated", ["refund", "cancel"])
    assert (run.status, log[2], sorted(log[3:])) == ("success", "book", ["insure", "pay"])


def test_renaming_lets_both_definitions_continue_with_keys_of_their_own(store: SQLiteStore) -> None:
    log: list[str] = []
    old, new = trip(log=log), trip("trip-2", insured=True, log=log)
    with Engine(store=store, workflows=[old, new]) as engine:
        run = engine.run(new, idempotency_key="another")
        while store.list_runs(status="running"):
            engine.recover()
        with pytest.raises(IdempotencyMismatch, match="was already used with workflow 'trip'"):
            engine.run(new, idempotency_key="k")

    # Recovery runs the other one beside it.
    assert (run.status, sorted(log)) == ("success", ["book", "insure", "pay", "pay"])
    assert store.list_runs(status="success", workflow="trip") != []
