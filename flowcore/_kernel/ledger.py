"""What the kernel asks of durability: two interfaces, which `flowcore._durable` implements.

A run in memory without a key uses neither.
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
"""type and message of attempts that failed"""

__all__ = ["Claims", "Earlier", "Ledger", "Takeover"]


class Ledger(Protocol):
    """What the store of a durable run must know of its steps. Each program ends once the store knows; a store that cannot
    be had, or another owner, stops the run meanwhile."""

    @property
    def handed_out(self) -> Watch:
        """What finds values that a step changes in place."""
        ...

    def extend_lease(self, until: float) -> None:
        """No other owner can take the run over before the moment `until` (monotonic)."""
        ...

    def may_begin(self, run: RunState, node: Node) -> bool:
        """Whether `node` may start at once: the store knows that it starts, and the run is still ours."""
        ...

    epoch: float
    """what turns monotonic seconds into seconds since the epoch"""

    def began(self, run: RunState, node: Node, attempt: int, errors: Errors) -> Program[bool]:
        """An attempt of `node` is about to start; `errors`: of those before it. False: it must not, the run stops. Raises NotSerializable if the store
        cannot keep what an earlier attempt wrote."""
        ...

    def waits(self, run: RunState, node: Node, until: float) -> Program[bool]:
        """`node` waits from now on, until the moment `until` (monotonic) at most. False: it must not, the run stops. Raises as
        `began` does."""
        ...

    def close_wait(self, run: RunState, node: Node) -> Program[bool]:
        """The time of the wait `node` is over: have the store accept no value for it any more, and take in what was accepted
        before. False: the run stops. Raises as `began` does."""
        ...

    def attempt_failed(self, run: RunState, node: Node, end: StepEnd, delay: float) -> Program[None]:
        """An attempt of `node` has failed, and the next one is due in `delay` seconds. Raises as `began` does."""
        ...

    def ended(self, run: RunState, node: Node, end: StepEnd) -> Program[Node | None]:
        """`node` has succeeded or was skipped: unblock its dependents, and return the node to run next."""
        ...

    def failed(self, run: RunState, node: Node, *, effect: bool) -> None:
        """`node` has failed, as its report says; `effect`: it must be undone. Under the run's lock."""
        ...

    def withdrawn(self, run: RunState, node: Node, errors: Errors = ()) -> None:
        """`node`, whose start is saved, does not start; `errors`: of the attempts before it, where it was no first one."""
        ...

    def undone(self, run: RunState, node: Node) -> Program[None]:
        """The undo of `node` has ended, as its report says."""
        ...

    def run_plain(self, run: RunState, node: Node) -> Program[FirstAttempt | Node | None]:
        """Run `node`, which may begin, and plain steps after it, as long as each waits for the one before only. Returns an
        attempt that is not recorded yet, or the node to run next."""
        ...

    def may_continue(self, run: RunState) -> Program[bool]:
        """Whether the run is still ours; once the lease is over, the store says so."""
        ...

    def flush(self, run: RunState) -> Program[bool]:
        """Write all that the store does not know. False: the run must not continue here."""
        ...

    def stopped(self, run: RunState) -> None:
        """The run has stopped: steps that were announced do not start, and those that were in flight under an earlier
        owner, and were not attempted again, are undone if the run is."""
        ...

    def unfinished(self, run: RunState, failure: BaseException) -> BaseException:
        """The error of a run whose end could not be recorded because of `failure`."""
        ...

    def carry(self, step: str, carrier: dict[str, str]) -> None:
        """Keep what hooks gave for `step`."""
        ...

    def wrote(self, step: str, key: Any, value: Any) -> None:
        """`step` has set a key of the context. Under the run's lock."""
        ...

    def deleted(self, step: str, key: Any) -> None:
        """`step` has deleted a key of the context. Under the run's lock."""
        ...


class Earlier(NamedTuple):
    """What the record of a run that was taken over says of its owners before."""

    carrier: Mapping[str, str]
    owner: Mapping[str, str | int | float]
    """the latest one, and what it did last: see RunStarted"""
    waited: bool
    """it had left the run to its store"""
    retries: int
    """how often the run had ended parked or incomplete since its last progress"""
    ended: int
    """how many steps and undos had ended"""
    decided: bool
    """an operator had decided that it is to be cancelled or undone"""


class Takeover(Protocol):
    """A run that an earlier owner left, and that is ours to resume."""

    def restore(self, run: RunState) -> None:
        """Put back what its record says."""
        ...

    def decide(self, run: RunState) -> Program[None]:
        """Decide on the steps that were in flight, and whether the run goes forward or is undone."""
        ...


class Claims(Protocol):
    """Whose run is it, and how did it end? One for all runs of an engine; also for runs with a key in memory."""

    def open(self) -> Ledger:
        """A ledger for a run on a durable store."""
        ...

    def claim(self, run: RunState) -> Program[Run | Takeover | None]:
        """Claim the run's key. None: the run is ours, from its beginning. A Run: another one's outcome is the answer.
        Raises if the claim is refused."""
        ...

    def adopt(self, run: RunState) -> Program[Run | None]:
        """The outcome of a run that another owner has taken over, if it ends while the caller waits."""
        ...

    def suspend(self, run: RunState, waiting: Run) -> Program[bool]:
        """Leave a durable run that only waits to its store. False: it must not wait, because values have come, or the store
        cannot be had, which has stopped the run."""
        ...

    def finish(self, run: RunState, finished: Run) -> Program[BaseException | None]:
        """Record how the run ended. Returns why that could not be done."""
        ...
