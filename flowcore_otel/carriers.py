"""Which traces a run belongs to, read from what TracingHook stored with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from flowcore import Run

__all__ = ["original_trace_id", "trace_id"]

_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


def trace_id(run: Run) -> str | None:
    """The trace that has the run's spans, as 32 hex digits; on a replay that is the original run's.

    None where no TracingHook watched it. A trace that was not sampled has an id too, and nothing to look at.
    """
    return _of(run.carrier)


def original_trace_id(run: Run) -> str | None:
    """On a replay, the trace of the run whose outcome this is; None on any other run, and where that had no trace."""
    return _of(run.carrier) if run.replayed else None


def _of(carrier: Mapping[str, str]) -> str | None:
    found = _TRACEPARENT.fullmatch(carrier.get("traceparent", ""))
    return found[1] if found is not None and found[1].strip("0") else None
