"""The audit finds what it is there for: each kind of wrong is planted in a story that is right, and told."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from flowcore import Status, StepReport
from flowcore.stores.base import RunRecord
from tests.durable.audit import audit
from tests.durable.ledger import Effect, Ledger, Word, effects_of
from tests.durable.sagas import World, saga


def did(step: str, fence: int, at: float, what: str = "do", key: str = "") -> Effect:
    return Effect("k", step, key or f"{what} {step}", what, fence, "r", fence, 1, at, at)


def said(verb: str, fence: int, at: float, *done: str) -> Word:
    return Word("k", verb, "r", fence, list(done), [], fence, 1, at, at + 0.1)


STEPS = {name: StepReport(Status.SUCCESS, 1) for name in "abc"}
VALUES = {"by a": 1, "by b": 2, "by c": 2}
RESULTS = {name: f"{name} is done" for name in "abc"}
ENDED = RunRecord("k", "r", "success", "f", "g", Status.SUCCESS, steps=STEPS, values=VALUES, results=RESULTS)
A, B, B2, C = did("a", 1, 1.0), did("b", 1, 2.0), did("b", 2, 5.0), did("c", 2, 6.0)
"""a is done, b is in flight when the first owner dies, and is done again by the second one"""
WORDS = [
    said("claim", 1, 0.5),
    said("checkpoint", 1, 1.2, "a"),
    said("claim", 2, 4.0),
    said("checkpoint", 2, 5.2, "b"),
    said("finish", 2, 6.2, "c"),
]


@pytest.mark.parametrize(
    ("effects", "words", "record", "wrong"),
    [
        ([A, B, B2, C], WORDS, ENDED, None),
        ([A, B, B2, C, did("c", 2, 6.1)], WORDS, ENDED, "do c .* happened twice under one owner"),
        ([A, B, did("a", 2, 4.5), B2, C], WORDS, ENDED, "do a .* happened again, though the store knew of it"),
        ([A, B, C, B2], WORDS, ENDED, "c was done before b was"),
        ([A, B, B2, did("c", 1, 5.5), C], WORDS, ENDED, r"do c \(run r, fence 1, .* came after its owner's lease"),
        ([A, B2, C, B], WORDS, ENDED, r"do b \(run r, fence 1, .* came after its owner's lease"),  # it was written late
        ([A, B, B2, C], [*WORDS, said("checkpoint", 1, 7.0)], ENDED, "fence 1 was accepted after fence 2"),
        ([A, B, B2], WORDS, ENDED, "the run succeeded, and .* stand"),
        ([A, B, B2, C, did("a", 2, 7.0, "undo")], WORDS, ENDED, "something was undone"),
        ([A, B, B2, did("c", 2, 6.0, key="do b")], WORDS, ENDED, "do c .* has the step_key of r b do"),
        ([A, B, B2, C], WORDS, replace(ENDED, status=Status.RUNNING), "the run did not end"),
        ([A, B, B2, C], WORDS, replace(ENDED, status=Status.COMPENSATED), "ended with compensated, and .* still stand"),
        ([A, B, B2, C], WORDS, replace(ENDED, values=VALUES | {"by b": 9}), "b left 9"),
        ([A, B, B2, C], WORDS, None, "a of released run r still stands"),
    ],
)
def test_the_audit_reports_what_is_wrong(
    effects: list[Effect], words: list[Word], record: RunRecord | None, wrong: str | None, tmp_path: Path
) -> None:
    found = "\n".join(audit(effects, words, record, saga("success", World(Ledger(str(tmp_path / "ledger"))))))
    assert (re.search(wrong, found) is not None) if wrong else not found, found


@pytest.mark.parametrize(("called", "excused"), [(2.0, True), (4.6, False)])
def test_whose_process_froze_in_a_step_that_waits_is_excused_and_who_began_it_afterwards_is_not(
    called: float, excused: bool, tmp_path: Path
) -> None:
    def was_frozen(_: Effect, since: float) -> bool:
        return since <= 4.3  # from 3.0 to 4.3, while the lease of fence 1 ran out

    words = [*WORDS, said("checkpoint", 1, 4.4)._replace(sent=1.5)]  # heard after that, by the same event loop
    effects = [A, B, B2, C, did("c", 1, 4.7)._replace(called=called)]
    found = audit(effects, words, ENDED, saga("success", World(Ledger(str(tmp_path / "ledger")))), was_frozen)
    assert bool(found) is not excused


def test_a_line_that_a_kill_has_cut_short_is_not_there_and_the_next_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger, effects = Ledger(str(path)), [did(step, 1, 1.0) for step in "abc"]
    for effect in effects:
        ledger.write(effect)
        if effect.step == "b":
            os.truncate(path, path.stat().st_size - 20)
    ledger.close()
    assert effects_of(path) == {effects[0].key: [effects[0], effects[2]]}
