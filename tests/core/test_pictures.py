"""How a definition looks: layers, repr, Mermaid, DOT, and include() which builds one out of others."""

import io

import pytest

from flowcore import Context, DuplicateStep, NoResult, Retry, Workflow

from .conftest import Drive, Ledger


def trip() -> Workflow:
    wf = Workflow("trip")
    wf.add_step("book", lambda ctx: 1, compensate=lambda ctx: None)
    wf.add_step("hotel", lambda ctx: 1, compensate=lambda ctx: None)
    wf.add_step("car", lambda ctx: 1, when=lambda ctx: True)
    wf.add_step("pay", lambda ctx: 1, depends_on=["book", "hotel", "car"], retry=Retry(3), timeout=2.5, pivot=True)
    wf.add_step("mail", lambda ctx: 1, depends_on="pay")
    return wf


def test_layers_show_what_could_run_at_once_in_definition_order() -> None:
    names = [[step.name for step in layer] for layer in trip().layers()]
    assert names == [["book", "hotel", "car"], ["pay"], ["mail"]]
    assert Workflow("empty").layers() == []


def test_repr_draws_the_plan() -> None:
    assert (
        repr(trip())
        == """\
Workflow 'trip' · 5 steps · 3 layers
  1 ┬ book ↶
    ├ hotel ↶
    └ car ?
  2 ─ pay ◆ ×3 ⏱ 2.5 s  ← book, hotel, car
  3 ─ mail  ← pay"""
    )
    assert repr(Workflow("empty")) == "Workflow 'empty' · 0 steps · 0 layers"
    assert repr(trip().steps[0]) == "<Step 'book'>"


def test_repr_of_a_workflow_that_cannot_run_says_why() -> None:
    wf = Workflow("broken")
    wf.add_step("a", lambda ctx: 1, depends_on="nowhere")
    assert repr(wf).startswith("Workflow 'broken' · 1 steps · cannot run: step 'a' depends on 'nowhere'")


def test_repr_of_a_large_workflow_stays_short() -> None:
    wf = Workflow("large")
    names = [f"step{number}" for number in range(1000)]
    for name in names:
        wf.add_step(name, lambda ctx: 1)
    wf.add_step("last", lambda ctx: 1, depends_on=names)
    text = repr(wf)
    assert "1,001 steps · 2 layers" in text
    assert "… and 961 more" in text
    assert len(text.splitlines()) < 50
    few = Workflow("many dependencies")
    for name in names[:45]:
        few.add_step(name, lambda ctx: 1)
    few._steps = dict(reversed(few._steps.items()))
    few.add_step("last", lambda ctx: 1, depends_on=names[:45])
    assert "and 5 more" in few.to_mermaid() or len(repr(few)) < 5000


def test_mermaid() -> None:
    wf = Workflow("small")
    wf.add_step('say "hi"', lambda ctx: 1, compensate=lambda ctx: None)
    wf.add_step("b", lambda ctx: 1, depends_on='say "hi"')
    assert (
        wf.to_mermaid()
        == """\
flowchart TD
    s0["say #quot;hi#quot;"]
    s0 -. undo .-> u0(("↶"))
    s1["b"]
    s0 --> s1
"""
    )


def test_dot() -> None:
    wf = Workflow('the "small" one')
    wf.add_step('say "hi" \\', lambda ctx: 1, compensate=lambda ctx: None)
    wf.add_step("b", lambda ctx: 1, depends_on='say "hi" \\')
    assert (
        wf.to_dot()
        == """\
digraph "the \\"small\\" one" {
    rankdir=LR;
    node [shape=box, style=rounded];
    s0 [label="say \\"hi\\" \\\\", peripheries=2];
    s1 [label="b"];
    s0 -> s1;
}
"""
    )


@pytest.mark.parametrize("name", ["a\nb", "a]b", "a<b>&c", "a\0b", "a;b", "%% comment", "`a`", "\ud800"])
def test_a_hostile_name_stays_inside_its_quotes(name: str) -> None:
    wf = Workflow(name)
    wf.add_step(name, lambda ctx: 1)
    assert len(wf.to_mermaid().splitlines()) == 2
    assert len(wf.to_dot().splitlines()) == 5
    wf.to_dot().encode()
    wf.to_mermaid().encode()


# -- include -----------------------------------------------------------------------------------------------------------


def payment(ledger: Ledger) -> Workflow:
    """A workflow to include: its functions use its own steps."""
    wf = Workflow("payment")
    charge = ledger.add(wf, "charge", first=lambda ctx: f"receipt of {ctx['card']}")

    def receipt(ctx: Context) -> str:
        return f"mailed {ctx[charge]}"

    wf.add_step("receipt", receipt, depends_on=charge)
    return wf


