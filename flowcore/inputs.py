"""Typed input, as in `Workflow("trip", input=Order)`: converts an Order to a run's initial values, and back."""

# Arguments are checked at run time, for callers without a type checker.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Generic, TypeVar, cast, get_type_hints

from .errors import DefinitionError, safe_repr, safe_str

__all__ = ["Input"]

I = TypeVar("I")  # noqa: E741 - as in Workflow[I]


class Input(Generic[I]):
    """The input type of a workflow, a dataclass or a pydantic model. Each field is an initial value. Immutable."""

    def __init__(self, kind: type[I], workflow: str) -> None:
        self._workflow = workflow
        self.type = kind
        self._is_model = isinstance(kind, type) and hasattr(kind, "model_validate") and hasattr(kind, "model_fields")
        if not self._is_model and not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            raise DefinitionError(
                f"input= of workflow {safe_repr(workflow)} must be a dataclass or a pydantic model, not {safe_repr(kind)}."
            )
        known: Any = kind
        self.fields: tuple[str, ...] = (
            tuple(known.model_fields)
            if self._is_model
            else tuple(field.name for field in dataclasses.fields(known) if field.init)
        )

    @functools.cached_property
    def types(self) -> Mapping[str, Any]:
        """The annotation of each field, by name; empty if the annotations cannot be evaluated."""
        try:
            hints = get_type_hints(self.type, include_extras=True)
        except Exception:  # noqa: BLE001 - an annotation may name what only type checkers import
            return {}
        return {name: hints[name] for name in self.fields if name in hints}

    def accept(self, given: object) -> I:
        """Return the input of a run, given as such, as a mapping of its fields, or as None (no fields).

        Raises DefinitionError, with the reason, for anything else.
        """
        if isinstance(given, self.type):
            return given
        if given is not None and not isinstance(given, Mapping):
            raise DefinitionError(
                f"workflow {safe_repr(self._workflow)} takes a {self.type.__name__} or a mapping of its fields, "
                f"not {type(given).__name__}."
            )
        try:
            return self._validated(cast("Mapping[str, Any]", given or {}))
        except Exception as error:
            raise DefinitionError(
                f"the input of workflow {safe_repr(self._workflow)} is not a valid {self.type.__name__}: {safe_str(error)}"
            ) from error

    def _validated(self, fields: Mapping[str, Any]) -> I:
        kind: Any = self.type
        return cast("I", kind.model_validate(dict(fields)) if self._is_model else kind(**fields))

    def values(self, given: I) -> dict[str, Any]:
        """Return the initial values that an input stands for."""
        return {name: getattr(given, name) for name in self.fields}

    def build(self, values: Mapping[Any, Any]) -> I:
        """Return the input that these values stand for. A pydantic model does not validate them again."""
        kind: Any = self.type
        known = {name: values[name] for name in self.fields if name in values}
        return cast("I", kind.model_construct(**known) if self._is_model else kind(**known))
