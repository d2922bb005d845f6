"""The graph of a workflow as SVG, alone, for a run, and in a notebook with a real kernel."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import nbclient
import nbformat
import pytest

from flowcore import Context, DuplicateStep, Engine, Workflow
from flowcore.stores import SQLiteStore

SVG = "{http://www.w3.org/2000/svg}"


def trip(fails: str | None = None) -> Workflow:
    wf = Workflow("trip")

    def step(ctx: Context) -> None:
        if ctx.step == fails:
            raise ValueError

    for name, after in (("book", ()), ("pay", "book"), ("car", "book"), ("mail", ("pay", "car"))):
        wf.add_step(name, step, depends_on=after, compensate=(lambda ctx: None) if name != "mail" else None)
    return wf


def classes(svg: str) -> dict[str, set[str]]:
    """The classes of each step's box, by its label."""
    return {
        str(group.find(f"{SVG}text").text): set(group.get("class").split())
        for group in ET.fromstring(svg).iter(f"{SVG}g")
    }


def test_a_box_for_each_step_and_a_line_for_each_dependency() -> None:
    drawn = ET.fromstring(trip().to_svg())
    assert [text.text for text in drawn.iter(f"{SVG}text")] == ["book", "pay", "car", "mail"]
    assert len([path for path in drawn.iter(f"{SVG}path") if path.get("class") is None]) == 4
    lefts = {
        str(group.find(f"{SVG}text").text): float(group.find(f"{SVG}rect").get("x")) for group in drawn.iter(f"{SVG}g")
    }
    assert lefts["book"] < lefts["pay"] == lefts["car"] < lefts["mail"]
    assert drawn.get("role") == "img"
    assert drawn.get("aria-label") == "workflow trip: 4 steps"


@pytest.mark.parametrize("of", ["run", "record"])
def test_a_run_colours_its_steps(tmp_path: Path, of: str) -> None:
    wf = trip(fails="mail")
    with Engine(store=SQLiteStore(tmp_path / "db")) as engine:
        run = engine.run(wf, idempotency_key="k", check=False)
        svg = wf.to_svg(run if of == "run" else engine.find("k"))
    assert classes(svg) == {
        "book": {"undo", "undone"},
        "pay": {"undo", "undone"},
        "car": {"undo", "undone"},
        "mail": {"failed"},
    }
    run = trip(fails="book").run(check=False)
    assert classes(trip().to_svg(run))["pay"] == {"undo", "not-run"}
    assert classes(trip().to_svg(trip().run()))["mail"] == {"success"}


@pytest.mark.parametrize("steps", [0, 1, 1000])
def test_any_number_of_steps_is_drawn(steps: int) -> None:
    wf = Workflow("many")
    for number in range(steps):
        wf.add_step(f"s{number}", lambda ctx: None, depends_on=[f"s{number - 7}"] if number >= 7 else ())
    assert len(list(ET.fromstring(wf.to_svg()).iter(f"{SVG}rect"))) == steps


def test_hostile_names_cannot_inject_markup() -> None:
    wf = Workflow("<script>alert(1)</script>")
    wf.add_step('"><img src=x onerror=alert(1)>', lambda ctx: None)
    wf.add_step("a\x00b\n\u202e", lambda ctx: None)
    drawn = ET.fromstring(wf.to_svg())
    assert {element.tag.removeprefix(SVG) for element in drawn.iter()} == {"svg", "style", "g", "title", "rect", "text"}


def test_a_definition_that_cannot_run_is_shown_by_its_repr() -> None:
    wf = Workflow("broken")
    wf.add_step("a", lambda ctx: None, depends_on="missing")
    assert wf._repr_html_() is None


# -- in a notebook -----------------------------------------------------------------------------------------------------

DEFINES = """
from flowcore import Engine, Workflow
wf = Workflow("trip")
"""
ADDS = """
@wf.step
def book(ctx):
    return 7
"""


@pytest.fixture(scope="module")
def outputs() -> list[list[Any]]:
    """What each cell of a notebook shows: two cells are run again, as a person does who has changed one."""
    cells = [DEFINES, ADDS, "wf", "Engine().run(wf)", ADDS, DEFINES, ADDS, ADDS, "wf.to_svg(Engine().run(wf))[:4]"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, kernel_name="python3", allow_errors=True, timeout=120).execute()
    return [cell["outputs"] for cell in notebook.cells]


def test_a_notebook_shows_a_workflow_as_its_graph_and_a_run_as_its_waterfall(outputs: list[list[Any]]) -> None:
    assert outputs[2][0]["data"]["text/html"].startswith("<svg")
    assert "Workflow 'trip'" in outputs[2][0]["data"]["text/plain"]
    shown = outputs[3][0]["data"]["text/html"]
    assert "<svg" in shown
    assert "success" in shown


def test_a_step_that_is_defined_again_says_what_to_do(outputs: list[list[Any]]) -> None:
    """Cell 4 defines a step of a workflow that has run; cell 7 one that is there already; in between all is well."""
    assert outputs[4][0]["ename"] == "DefinitionError"
    assert (
        "has run, so its definition is frozen. Make a new Workflow; in a notebook, run the cell that makes it again."
        in (outputs[4][0]["evalue"])
    )
    assert outputs[6] == []
    assert outputs[7][0]["ename"] == "DuplicateStep"
    assert "in a notebook, first run the cell that makes the workflow again" in outputs[7][0]["evalue"]
    assert re.search("<svg", outputs[8][0]["data"]["text/plain"])


def test_a_step_that_is_defined_again_is_refused_outside_of_notebooks_too() -> None:
    wf = trip()
    with pytest.raises(DuplicateStep, match=r"already has a step 'book'\. Choose another name"):
        wf.add_step("book", lambda ctx: None)
