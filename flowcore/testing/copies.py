"""Values as a durable store would hand them out: through the codec. What no codec keeps stays as it is, so that workflows
which only run in memory can be simulated too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from ..errors import NotSerializable
from ..stores.codec import FIXED, JsonCodec

__all__ = ["ResultsWatch", "through_codec"]

T = TypeVar("T")
_CODEC: Final = JsonCodec()


def through_codec(value: T) -> T:
    """A copy of `value` that went through the default codec; the value itself where that cannot keep it."""
    if type(value) in FIXED:
        return value
    try:
        copied: T = _CODEC.loads(_CODEC.dumps(value))
    except NotSerializable:
        return value
    return copied


class ResultsWatch:
    """Notices which results a call of user code changes in place."""

    def __init__(self, results: Mapping[str, Any]) -> None:
        self._forms = {name: (value, _form(value)) for name, value in results.items() if type(value) not in FIXED}

    def changed(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """The results that have changed since, and what they were before."""
        return {
            name: _CODEC.loads(form)
            for name, (value, form) in self._forms.items()
            if form is not None and results.get(name) is value and _form(value) != form
        }


def _form(value: Any) -> str | None:
    try:
        return _CODEC.dumps(value)
    except NotSerializable:
        return None
