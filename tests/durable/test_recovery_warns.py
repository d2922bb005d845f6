"""Recovery logs runs that it cannot resume once for each of their step graphs."""

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


def test_runs_of_another_definition_are_left_alone_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, old, new = SQLiteStore(tmp_path / "runs.db"), definition("a"), definition("b")
    graph = old.freeze().graph
    for number in ("1", "2"):
        store.claim(Claim(number, number * 32, "order", "f", graph, {}, lease=0.0))  # its owner died at once
    with caplog.at_level(logging.WARNING, "flowcore"), Engine(store=store, workflows=[new]) as engine:
        assert engine.recover() == engine.recover() == []
    (line,) = [record.message for record in caplog.records]
    why = "it was started with a different step graph (step 'a' is missing). Other runs like it are not logged."
    assert line in {f"run {number * 32} of 'order' cannot be recovered: {why}" for number in "12"}
    with Engine(store=store, workflows=[old]) as engine:
        assert [run["a"] for run in engine.recover()] == ["a", "a"]
