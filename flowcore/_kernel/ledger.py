"""The interfaces of durability that the kernel uses, and that `flowcore._durable` implements.

A run in memory without a key uses none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..context import Watch
from ..plan import Node
from ..run import Run
from .effects import Program

if TYPE_CHECKING:
    from .inline import FirstAttempt
    from .outcome import StepEnd
    from .run_state import RunState

Errors = tuple[tuple[str, str], ...]
"""type and message of each failed attempt, or of the first and last of many"""

__all__ = ["Claims", "Earlier", "Ledger", "Takeover", "now_of"]


class Ledger(Protocol):
    """Records the steps of a durable run. Each program ends once its change is saved, or once the run has stopped
    because the store is unreachable or another owner has taken the run over."""

    @property
    def handed_out(self) -> Watch:
        """The watch that finds values which a step changes in place."""
        ...

    def extend_lease(self, until: float) -> None:
        """Note that no other owner can take the run over before the moment `until` (monotonic)."""
        ...

    def may_begin(self, run: RunState, node: Node) -> bool:
        """Whether `node` may start at once, because its start is saved and the run is still ours."""
        ...

    epoch: float
    """the offset from monotonic seconds to seconds since the epoch by the store's clock"""

    ahead: float
    """how many seconds the store's clock is ahead of this host's: less than 0 if it is behind"""

    def began(self, run: RunState, node: Node, attempt: int, errors: Errors) -> Program[bool]:
        """Save that an attempt of `node` is about to start. `errors`: those of the attempts before it. Returns False if
        it must not start, because the run stops. Raises NotSerializable if the store cannot keep a value that the
        step's `when=` or an earlier attempt wrote."""
        ...

    def waits(self, run: RunState, node: Node, until: float) -> Program[bool]:
        """Save that `node` waits from now on, until the moment `until` (monotonic) at most. Returns False if it must
        not wait, because the run stops. Raises as `began` does."""
        ...

    def close_wait(self, run: RunState, node: Node) -> Program[bool]:
        """Close the wait `node`, whose time is over: the store accepts no more value for it, and the run receives a
        value that was accepted before. Returns False if the run stops. Raises as `began` does."""
        ...

    def attempt_failed(self, run: RunState, node: Node, end: StepEnd, delay: float) -> Program[None]:
        """Save that an attempt of `node` failed, and that the next one is due in `delay` seconds. Raises as `began`
        does."""
        ...

    def ended(self, run: RunState, node: Node, end: StepEnd) -> Program[Node | None]:
        """Save that `node` succeeded or was skipped, unblock its dependents, and return the node to run next."""
        ...

    def failed(self, run: RunState, node: Node, *, effect: bool) -> None:
        """Note that `node` failed, with the end that is in its report. `effect`: it must be undone. The caller holds
        the run's lock."""
        ...

    def withdrawn(self, run: RunState, node: Node, failed: int = 0, errors: Errors = ()) -> None:
        """Note that an attempt of `node` does not start although its start is saved. `failed`: how many attempts have
        failed before. `errors`: theirs."""
        ...

    def undone(self, run: RunState, node: Node) -> Program[None]:
        """Save that the undo of `node` ended, as its report describes."""
        ...

    def run_plain(self, run: RunState, node: Node) -> Program[FirstAttempt | Node | None]:
        """Run `node`, which may begin, and the plain steps after it as long as each depends only on the one before.
        Returns an attempt that is not recorded yet, or the node to run next."""
        ...

    def may_continue(self, run: RunState) -> Program[bool]:
        """Whether the run is still ours. Asks the store if the lease has expired."""
        ...

    def flush(self, run: RunState) -> Program[bool]:
        """Save all changes that the store does not have. Returns False if the run must not continue here."""
        ...

    def stopped(self, run: RunState) -> None:
        """Note that the run has stopped: announced steps do not start. If the run is undone, so are steps that were in
        flight under an earlier owner and were not attempted again."""
        ...

    def save_again(self, run: RunState) -> None:
        """Note that the store may lack any change, because a program was cut short: the next call saves all of them."""
        ...

    def unfinished(self, run: RunState, failure: BaseException) -> BaseException:
        """Return the error of a run whose end could not be recorded because of `failure`."""
        ...

    def carry(self, step: str, carrier: dict[str, str]) -> None:
        """Keep the trace context that hooks put into the carrier of `step`."""
        ...

    def wrote(self, step: str, key: Any, value: Any) -> None:
        """Note that `step` has set a key of the context. The caller holds the run's lock."""
        ...

    def deleted(self, step: str, key: Any) -> None:
        """Note that `step` has deleted a key of the context. The caller holds the run's lock."""
        ...


class Earlier(NamedTuple):
    """The state in which earlier owners left a run that was taken over, from its record."""

    carrier: Mapping[str, str]
    owner: Mapping[str, str | int | float]
    """the latest owner, and the step that it ran last: see RunStarted"""
    waited: bool
    """whether that owner left the run to its store, because it only waited"""
    retries: int
    """how often the run had ended parked or incomplete since its last progress"""
    ended: int
    """how many steps and undos had ended"""
    decided: bool
    """whether an operator had decided to cancel or undo the run"""
    reason: str | None = None
    """the reason that this operator gave, if any"""


class Takeover(Protocol):
    """A run of an earlier owner that this process has claimed and resumes."""

    def restore(self, run: RunState) -> None:
        """Restore the state of the run from its record."""
        ...

    def holds(self, run: RunState) -> bool:
        """Hold the run if only an operator may resume it, and return whether it does. Calls no user code, because that
        may be what crashed the earlier owners."""
        ...

    def decide(self, run: RunState) -> Program[None]:
        """Decide on the steps that were in flight, and whether the run goes forward or is undone. Emits the
        decision."""
        ...


class Claims(Protocol):
    """Claims keys for runs, and records how runs end. All runs of an engine share one; runs in memory with a key use it
    too."""

    def open(self) -> Ledger:
        """Return a new ledger for a run on a durable store."""
        ...

    def claim(self, run: RunState) -> Program[Run | Takeover | None]:
        """Claim the run's key. Returns None if the run begins here, a Takeover if an earlier owner's run is resumed, or
        a Run if another run has the key and its outcome counts. Raises if the claim is refused."""
        ...

    def withdraw(self, run: RunState, claim_id: str) -> Program[None]:
        """Take back the claim with the run id `claim_id`, which may have been granted, because the exit of a signal
        handler keeps the run from beginning, or from being resumed."""
        ...

    def adopt(self, run: RunState) -> Program[Run | None]:
        """Return the outcome of a run that another owner has taken over, or None if it does not end while the caller
        waits."""
        ...

    def suspend(self, run: RunState, waiting: Run) -> Program[bool]:
        """Leave a durable run that only waits to its store. Returns False if it resumes here instead, because values
        have come or an operator has cancelled it, or if the store is unreachable, which parks the run."""
        ...

    def finish(self, run: RunState, finished: Run) -> Program[BaseException | None]:
        """Record how the run ended. Returns the reason if that failed, else None."""
        ...


def now_of(run: RunState) -> float:
    """Return the seconds since the epoch, by the clock of the run's store: the next owner may be another host, whose
    clock may differ. In memory, it is the clock of this host."""
    return run.settings.wall() + (0.0 if run.ledger is None else run.ledger.ahead)
