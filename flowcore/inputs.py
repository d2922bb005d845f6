"""Typed input, as in `Workflow("trip", input=Order)`: converts an Order to a run's initial values, and back."""

# Arguments are checked at run time, for callers without a type checker.
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Final, Generic, TypeVar, cast, get_type_hints

from .errors import DefinitionError, safe_repr, safe_str
from .validation import without_values

__all__ = ["Input"]

I = TypeVar("I")  # noqa: E741 - as in Workflow[I]
_MISSING: Final = object()
_EXTRA: Final = "model_extra"
"""the attribute of a pydantic model with the fields that it does not declare"""


class Input(Generic[I]):
    """The input type of a workflow, a dataclass or a pydantic model. Each field is an initial value, with the value that
    it has in the input; where a model has fields that it does not declare, "model_extra" is one too. Immutable."""

    def __init__(self, kind: type[I], workflow: str) -> None:
        self._workflow = workflow
        self.type = kind
        self._is_model = isinstance(kind, type) and hasattr(kind, "model_validate") and hasattr(kind, "model_fields")
        if not self._is_model and not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            raise DefinitionError(
                f"input= of workflow {safe_repr(workflow)} must be a dataclass or a pydantic model, not {safe_repr(kind)}."
            )
        known: Any = kind
        self._derived: tuple[str, ...] = ()
        if self._is_model:
            self._arguments = tuple(known.model_fields)
            self._has_extra = known.model_config.get("extra") == "allow"
            self.is_frozen = bool(known.model_config.get("frozen"))
            self._is_plain = getattr(known, "__pydantic_post_init__", None) is None
        else:
            fields = dataclasses.fields(known)
            self._arguments = tuple(field.name for field in fields if field.init)
            self._derived = tuple(field.name for field in fields if not field.init)
            self._has_extra = False
            self.is_frozen = bool(known.__dataclass_params__.frozen)
            generated = "__dataclass_fields__" in vars(kind) and known.__dataclass_params__.init
            self._is_plain = generated and not self._derived and not hasattr(kind, "__post_init__")
        self.fields: tuple[str, ...] = (*self._arguments, *self._derived, *((_EXTRA,) if self._has_extra else ()))

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
        except Exception as error:  # noqa: BLE001 - user code raises anything
            why = without_values(error, self.type)
            raise DefinitionError(
                f"the input of workflow {safe_repr(self._workflow)} is not a valid {self.type.__name__}: {safe_str(why)}"
            ) from why

    def _validated(self, fields: Mapping[str, Any]) -> I:
        kind: Any = self.type
        return cast("I", kind.model_validate(dict(fields)) if self._is_model else kind(**fields))

    def values(self, given: I) -> dict[str, Any]:
        """Return the initial values that an input stands for. A field that __init__ does not take is one of them if
        __post_init__ would give it another value."""
        values = {name: getattr(given, name) for name in self._arguments}
        if self._has_extra and (extra := getattr(given, _EXTRA)):
            values[_EXTRA] = extra
        if self._derived:
            built = self.build(values)
            values.update(_differences(built, {name: getattr(given, name, _MISSING) for name in self._derived}))
        return values

    def build(self, values: Mapping[Any, Any]) -> I:
        """Return the input that these values stand for. Each field gets exactly its value, even if __init__ or
        __post_init__ would change it. Nothing is validated again."""
        known = {name: values[name] for name in self.fields if name in values}
        extra = known.pop(_EXTRA, None) if self._has_extra else None
        made: Any = self._made(known)
        for name, value in known.items():
            object.__setattr__(made, name, value)
        if extra is not None:
            object.__setattr__(made, "__pydantic_extra__", extra)
        return cast("I", made)

    def _made(self, known: Mapping[str, Any]) -> Any:
        """Return an input whose fields still have to be set."""
        kind: Any = self.type
        arguments = {name: known[name] for name in self._arguments if name in known}
        if self._is_plain and not self._is_model and len(arguments) == len(self._arguments):
            return object.__new__(kind)
        if not self._is_plain:  # it may change its arguments in place
            with contextlib.suppress(Exception):  # copying runs user code
                from copy import deepcopy

                arguments = deepcopy(arguments)
        try:
            return kind.model_construct(**arguments) if self._is_model else kind(**arguments)
        except Exception:
            if len(arguments) < len(self._arguments):  # a field that this definition has added
                raise
            return object.__new__(kind)  # its __init__ takes more than its fields, or other values than they have now

    def check_recordable(self, given: I, values: Mapping[str, Any]) -> None:
        """Raise DefinitionError for an input of a recorded run with attributes that are not fields and that `build`
        does not restore. `values`: its initial values."""
        known: Any = given
        own: Any = known.__class__
        attributes: dict[str, Any] = {
            **getattr(known, "__dict__", {}),
            **(getattr(known, "__pydantic_private__", None) or {}),
        }
        if dataclasses.is_dataclass(known):
            names = [field.name for field in dataclasses.fields(known)]
            attributes.update((name, getattr(known, name)) for name in names if hasattr(known, name))
        others = {
            name: value
            for name, value in attributes.items()
            if name not in self.fields and not isinstance(getattr(own, name, None), functools.cached_property)
        }
        lost = _differences(self.build(values), others) if others else {}
        for name in lost:
            raise DefinitionError(
                f"the input of workflow {safe_repr(self._workflow)} has the attribute {safe_repr(name)}, which is not a "
                f"field of {self.type.__name__}, so a recorded run would not keep it. Make it a field of the type in input=."
            )

    def changes(self, given: I, values: Mapping[Any, Any]) -> dict[str, Any]:
        """Return the fields of an input that were set since `build` made it from these values."""
        try:
            now = self.values(given)
        except AttributeError:  # a field was deleted
            return {}
        return {name: value for name, value in now.items() if value is not values.get(name, _MISSING)}


def _differences(built: Any, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes that an object lacks or has with another value. A value that equals only itself, such as a
    lock, does not differ from one of the same type."""
    private: Any = getattr(built, "__pydantic_private__", None) or {}
    different: dict[str, Any] = {}
    for name, value in attributes.items():
        other = private.get(name, _MISSING) if name in private else getattr(built, name, _MISSING)
        kind = value.__class__
        if value is other or value is _MISSING or (other.__class__ is kind and kind.__eq__ is object.__eq__):
            continue
        try:
            equal = bool(value == other) and other is not _MISSING
        except Exception:  # noqa: BLE001 - user code
            equal = False
        if not equal:
            different[name] = value
    return different
