"""Detection of values that a step got from its context and changed in place: `ctx["reserved"].append(…)`.

The encoded form of each value is noted when the step gets it, and compared when the step ends.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from ..context import own_copy
from ..errors import NotSerializable, safe_repr
from ..stores.codec import FIXED, JsonCodec

__all__ = ["HandedOut", "apart", "complaint"]

Form = str | bytes | None
"""the text of the default codec, or else the pickle; None for a value that has neither, which is not watched"""
_CODEC: Final = JsonCodec()
_log = logging.getLogger("flowcore")


class HandedOut:
    """The values of the context and the results of other steps that each running step got. All threads of a run may use
    it at the same time."""

    __slots__ = ("_inputs", "_results", "_values", "_warned")

    def __init__(self) -> None:
        self._values: dict[str, dict[Any, tuple[Any, Form]]] = {}  # by step, then by key
        self._results: dict[str, dict[str, tuple[Any, Form]]] = {}  # by step, then by the step whose result it is
        self._inputs: set[str] = set()  # the steps that got the run's input, whose fields can be set
        self._warned: set[tuple[str, str]] = set()

    def note(self, step: str, key: Any, value: Any, *, result: bool) -> None:
        """Note that `step` got the value of the key `key` of the context or, if `result` is set, the result of the step
        `key`."""
        if type(value) in FIXED:
            return
        held = (self._results if result else self._values).setdefault(step, {})
        if key not in held or held[key][0] is not value:
            held[key] = value, _form(value)

    def note_input(self, step: str) -> None:
        """Note that `step` got the input of the run, whose fields can be set."""
        self._inputs.add(step)

    def __contains__(self, step: str) -> bool:
        return step in self._values or step in self._results or step in self._inputs

    def take_input(self, step: str) -> bool:
        """Return whether `step`, which has ended, got the input of the run, and forget it."""
        if step not in self._inputs:
            return False
        self._inputs.discard(step)
        return True

    def results_of(self, step: str) -> list[str]:
        """Return the names of the steps whose results `step` got, if they can change."""
        return list(self._results.get(step, ()))

    def changed_values(self, step: str) -> list[tuple[Any, Any]]:
        """Return key and value of each context value that `step`, which has ended, changed in place, and forget its
        values."""
        held = self._values.pop(step, {})
        return [(key, value) for key, (value, form) in held.items() if form is not None and _form(value) != form]

    def changed_results(self, step: str) -> list[tuple[str, Any]]:
        """Return name and former result of each step whose result `step`, which has ended, changed in place, and forget
        them."""
        held = self._results.pop(step, {})
        return [(key, _back(form)) for key, (value, form) in held.items() if form is not None and _form(value) != form]

    def warn(self, step: str, changed: str, run_id: str) -> None:
        """Log, once per run, that `step` changed the result of the step `changed` in place."""
        if (step, changed) not in self._warned:
            self._warned.add((step, changed))
            _log.warning("%s (run %s)", complaint(step, changed), run_id)


def complaint(step: str, changed: str) -> str:
    """Return the message that `step` changed the result of the step `changed` in place, and how to avoid that."""
    return (
        f"step {safe_repr(step)} changed the result of step {safe_repr(changed)} in place. The recorded result stays "
        "as it was. Change a copy, or write it to the context."
    )


def apart(value: Any) -> Any:
    """Return a copy of a result, which may also be a value of the context: changing that value then changes no
    result."""
    try:
        return value if type(value) in FIXED else own_copy(value)
    except RecursionError:  # it is nested too deeply, and the store refuses it
        return value


def _form(value: Any) -> Form:
    try:
        return _CODEC.dumps(value)
    except NotSerializable:
        pass
    import pickle

    try:
        return pickle.dumps(value)
    except Exception:  # noqa: BLE001 - pickling runs user code; a value that cannot be pickled is not watched
        return None


def _back(form: str | bytes) -> Any:
    if isinstance(form, str):
        return _CODEC.loads(form)
    import pickle

    return pickle.loads(form)  # noqa: S301 - this process has pickled it
