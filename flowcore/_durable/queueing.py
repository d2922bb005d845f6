"""Recording a submitted run as queued, before any thread begins it."""

from __future__ import annotations

from collections.abc import Callable

from .._kernel import emit
from .._kernel.effects import Program, Sleep
from .._kernel.run_state import RunState
from ..errors import StoreUnavailable
from ..stores.base import Claim, Claimed, Owner
from . import checkpoints
from .claim import StoreClaims, fingerprint_of

__all__ = ["enqueue"]


def enqueue(run: RunState, owner: Owner, dropped: Callable[[], bool]) -> Program[Claim | None]:
    """Record the run as queued, to be begun by this process, `owner`. Returns the claim. Returns None if the key is not
    free, which the claim at its start handles, or if `dropped` reports that the run was dropped meanwhile.

    Raises NotSerializable if its values cannot be stored, and StoreError if the run could not be recorded.
    """
    emit.prepare_store_context(run)  # the store is called before emit.requested, which prepares the context again
    run.fingerprint = fingerprint_of(run)
    claims = run.settings.claims
    if isinstance(claims, StoreClaims) and claims.has_here(run.stored_key):
        return None
    wanted = Claim(run.stored_key, run.run_id, run.workflow.name, run.fingerprint, run.plan.graph, run.carrier)
    wanted.queued, wanted.once, wanted.deadline, wanted.owner = True, run.request.once, run.request.deadline, owner
    wanted.values, wanted.lease, wanted.types = run.values, run.settings.lease, run.plan.types
    clock = run.settings.clock
    until, tries = clock() + run.settings.lease * checkpoints.CLAIM_PATIENCE, 0
    while True:
        answer, failure = yield from checkpoints.ask(run, "claim", wanted)
        if not isinstance(failure, StoreUnavailable) or dropped() or clock() >= until:
            break
        tries += 1
        yield Sleep(checkpoints.STORE_BACKOFF.delay(tries))
    if isinstance(failure, StoreUnavailable) or dropped():
        yield from checkpoints.ask(run, "withdraw", wanted)  # it may have been granted, and only the reply was lost
    if dropped():
        return None
    if failure is not None:
        raise failure
    if not isinstance(answer, Claimed) or answer.record is not None:
        return None
    run.fence, run.queued = answer.fence, True
    return wanted
