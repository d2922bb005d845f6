"""A hook that writes down what a run did, for tests to compare with what they expect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

from ..events import (
    CompensationFinished,
    Event,
    IdempotencyHit,
    Logger,
    RunFinished,
    StepCompletedLate,
    StepFinished,
    StepSkipped,
)
from ..status import Status

__all__ = ["Journal"]


class Journal(Logger, Sequence[str]):
    """A hook that records what a run did, in order, one short line each. Compare it with the list that you expect.

    The lines are `do book`, `fail pay`, `timeout pay`, `cancel pay`, `skip gift`, `undo book`, `undo-failed book`,
    `late pay` (completed late), and the outcome of the run or of its key: `run compensated`, `key replayed`.
    Thread-safe.
    """

    wants = frozenset({CompensationFinished, IdempotencyHit, RunFinished, StepFinished, StepCompletedLate, StepSkipped})

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, event: Event, /) -> None:
        match event:
            case StepFinished():
                verb = {Status.SUCCESS: "do", Status.FAILURE: "fail", Status.CANCELLED: "cancel"}
                self.lines.append(f"{verb.get(event.outcome, str(event.outcome))} {event.step}")
            case CompensationFinished():
                self.lines.append(f"{'undo' if event.outcome is Status.SUCCESS else 'undo-failed'} {event.step}")
            case StepSkipped():
                self.lines.append(f"skip {event.step}")
            case StepCompletedLate():
                self.lines.append(f"late {event.step}")
            case IdempotencyHit():
                self.lines.append(f"key {event.outcome}")
            case RunFinished():
                self.lines.append(f"run {event.outcome}")
            case _:
                pass

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self.lines[index]

    def __len__(self) -> int:
        return len(self.lines)

    def __iter__(self) -> Iterator[str]:
        return iter(self.lines)

    def __eq__(self, other: object) -> bool:
        return self.lines == (other.lines if isinstance(other, Journal) else other)

    __hash__ = None  # type: ignore[assignment] # its lines change

    def __repr__(self) -> str:
        return f"Journal({self.lines!r})"
