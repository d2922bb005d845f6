"""The tables of statuses: complete, and without contradictions; and what a Run tells."""

import itertools
import json
from typing import Any

import pytest

from flowcore import NoResult, Run, Status, StepReport, Workflow
from flowcore._kernel.effects import REQUEST_WORKER
from flowcore._kernel.outcome import RUN, STEP, UNDO, outcome

from .conftest import Drive, Ledger


def test_every_combination_of_facts_has_exactly_one_outcome() -> None:
    names = ("lost", "parked", "failed", "past_pivot", "undone", "undo_failed")
    for facts in itertools.product([False, True], repeat=6):
        status = outcome(**dict(zip(names, facts, strict=True)))
        lost, parked, failed, past_pivot, undone, undo_failed = facts
        assert (status is Status.LOST) == lost
        if lost:
            continue
        assert (status is Status.SUCCESS) == (not parked and not failed)
        assert (status is Status.PARKED) == parked
        if failed and not parked and not past_pivot:
            assert (status is Status.COMPENSATION_FAILED) == undo_failed
            assert (status is Status.COMPENSATED) == (undone and not undo_failed)


@pytest.mark.parametrize("table", [RUN, STEP, UNDO], ids=["run", "step", "undo"])
def test_a_table_leads_only_to_statuses_it_knows_and_final_ones_stay(table: Any) -> None:
    assert {after for afters in table.values() for after in afters} <= set(table)
    assert Status.SUCCESS in table
    assert all(status in table or status not in itertools.chain(*table.values()) for status in Status)


def test_statuses_are_their_plain_strings() -> None:
    assert str(Status.SUCCESS) == "success"
    assert Status("success") is Status.SUCCESS
    assert f"{Status.COMPENSATION_FAILED}" == "compensation_failed"
    assert {str(status) for status in Status} == {
        *("pending", "running", "success", "failure", "timeout", "cancelled", "skipped", "unknown"),
        *("compensated", "compensation_failed", "incomplete", "parked", "lost", "queued", "waiting"),
    }


def test_signals_print_their_names() -> None:
    assert repr(REQUEST_WORKER) == "REQUEST_WORKER"


# -- Run ---------------------------------------------------------------------------------------------------------------


def ended(status: Status, error: Exception | None = None) -> Run:
    """A run whose only step has this status."""

    class Known:
        run_id = "1" * 32

    wf = Workflow("w")
    wf.add_step("a", lambda ctx: 1)
    return Run(Known(), "w", status, {}, {"a": StepReport(status, error=error)}, wf.plan())


def test_explain_gives_the_story_in_plain_words(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("trip")
    ledger.add(wf, "book")
    ledger.add(wf, "hotel", depends_on="book", when=lambda ctx: False)
    ledger.add(wf, "car", depends_on="hotel", undo_raises=LookupError("gone"))
    ledger.add(wf, "pay", depends_on="car", raises=ValueError("declined"), retry=3)
    ledger.add(wf, "mail", depends_on="pay")
    run = drive(wf, check=False)
    assert (
        run.explain()
        == f"""\
Run {run.id} of 'trip': failed at step 'pay': CompensationFailed: {run.error}; could NOT be undone: car
  book: success; undone
  hotel: skipped
  car: success; its undo FAILED with LookupError: gone
  pay: failure after 3 attempts with ValueError: declined
  mail: pending
  The key is held. Retry the compensations with engine.store.undo(key), or clean up by hand and call engine.store.release(key)."""
    )


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ("a b", "success"),
        ("a b!", "failed at step 'b': ValueError: b failed; undone: a"),
        ("b!", "nothing had to be undone"),
    ],
)
def test_explain_begins_with_how_it_ended(drive: Drive, ledger: Ledger, names: str, line: str) -> None:
    run = drive(ledger.chain(*names.split()), check=False)
    assert line in run.explain().splitlines()[0]


def test_explain_of_a_large_run_stays_short(drive: Drive) -> None:
    wf = Workflow("large")
    for number in range(1000):
        wf.add_step(str(number), lambda ctx: 1)
    text = drive(wf).explain()
    assert len(text.splitlines()) == 202
    assert "… and 800 more steps" in text


def test_explain_gives_times_if_the_run_was_observed(drive: Drive, ledger: Ledger) -> None:
    assert " ms" not in drive(ledger.chain("a")).explain()
    assert " ms" in drive(ledger.chain("a"), hooks=[lambda event: None]).explain()


def test_explain_of_other_endings_says_the_status() -> None:
    assert ended(Status.LOST).explain() == f"Run {'1' * 32} of 'w': lost\n  a: lost"


def test_seconds_are_none_unless_the_run_is_observed(drive: Drive, ledger: Ledger) -> None:
    report = drive(ledger.chain("a")).steps["a"]
    assert (report.waited, report.ran, report.backed_off) == (None, None, None)
    report = drive(ledger.chain("a"), hooks=[lambda event: None]).steps["a"]
    assert None not in (report.waited, report.ran, report.backed_off)


def test_to_dict_is_plain_data_without_values(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("trip")
    ledger.add(wf, "book", first=lambda ctx: "SECRET")
    ledger.add(wf, "pay", depends_on="book", raises=ValueError("declined"))
    run = drive(wf, {"card": "SECRET"}, check=False)
    data = json.loads(json.dumps(run.to_dict()))
    assert "SECRET" not in json.dumps(data)
    assert (data["id"], data["workflow"], data["status"], data["failed_step"]) == (run.id, "trip", "compensated", "pay")
    assert data["error"] == {"type": "ValueError", "message": "declined"}
    assert (data["undone"], data["replayed"], data["held"]) == (["book"], False, False)
    assert data["steps"]["book"] == {
        **dict.fromkeys(("waited", "ran", "backed_off", "error")),
        "status": "success",
        "attempts": 1,
        "errors": [],
        "undo": "success",
    }
    assert "SECRET" not in repr(run) + run.explain()


def test_results_are_in_order_of_completion_and_steps_in_order_of_definition(drive: Drive, ledger: Ledger) -> None:
    wf = Workflow("w")
    ledger.add(wf, "last", depends_on="first")
    ledger.add(wf, "first")
    run = drive(wf)
    assert (list(run.results), list(run.steps)) == (["first", "last"], ["last", "first"])


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (Status.PENDING, "it has not run"),
        (Status.RUNNING, "it is still running"),
        (Status.SKIPPED, "it was skipped by its when="),
        (Status.FAILURE, "it failed with ValueError"),
        (Status.TIMEOUT, "it ended as timeout: its outcome is unknown with ValueError"),
        (Status.CANCELLED, "it ended as cancelled: its outcome is unknown with ValueError"),
        (Status.UNKNOWN, "it ended as unknown: its outcome is unknown with ValueError"),
    ],
)
def test_no_result_says_why(status: Status, why: str) -> None:
    error = ValueError("x") if "ValueError" in why else None
    with pytest.raises(NoResult) as caught:
        ended(status, error)["a"]
    assert str(caught.value) == f"step 'a' has no result: {why}."
    assert isinstance(caught.value, KeyError)
