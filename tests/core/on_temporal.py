"""The driver of the core's tests that runs workflows on a Temporal server, with a worker of the same process."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Final
from weakref import WeakKeyDictionary

import pytest

from flowcore import Run, Workflow
from tests.temporal.conftest import PATIENCE, Server, connect

__all__ = ["DIFFERENT", "TemporalDrive", "params"]

LEASE: Final = 3.0


class TemporalDrive:
    """As `Drive`. A store that is given stands for a task queue, whose runs it knows."""

    kind = "temporal"

    def __init__(self, server: Server) -> None:
        self._server = server
        self._queues: WeakKeyDictionary[Any, str] = WeakKeyDictionary()

    def __call__(
        self,
        workflow: Workflow,
        values: Mapping[Any, Any] | None = None,
        *,
        store: Any = None,
        hooks: Iterable[Any] = (),
        max_workers: int | None = None,
        grace: float = 5.0,
        **request: Any,
    ) -> Run:
        pytest.importorskip("temporalio")
        from flowcore.temporal import TemporalEngine, temporal_worker

        fresh = f"q-{uuid.uuid4().hex[:8]}"
        queue = fresh if store is None else self._queues.setdefault(store, fresh)
        runs, errors = list[Run](), list[BaseException]()

        async def main() -> None:
            client = await connect(self._server.address)
            engine = TemporalEngine(client, task_queue=queue, prefix=f"{queue}:", hooks=hooks, lease=LEASE, grace=grace)
            worker = temporal_worker(
                client,
                task_queue=queue,
                workflows=[workflow],
                hooks=hooks,
                lease=LEASE,
                max_workers=max_workers or 32,
            )
            try:
                # The first cancellation waits for undos, which a worker must make; the second one waits for nothing.
                async with worker, asyncio.timeout(PATIENCE + 1), asyncio.timeout(PATIENCE):
                    runs.append(await engine.run(workflow, values, **request))
            except BaseException as error:  # noqa: BLE001 - asyncio.run cannot raise an exception without a repr
                errors.append(error)

        asyncio.run(main())
        if errors:
            raise errors[0]
        return runs[0]


MODULES: Final = frozenset(
    f"test_{name}"
    for name in (
        *("scheduling", "when", "retry", "undo", "pivot", "timeouts", "keys", "context", "failure", "definitions"),
        *("go_defects", "corners"),
    )
)
"""the modules whose tests run on Temporal too; the others are about hooks, whose events come from several processes there, or
about what only one process has"""
QUICK: Final = frozenset({"test_scheduling", "test_when"})
"""those of them that each change must pass; the others take `--proof=full`"""
DIFFERENT: Final[dict[str, tuple[str, ...]]] = {
    "an error is another object of its class, or a RunFailed": (
        "test_failure::test_the_steps_own_exception_is_raised",
        "test_failure::test_the_note_names_run_step_attempts_and_what_was_undone",
        "test_failure::test_a_base_exception_undoes_everything_and_is_raised_itself",
        "test_failure::test_a_step_that_raises_cancellederror_itself_has_failed",
        "test_undo::test_if_the_original_is_a_baseexception_it_is_raised_with_the_report_as_its_note",
        "test_retry::test_a_group_that_contains_fatal_at_any_depth_is_not_retried",
        "test_context::test_an_undo_may_ask_after_the_step_that_failed",
        "test_keys::test_once_makes_a_failure_the_outcome_of_every_later_call",
        "test_keys::test_an_adopted_failure_of_which_only_text_is_left_is_runfailed",
    ),
    "values, keys and results are stored, also of a run without a key": (
        "test_context::test_keys_may_be_anything_that_a_dict_takes",
        "test_context::test_the_callers_initial_values_are_never_changed",
        "test_keys::test_fingerprint_says_what_makes_two_requests_the_same",
        "test_keys::test_values_without_canonical_json_are_refused_only_with_a_key",
        "test_keys::test_keys_are_taken_literally",
        "test_keys::test_the_workflow_may_name_its_key_or_derive_it_from_the_values",
    ),
    "the test looks into a store of this process": (
        "test_corners::test_a_durable_store_records_runs_without_a_key",
        "test_corners::test_an_error_of_the_store_at_the_claim_is_raised_and_nothing_runs",
        "test_go_defects::test_an_error_of_the_store_at_the_end_is_not_dropped",
        "test_go_defects::test_an_error_of_the_store_after_a_failure_is_a_note_on_it",
        "test_go_defects::test_nothing_is_kept_for_ever",
        "test_go_defects::test_an_unknown_state_of_a_record_does_not_mean_busy_for_ever",
        "test_pivot::test_only_an_operator_undoes_a_run_past_its_pivot",
        "test_pivot::test_an_incomplete_run_may_be_given_up_with_release",
        "test_pivot::test_with_undo_never_a_failed_run_is_incomplete_and_the_next_call_continues_at_the_failed_step",
        "test_pivot::test_a_run_that_failed_with_nothing_undone_continues_at_the_failed_step_once_it_is_resumed",
        "test_keys::test_a_held_key_is_refused_naming_the_way_out_until_it_is_released",
        "test_keys::test_a_run_without_a_key_whose_undo_failed_is_on_record",
    ),
    "steps take longer, and start in no order of their own": (
        "test_scheduling::test_max_workers_one_runs_everything_in_order",
        "test_timeouts::test_no_step_starts_after_the_deadline",
    ),
    "a run waits for a worker that has its steps": (
        "test_pivot::test_a_changed_definition_is_refused_loudly",
        "test_pivot::test_a_store_that_refuses_a_changed_definition_has_not_failed",
    ),
}
"""tests of those modules that do not hold on Temporal, by reason; the guide's page has them"""
_LEFT_OUT: Final = frozenset(itertools.chain.from_iterable(DIFFERENT.values()))


def params(definition: Any) -> list[Any]:
    """The driver, as a parameter of a test that holds on Temporal."""
    module = definition.path.stem
    if module not in MODULES or f"{module}::{definition.originalname or definition.name}" in _LEFT_OUT:
        return []
    return [pytest.param("temporal", marks=() if module in QUICK else pytest.mark.full)]
