"""Errors of pydantic without the values that they quote, because messages of errors reach logs and records."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["without_values"]


def without_values(error: Exception, kind: Any) -> Exception:
    """Return, for a ValidationError of pydantic, a ValueError that says which fields of the type `kind` are wrong, and
    why, but not what was given; else the error itself."""
    core: Any = sys.modules.get("pydantic_core")
    if core is None or not isinstance(error, core.ValidationError):
        return error
    fields = getattr(kind, "__pydantic_fields__", None) or getattr(kind, "__dataclass_fields__", {})
    reasons: dict[str, None] = {}
    refused: Any = error
    for part in refused.errors(include_url=False, include_context=False, include_input=False):
        # Only the first part of the location is a field; a later one may be the key of a dict, which is a value too.
        field = part["loc"][0] if part["loc"] else None
        reasons[f"{field}: {part['msg']}" if field in fields else part["msg"]] = None
    return ValueError("; ".join(reasons))
