"""A held run that an operator has undone again, and again in vain: its error names what failed it first."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowcore import CompensationFailed, Context, Engine, RunFailed, Workflow
from flowcore.stores import MemoryStore, SQLiteStore
from flowcore.testing import SimulatedStore, no_waiting


def refunding(error: Exception) -> Workflow:
    """A workflow whose only effect cannot be undone."""
    wf = Workflow("order")

    @wf.step
    def reserve(ctx: Context) -> str:
        return "R-1"

    @reserve.compensate
    def release(ctx: Context) -> None:
        raise ConnectionError("warehouse is down")

    @wf.step(depends_on=reserve)
    def charge(ctx: Context) -> None:
        raise error

    return wf


@pytest.mark.parametrize("kind", ["memory", "simulated", "sqlite"])
def test_the_first_error_stays_the_cause_however_often_undoing_fails(kind: str, tmp_path: Path) -> None:
    stores: dict[str, Callable[[], Any]] = {
        "memory": MemoryStore,
        "simulated": SimulatedStore,
        "sqlite": lambda: SQLiteStore(tmp_path / "runs.db"),
    }
    store, wf = stores[kind](), refunding(PermissionError("card declined"))
    with no_waiting(), Engine(store=store) as engine:
        failed = engine.run(wf, idempotency_key="k", check=False)
        for _ in range(2):
            store.undo("k")
            failed = engine.run(wf, idempotency_key="k", check=False)
    assert isinstance(failed.error, CompensationFailed)
    cause = failed.error.__cause__
    assert isinstance(cause, PermissionError) or (
        isinstance(cause, RunFailed) and cause.error_type == "PermissionError"
    )
    assert str(failed.error).count("CompensationFailed") == 0
    assert "card declined" in str(failed.error)
