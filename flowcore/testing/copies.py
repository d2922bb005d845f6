"""Pass values through the codec, as a durable store does. Values that the codec cannot keep stay as they are, so that
workflows which only run in memory can be simulated too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from ..errors import NotSerializable
from ..stores.codec import FIXED, JsonCodec

__all__ = ["ResultsWatch", "through_codec"]

T = TypeVar("T")
_CODEC: Final = JsonCodec()


def through_codec(value: T) -> T:
    """Return a copy of `value` that went through the default codec, or `value` itself if the codec cannot keep it."""
    if type(value) in FIXED:
        return value
    try:
        copied: T = _CODEC.loads(_CODEC.dumps(value))
    except NotSerializable:
        return value
    return copied


class ResultsWatch:
    """Detects which results a call of user code changes in place."""

    def __init__(self, results: Mapping[str, Any]) -> None:
        self._forms = {name: (value, _form(value)) for name, value in results.items() if type(value) not in FIXED}

    def changed(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Return the former value of each result that was changed in place since this watch began."""
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
