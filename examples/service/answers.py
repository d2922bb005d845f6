"""The service's responses, by the outcome of an order."""

import math
from typing import Any

from fastapi.responses import JSONResponse
from opentelemetry import propagate

from checkout import NotApproved
from flowcore import LeaseLost, Run, RunFailed, RunParked, StepCancelled, StepTimeout
from flowcore.stores.base import RunRecord
from flowcore_otel import original_trace_id
from ledger import SoldOut
from partners import Declined, NoAnswer

__all__ = ["accepted", "answer", "in_progress", "out_of_order", "problem", "received", "standing", "traced"]


def answer(run: Run) -> JSONResponse:
    """Return the response for a run that has ended, now or earlier. An unexpected error is raised.

    The messages of errors are not part of it, because they may contain what clients must not see.
    """
    match run.error:
        case None:
            receipt = {"run": run.id, "payment": run["charge"], "parcel": run["ship"], "message": run["notify"]}
            return JSONResponse(receipt, 201, {"Idempotent-Replayed": "true"} if run.replayed else None)
        case Declined():
            return problem(402, "declined", "The card was declined.", run=run.id)
        case NotApproved():
            return problem(403, "not-approved", "The order was not approved, and taken back.", run=run.id)
        case StepTimeout() | RunFailed(error_type="StepTimeout"):
            return problem(504, "too-late", "What the order waited for did not come; it was taken back.", run=run.id)
        case SoldOut():
            return problem(410, "sold-out", "There is not enough left of it.", run=run.id)
        case NoAnswer():
            return problem(502, "no-answer", "A partner of ours did not respond; the order was taken back.", run=run.id)
        case StepCancelled() | RunFailed(error_type="cancelled" | "StepCancelled"):
            return problem(409, "cancelled", "The order was cancelled, and taken back.", run=run.id)
        case LeaseLost():
            return in_progress()
        case RunParked():
            return out_of_order()
        case error:
            raise error


def traced(run: Run) -> dict[str, str]:
    """Return the headers that name the response's trace, which is the current one, and a replay's original trace."""
    headers: dict[str, str] = {}
    propagate.inject(headers)
    found = {"traceresponse": headers.get("traceparent"), "Original-Trace-Id": original_trace_id(run)}
    return {name: value for name, value in found.items() if value is not None}


def accepted(location: str) -> JSONResponse:
    """Return the response for an accepted order or cancellation. `location`: the address of the order's status."""
    headers = {"Location": location, "Retry-After": "1"}
    return JSONResponse({"status": "accepted", "location": location}, 202, headers)


def received(counts: bool) -> JSONResponse:
    """Return the response to a value sent to an order. `counts`: whether no other value came before it."""
    if counts:
        return JSONResponse({"status": "accepted"}, 202)
    return problem(409, "decided", "That was decided before.")


def standing(record: RunRecord) -> JSONResponse:
    """Return the response for an order that has not ended, or that is held."""
    if record.held:
        return problem(409, "held", "This order could not be undone; a person is looking into it.")
    done = [name for name, step in record.steps.items() if step.status == "success"]
    waits = {"waiting_for": list(record.waiting_for)} if record.waiting_for else {}
    return JSONResponse({"status": str(record.status), "done": done, **waits}, 200, {"Retry-After": "1"})


def in_progress(retry_after: float = 1.0) -> JSONResponse:
    wait = str(max(1, math.ceil(retry_after)))
    return problem(409, "in-progress", "This order is being worked on.", headers={"Retry-After": wait})


def out_of_order() -> JSONResponse:
    detail = "Our own books are unreachable. Retry with the same key; the order is then resumed."
    return problem(503, "out-of-order", detail, headers={"Retry-After": "2"})


def problem(status: int, kind: str, detail: str, headers: dict[str, str] | None = None, **more: Any) -> JSONResponse:
    """Return an error response in the form of RFC 9457."""
    body = {"type": f"/problems/{kind}", "status": status, "detail": detail, **more}
    return JSONResponse(body, status, headers, media_type="application/problem+json")
