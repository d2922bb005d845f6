"""What a step's `verify=` answers, when its process died while the step was in flight: did the effect land?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Landed", "NotLanded"]

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Landed(Generic[R]):
    """It did: the step is done, and `result` is what it would have returned."""

    result: R


class NotLanded:
    """It did not, and will not: the step is attempted again, or needs no undo. Answer with the class or an instance."""

    __slots__ = ()
