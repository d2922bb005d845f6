"""The trip of one exception: the places of flowcore that hold the error of a step, from its raise to the caller, stay few.

A place is a stay of the object in one function, in an argument, a local variable or the returned value; the same function
after another one counts again. A reader who follows an error to its caller must read that many places.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import flowcore
from flowcore import Context, Engine, Workflow
from flowcore.stores import SQLiteStore

FLOWCORE = str(Path(flowcore.__file__).parent)


class Trip:
    """A trace function that notes where an object is."""

    def __init__(self, traveller: object) -> None:
        self.traveller = traveller
        self.places: list[str] = []

    def __call__(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any] | None:
        return self._local if frame.f_code.co_filename.startswith(FLOWCORE) else None

    def _local(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any]:
        if event in {"line", "return"}:
            holds = any(value is self.traveller for value in frame.f_locals.values())
            place = f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_qualname}"
            if (holds or (event == "return" and arg is self.traveller)) and self.places[-1:] != [place]:
                self.places.append(place)
        return self._local


def trip(engine: Engine, **request: Any) -> list[str]:
    """The places that hold the error of a step, in a run that has something to undo."""
    error = ValueError("boom")

    def fails(ctx: Context) -> None:
        raise error

    wf = Workflow("w")
    wf.add_step("a", lambda ctx: 1, compensate=lambda ctx: None)
    wf.add_step("b", fails, depends_on="a")
    travels, before = Trip(error), sys.gettrace()
    sys.settrace(travels)
    try:
        with pytest.raises(ValueError, match="boom"):
            engine.run(wf, **request)
    finally:
        sys.settrace(before)
    return travels.places


@pytest.mark.parametrize("hooks", [(), (lambda event: None,)], ids=["no hooks", "hooks"])
def test_an_error_is_in_at_most_12_places_of_a_run_in_memory(hooks: tuple[Any, ...]) -> None:
    with Engine(hooks=hooks) as engine:
        places = trip(engine)
    assert 3 < len(places) <= 12, places


@pytest.mark.parametrize("hooks", [(), (lambda event: None,)], ids=["no hooks", "hooks"])
def test_an_error_is_in_at_most_18_places_of_a_run_on_sqlite(hooks: tuple[Any, ...], tmp_path: Path) -> None:
    with Engine(hooks=hooks, store=SQLiteStore(tmp_path / "runs.db")) as engine:
        places = trip(engine, idempotency_key="k")
    assert 6 < len(places) <= 18, places
