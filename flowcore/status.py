"""The statuses of runs, steps and undos: the same words in `Run`, events, spans, metrics and stores."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Status"]


class Status(StrEnum):
    """The status of a run, a step or an undo. Compares equal to its plain string."""

    # Statuses of a step.
    PENDING = "pending"
    """not started"""
    SKIPPED = "skipped"
    """its `when=` returned False"""
    TIMEOUT = "timeout"
    """did not finish in time; its effect is unknown"""
    CANCELLED = "cancelled"
    """was interrupted; its effect is unknown"""
    UNKNOWN = "unknown"
    """was in flight when its process died; its effect is unknown"""

    # Statuses of a step or a run.
    WAITING = "waiting"
    """has nothing to do until a value arrives, or until a given time"""
    RUNNING = "running"
    SUCCESS = "success"
    FAILURE = "failure"
    """of a run: failed, and nothing had to be undone"""

    # Statuses of a run.
    QUEUED = "queued"
    """submitted and recorded; no step has begun"""
    COMPENSATED = "compensated"
    """failed, and every effect was undone"""
    COMPENSATION_FAILED = "compensation_failed"
    """failed, and at least one effect could not be undone"""
    INCOMPLETE = "incomplete"
    """failed, and nothing was undone: the next call resumes it at the failed step"""
    PARKED = "parked"
    """stopped early: the next caller, or recovery, resumes it"""
    LOST = "lost"
    """was taken over by another process"""
