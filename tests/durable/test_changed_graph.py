"""Which definitions may resume a run that an earlier version of the workflow began."""

import pytest

from flowcore import Workflow


def order(*steps: tuple[str, str], undo: str = "", pivot: str = "") -> Workflow:
    """A workflow of (name, dependency) steps; `undo` and `pivot` name those that have one, or are one."""
    wf = Workflow("order")
    for name, needs in steps:
        compensate = (lambda ctx: None) if name in undo.split() else None
        wf.add_step(name, lambda ctx: None, depends_on=needs or (), compensate=compensate, pivot=name == pivot)
    return wf


PAY, SHIP, MAIL = ("pay", ""), ("ship", "pay"), ("mail", "pay")
BEGUN = order(PAY, SHIP, MAIL, undo="pay").freeze().graph


@pytest.mark.parametrize(
    "grown",
    [
        order(PAY, SHIP, MAIL, undo="pay"),
        order(MAIL, SHIP, PAY, undo="pay"),
        order(PAY, SHIP, MAIL, undo="pay ship mail"),
        order(("check", ""), PAY, SHIP, MAIL, ("audit", "ship"), undo="pay audit"),
        order(PAY, SHIP, MAIL, ("audit", "mail"), undo="pay", pivot="audit"),
    ],
    ids=["the same", "reordered", "undos added", "steps added", "a pivot step added"],
)
def test_a_definition_that_contains_the_recorded_steps_may_resume_the_run(grown: Workflow) -> None:
    assert grown.freeze().contains(BEGUN) is None


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (order(PAY, SHIP, undo="pay"), "step 'mail' is missing"),
        (order(PAY, SHIP, ("letter", "pay"), undo="pay"), "step 'mail' is missing"),
        (order(PAY, SHIP, ("mail", "ship"), undo="pay"), "step 'mail' has other dependencies"),
        (order(PAY, SHIP, MAIL), "step 'pay' has lost its undo"),
        (order(PAY, SHIP, MAIL, undo="pay", pivot="ship"), "step 'ship' has become a pivot"),
    ],
    ids=["a step removed", "a step renamed", "a dependency changed", "an undo removed", "a pivot"],
)
def test_any_other_definition_may_not_and_says_why(changed: Workflow, why: str) -> None:
    assert changed.freeze().contains(BEGUN) == why


@pytest.mark.parametrize("text", ["", "x", "null", "[1]", '[["pay"]]', "0" * 64, "[" * 100_000])
def test_a_graph_that_is_none_is_contained_in_no_definition(text: str) -> None:
    assert order(PAY).freeze().contains(text) == "its recorded step graph cannot be read"


def test_a_graph_survives_any_names() -> None:
    wf = order(("\ud800", ""), ('quo"te', "\ud800"))
    assert wf.freeze().contains(wf.freeze().graph) is None
