"""Draws the pictures of README: `flowcore top`, `flowcore show` and a run's page, from one store with a story.

python -m tests.cli.pictures     # writes examples/pictures; tests/cli/test_pictures.py compares what they say
"""

from __future__ import annotations

import base64
import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from unittest import mock

from rich.console import Console
from rich.text import Text

from flowcore import Backoff, Context, Engine, Event, Retry, Workflow
from flowcore.cli.app import Operator
from flowcore.cli.top import Screen
from flowcore.cli.words import next_commands
from flowcore.picture import Timeline, page
from flowcore.stores import SQLiteStore
from flowcore.stores.base import Claim
from tests.picture.chromium import Chromium, program

__all__ = ["PICTURES", "show", "story", "top"]

PICTURES: Final = Path(__file__).parents[2] / "examples" / "pictures"
_WIDE: Final = 118


def checkout(*, fails: bool) -> Workflow:
    """A saga with steps side by side, a retry, and a refund that fails where `fails`."""
    wf = Workflow("checkout")

    def refund(ctx: Context) -> None:
        if fails:
            raise ConnectionError("the bank is closed")
        time.sleep(0.03)

    def charge(ctx: Context) -> str:
        time.sleep(0.05)
        if ctx.attempt == 1:
            raise ConnectionError("the bank hung up")
        return "payment-7"

    def ship(ctx: Context) -> None:
        time.sleep(0.08)
        raise ValueError("no carrier goes there")

    def takes(seconds: float) -> Any:
        return lambda ctx: time.sleep(seconds)

    wf.add_step("validate", takes(0.02))
    wf.add_step("reserve", takes(0.06), depends_on="validate", compensate=takes(0.02))
    pay = wf.add_step("charge", charge, depends_on="validate", retry=Retry(3, Backoff.fixed(0.06)))
    pay.compensate(retry=1)(refund)
    wf.add_step("ship", ship, depends_on=("reserve", "charge"))
    wf.add_step("notify", takes(0.01), depends_on="ship")
    return wf


@contextmanager
def story(folder: Path) -> Iterator[Operator]:
    """An operator's look at a store with one held run, one that its owner left, and others."""
    store = SQLiteStore(folder / "runs.db", durability="normal")
    with mock.patch("socket.gethostname", return_value="web-1"), Engine(store=store) as engine:
        engine.run(checkout(fails=True), {"order": 1042}, idempotency_key="order-1042", check=False)
    for key, workflow, lease in (("order-1044", "checkout", 600.0), ("nightly/2026-11-29", "etl", 0.0)):
        claim = Claim(key, key.encode().hex()[:32], workflow, None, "", {})
        claim.lease, claim.begins = lease, ("extract",)
        store.claim(claim)
    store.close()
    yield Operator(f"sqlite:{folder / 'runs.db'}", None, None, False, console(40))


def console(height: int) -> Console:
    return Console(record=True, file=io.StringIO(), force_terminal=True, width=_WIDE, height=height, highlight=False)


def top(operator: Operator) -> Console:
    """What `flowcore top` shows two minutes later."""
    drawn, screen = console(14), Screen(operator)
    with mock.patch("time.time", return_value=time.time() + 130):
        screen.look()
        drawn.print(screen.drawn())
    return drawn


def show(operator: Operator) -> Console:
    """What `flowcore show` tells of the held run."""
    drawn, record = console(20), operator.find("order-1042")
    drawn.print(Text("$ flowcore show order-1042", style="bold"))
    drawn.print(Text(record.explain()))
    for command in next_commands(record, time.time()):
        drawn.print(Text(f"  {command}"))
    return drawn


def screenshot(folder: Path) -> bytes | None:
    """The page of a run that was undone, as Chromium shows it; None without one."""
    browser = program()
    if browser is None:
        return None
    events: list[Event] = []
    run = Engine(hooks=[events.append]).run(checkout(fails=False), {"order": 1043}, check=False)
    drawn = page(Timeline.of_events(events), run.explain(), usual=0.21)
    (folder / "run.html").write_text(drawn, encoding="utf-8")
    with Chromium(browser, folder / "profile") as chromium:
        chromium.open((folder / "run.html").as_uri())
        chromium.send("Emulation.setDeviceMetricsOverride", width=1100, height=370, deviceScaleFactor=1, mobile=False)
        chromium.send("Emulation.setScrollbarsHidden", hidden=True)
        return base64.b64decode(chromium.send("Page.captureScreenshot", format="png")["data"])


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, story(Path(scratch)) as operator:
        for name, drawn in (("top", top(operator)), ("show", show(operator))):
            (PICTURES / f"{name}.svg").write_text(
                drawn.export_svg(title=f"flowcore {name}", unique_id=f"flowcore-{name}"), encoding="utf-8"
            )
        shot = screenshot(Path(scratch))
        if shot is not None:
            (PICTURES / "run.png").write_bytes(shot)


if __name__ == "__main__":
    main()
