"""Recovery logs each run that it cannot resume, once."""

import logging
from pathlib import Path

import pytest

from flowcore import Engine, Workflow
from flowcore.stores import SQLiteStore
from flowcore.stores.base import Claim


def definition(*steps: str) -> Workflow:
    wf = Workflow("order")
    for name in steps:
        wf.add_step(name, lambda ctx: ctx.step)
    return wf


def test_a_run_of_another_definition_is_left_alone_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, old, new = SQLiteStore(tmp_path / "runs.db"), definition("a"), definition("b")
    graph = old.freeze().graph
    store.claim(Claim("k", "1" * 32, "order", "f", graph, {}, lease=0.0))  # its owner died at once
    with caplog.at_level(logging.WARNING, "flowcore"), Engine(store=store, workflows=[new]) as engine:
        assert engine.recover() == engine.recover() == []
    assert [record.message for record in caplog.records] == [
        f"run {'1' * 32} of 'order' cannot be recovered: it was started with a different step graph (step 'a' is missing)"
    ]
    with Engine(store=store, workflows=[old]) as engine:
        (run,) = engine.recover()
    assert run["a"] == "a"
