"""The words for how runs, steps and undos stand; the same in `Run`, in events, spans, metrics and stores."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Status"]


class Status(StrEnum):
    """Where a run, a step or an undo stands. Compares equal to its plain string."""

    # of a step
    PENDING = "pending"
    """not started"""
    SKIPPED = "skipped"
    """its `when=` said no"""
    TIMEOUT = "timeout"
    """not finished in time; what it did is unknown"""
    CANCELLED = "cancelled"
    """interrupted; what it did is unknown"""
    UNKNOWN = "unknown"
    """was in flight when its process died"""

    # of a step or a run
    WAITING = "waiting"
    """has nothing to do until a value arrives or a time has come"""
    RUNNING = "running"
    SUCCESS = "success"
    FAILURE = "failure"
    """of a run: failed, and nothing had to be undone"""

    # of a run
    QUEUED = "queued"
    """submitted and recorded; no step has begun"""
    COMPENSATED = "compensated"
    """failed, and everything it had done was undone"""
    COMPENSATION_FAILED = "compensation_failed"
    """failed, and something it had done could not be undone"""
    INCOMPLETE = "incomplete"
    """failed, and nothing is undone: the next call resumes it forward"""
    PARKED = "parked"
    """left to the next caller or to recovery, which resume it"""
    LOST = "lost"
    """another process took the run over"""
