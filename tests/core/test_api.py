"""The public face: its names and its errors."""

import importlib
import inspect
from importlib.metadata import version
from typing import Any

import pytest

import flowcore
import flowcore.stores
from flowcore import errors
from flowcore.errors import FlowcoreError, safe_repr, safe_str


@pytest.mark.parametrize("module", ["flowcore", "flowcore.stores", "flowcore.events", "flowcore.errors"])
def test_all_names_of_a_module_are_there(module: str) -> None:
    imported = importlib.import_module(module)
    assert len(imported.__all__) == len(set(imported.__all__))
    assert all(getattr(imported, name) is not None for name in imported.__all__)


def undocumented(module: str) -> list[str]:
    """The public names of a module, and the methods of its classes, that have no docstring of their own or inherited."""
    found = list[str]()
    for name in importlib.import_module(module).__all__:
        value = getattr(importlib.import_module(module), name)
        if not inspect.isclass(value):
            found += [name] if callable(value) and not inspect.getdoc(value) else []
            continue
        found += [] if vars(value).get("__doc__") else [name]
        for method, held in vars(value).items():
            function = held.fget if isinstance(held, property) else getattr(held, "__func__", held)
            if (
                not method.startswith("_")
                and inspect.isfunction(function)
                and not inspect.getdoc(getattr(value, method))
            ):
                found.append(f"{name}.{method}")
    return found


PUBLIC = ["flowcore", "flowcore.stores", "flowcore.events", "flowcore.testing", "flowcore.picture", "flowcore_otel"]


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_has_a_docstring(module: str) -> None:
    # A Logger's method is named after the event that it gets, and documented there.
    assert [name for name in undocumented(module) if not name.startswith("Logger.")] == []


def test_every_error_is_importable_from_flowcore() -> None:
    kinds = {
        name
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, Exception) and kind.__module__ == errors.__name__
    }
    assert kinds <= set(flowcore.__all__)


def test_an_error_without_a_message_says_its_docstring() -> None:
    assert str(flowcore.LeaseLost()) == "Another owner has taken this run over."
    assert str(flowcore.StoreUnavailable()) == "The store is temporarily unreachable."
    assert str(flowcore.RunFailed()) == "The run failed in another process."
    assert str(flowcore.IdempotencyInProgress()) == "Another run with this idempotency key is still in progress."
    assert str(flowcore.NoResult()) == "The step has no result."


@pytest.mark.parametrize(
    ("kind", "also"),
    [
        (flowcore.NoResult, KeyError),
        (flowcore.StepTimeout, TimeoutError),
        (flowcore.RunTimeout, TimeoutError),
        (flowcore.CompensationFailed, ExceptionGroup),
        (flowcore.DependencyCycle, flowcore.DefinitionError),
        (flowcore.IdempotencyHeld, flowcore.IdempotencyError),
        (flowcore.NotSerializable, flowcore.StoreError),
    ],
)
def test_errors_are_what_their_tree_says(kind: Any, also: Any) -> None:
    assert issubclass(kind, also)
    assert issubclass(kind, FlowcoreError)


def test_errors_raised_by_steps_are_no_errors_of_ours() -> None:
    assert not issubclass(flowcore.Fatal, FlowcoreError)
    assert not issubclass(flowcore.RetryAfter, FlowcoreError)


@pytest.mark.parametrize(
    ("value", "text"),
    [("a", "'a'"), (3, "3"), (None, "None"), ("a\nb", "'a\\nb'"), ("\ud800", "'\\ud800'")],
)
def test_values_are_shown_as_python_writes_them(value: object, text: str) -> None:
    assert safe_repr(value) == text


def test_long_values_are_clipped() -> None:
    assert len(safe_repr("x" * 10_000)) < 100
    assert len(safe_repr(["x"] * 10_000)) < 100
    assert len(safe_str(ValueError("x" * 10_000))) < 1100


def test_the_version_is_that_of_the_distribution_and_other_names_are_unknown() -> None:
    assert flowcore.__version__ == version("flowcore")
    with pytest.raises(AttributeError, match="module 'flowcore' has no attribute 'nonsense'"):
        _ = flowcore.nonsense