def test_include_copies_steps_under_prefixed_names(drive: Drive, ledger: Ledger) -> None:
    shop = Workflow("shop")
    cart = ledger.add(shop, "cart")
    steps = shop.include(payment(ledger), prefix="pay.")
    ledger.add(shop, "done", depends_on=[steps["receipt"], cart])
    assert [step.name for step in shop.steps] == ["cart", "pay.charge", "pay.receipt", "done"]
    assert steps["receipt"].depends_on == ("pay.charge",)
    run = drive(shop, {"card": "C-9"})
    assert run[steps["receipt"]] == run["pay.receipt"] == "mailed receipt of C-9"


def test_an_included_step_keeps_its_undo_and_its_workflows_undo_rule(drive: Drive, ledger: Ledger) -> None:
    inner = Workflow("inner", undo="attempted")
    ledger.add(inner, "a")
    ledger.add(inner, "b", depends_on="a", raises=ValueError("b"))
    outer = Workflow("outer")
    outer.include(inner, prefix="in.")
    run = drive(outer, check=False)
    assert run.undone == ("in.b", "in.a")


def test_a_run_answers_for_the_included_steps_as_its_functions_do(drive: Drive, ledger: Ledger) -> None:
    inner, outer = ledger.chain("a"), Workflow("outer")
    outer.include(inner, prefix="in.")
    run = drive(outer)
    assert run[inner.steps[0]] == run["in.a"] == "a"
    twice = Workflow("twice")
    twice.include(inner, prefix="1.")
    twice.include(inner, prefix="2.")
    for foreign in (inner.steps[0], ledger.chain("a").steps[0]):
        with pytest.raises(NoResult, match="<Step 'a'> is not a step of workflow 'twice'"):
            drive(twice)[foreign]


def test_the_same_workflow_is_included_twice_and_each_copy_uses_its_own_steps(drive: Drive, ledger: Ledger) -> None:
    inner, outer = Workflow("inner"), Workflow("outer")
    first = inner.add_step("first", lambda ctx: ctx.step)
    inner.add_step("second", lambda ctx: ctx[first], depends_on=first)
    outer.include(inner, prefix="a.")
    outer.include(inner, prefix="b.")
    run = drive(outer)
    assert (run["a.second"], run["b.second"]) == ("a.first", "b.first")


def test_include_reaches_through_several_levels(drive: Drive) -> None:
    inner, middle, outer = Workflow("inner"), Workflow("middle"), Workflow("outer")
    first = inner.add_step("first", lambda ctx: ctx.step)
    inner.add_step("second", lambda ctx: (ctx[first], first in ctx, ctx.get(first)), depends_on=first)
    middle.include(inner, prefix="i.")
    outer.include(middle, prefix="m.")
    assert drive(outer)["m.i.second"] == ("m.i.first", True, "m.i.first")


def test_the_included_workflow_continues_by_itself(drive: Drive, ledger: Ledger) -> None:
    inner = payment(ledger)
    Workflow("shop").include(inner)
    assert drive(inner, {"card": "x"})["receipt"] == "mailed receipt of x"


def test_names_that_meet_are_refused_and_nothing_is_added(ledger: Ledger) -> None:
    shop = Workflow("shop")
    ledger.add(shop, "receipt")
    with pytest.raises(DuplicateStep, match="workflow 'shop' already has a step 'receipt'"):
        shop.include(payment(ledger))
    assert [step.name for step in shop.steps] == ["receipt"]


def test_explain_and_the_report_tell_the_errors_of_all_attempts(drive: Drive) -> None:
    errors: list[Exception] = [ConnectionError("reset\nby peer"), ValueError("odd")]

    def flaky(ctx: Context) -> int:
        if errors:
            raise errors.pop(0)
        return 1

    wf = Workflow("flaky")
    wf.add_step("fetch", flaky, retry=3)
    run = drive(wf)
    assert [kind for kind, _ in run.steps["fetch"].errors] == ["ConnectionError", "ValueError"]
    assert "failed attempts: 1. ConnectionError: reset\\nby peer; 2. ValueError: odd" in run.explain()
    assert [one["type"] for one in run.to_dict()["steps"]["fetch"]["errors"]] == ["ConnectionError", "ValueError"]


@pytest.mark.parametrize(
    ("encoding", "first", "last"),
    [
        ("utf-8", "  1 ─ café ↶ ◆", "  2 ─ b  ← café"),
        ("cp1252", "  1 - café (undo) (pivot)", "  2 - b  <- café"),
        ("ascii", "  1 - caf\\xe9 (undo) (pivot)", "  2 - b  <- caf\\xe9"),
    ],
)
def test_a_workflow_can_be_printed_on_any_terminal(
    encoding: str, first: str, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wf = Workflow("w")
    wf.add_step("café", lambda ctx: None, compensate=lambda ctx: None, pivot=True)
    wf.add_step("b", lambda ctx: None, depends_on="café")
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding))
    print(wf, flush=True)
    assert written.getvalue().decode(encoding).splitlines()[1:] == [first, last]
