"""How much a run on Temporal may carry. Temporal fails a workflow task again and again, or ends its run, if one message
or one payload is too large."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from ..errors import NotSerializable, safe_repr

if TYPE_CHECKING:
    from .._kernel.run_state import RunState
    from ..stores.base import RunRecord
    from .wire import StepOutput

__all__ = ["ERRORS", "LARGEST", "MOST", "Carried", "brief", "check_claim", "check_output", "size_of"]

MOST: Final = 1_900_000
"""bytes of all results and values of a run, in the JSON of its record. Temporal's limit for it is 2 MiB; the rest is for
its errors"""
ERRORS: Final = 131_072
"""bytes of errors in that record that may have their tracebacks and causes"""
LARGEST: Final = 2_050_000
"""the size of that record, in bytes, above which its errors are cut as short as possible"""
_BEGINNING: Final = 100
"""how many characters of each message are left then"""
_SHORT: Final = 2_000
"""bytes of the arguments and attributes of an error that are sent even if there is little room"""
_STEP: Final = 250
"""bytes of a step in that record, without its name and its result"""


def size_of(data: Any) -> int:
    """The bytes of data in the JSON that is sent to Temporal."""
    return len(json.dumps(data))


def brief(packed: Mapping[str, Any], *, shortest: bool = False) -> dict[str, Any]:
    """A packed error (see flowcore._wire) without its traceback, notes and causes, and without long arguments. With
    `shortest`, only its class and the beginning of its message are left."""
    message = packed["message"][:_BEGINNING] if shortest else packed["message"]
    left = {"module": packed["module"], "type": packed["type"], "message": message, "trace": ""}
    data = {name: packed[name] for name in ("args", "vars") if name in packed}
    if size_of(data) <= _SHORT and not shortest:
        left |= data
    if "failures" in packed:
        left["failures"] = {step: brief(failure, shortest=shortest) for step, failure in packed["failures"].items()}
    return left


def check_claim(run_id: str, fields: Mapping[str, str]) -> None:
    """Raise NotSerializable for a run that is too large to begin."""
    size = size_of(fields)
    if size > MOST:
        raise NotSerializable(
            f"run {run_id} cannot be stored: its initial values take {size:,} bytes, and a run on Temporal can carry "
            f"{MOST:,}. Store them elsewhere, and pass a reference."
        )


def check_output(step: str, output: StepOutput) -> None:
    """Raise NotSerializable for the output of a step that no run could carry."""
    size = size_of(output)
    if size > MOST:
        raise NotSerializable(
            f"the result of step {safe_repr(step)} and what it wrote take {size:,} bytes, and a run on Temporal can carry {MOST:,}. "
            "Store them elsewhere, and return a reference."
        )


class Carried:
    """The bytes of the results and values that a run carries at the moment."""

    def __init__(self, run: RunState, record: RunRecord, sent: Mapping[str, Any]) -> None:
        self._run = run
        self._values = {key: size_of(text) for key, text in record.values.items()}
        self._rest = size_of(sent) + size_of(record.graph) + sum(map(size_of, record.results.values()))
        for node in run.plan.nodes:
            self._rest += _STEP + size_of(node.name)
            if node.wait is not None and isinstance(node.wait.default, str):  # a text: see Definition.plan_for
                self._rest += size_of(node.wait.default)

    def take(self, output: StepOutput) -> None:
        """Add what a step has returned and written."""
        self._rest += size_of(output.get("value", ""))
        for key, text in output.get("writes", {}).items():
            self._values[key] = 0 if text is None else size_of(text)

    def receive(self, text: str) -> None:
        """Add a value that was sent to a wait. It is kept twice: as the value that was sent, and as a result."""
        self._rest += 2 * size_of(text)

    def refusal_of_sent(self, text: str) -> str | None:
        """Why a value that is sent to a wait is too large for the run, or None."""
        size = size_of(text)
        total = self._rest + sum(self._values.values()) + 2 * size
        if total <= MOST:
            return None
        return (
            f"the value takes {size:,} bytes, and run {self._run.run_id} would carry {total:,} with it: a run on "
            f"Temporal can carry {MOST:,}. Store it elsewhere, and send a reference."
        )

    def refusal(self, step: str, output: StepOutput) -> NotSerializable | None:
        """The error of a step whose output is too large for its run, or None."""
        writes = output.get("writes", {})
        values = {**self._values, **{key: 0 if text is None else size_of(text) for key, text in writes.items()}}
        own = size_of(output.get("value", ""))
        total = self._rest + sum(values.values()) + own
        if total <= MOST:
            return None
        own += sum(values[key] for key in writes)
        return NotSerializable(
            f"the result of step {safe_repr(step)} and what it wrote take {own:,} bytes, and run {self._run.run_id} would carry "
            f"{total:,} with them: a run on Temporal can carry {MOST:,}. Store the result elsewhere, and return a reference."
        )
