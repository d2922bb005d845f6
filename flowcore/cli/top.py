"""`flowcore top`: the store, live."""

from __future__ import annotations

import sys
import time
from collections import Counter

import click
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .app import Operator, pass_operator
from .words import duration, standing

__all__ = ["top"]

_STATUSES = ("running", "queued", "waiting", "parked", "incomplete", "expired", "held")


@click.command("top")
@click.option("--every", type=click.FloatRange(0.2), default=2.0, show_default=True, help="Seconds between two looks.")
@click.option("--once", is_flag=True, help="Look once and stop.")
@pass_operator
def top(operator: Operator, every: float, *, once: bool) -> None:
    """Watch what is in flight, and what needs a person. Ctrl-C ends it."""
    if operator.as_json or once or not sys.stdout.isatty():
        counts = operator.store.counts()
        if operator.as_json:
            operator.emit([{"workflow": name, "status": status, "runs": n} for (name, status), n in counts.items()], "")
        else:
            operator.console.print(_view(operator))
        return
    with Live(_view(operator), console=operator.console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(every)
            live.update(_view(operator), refresh=True)


def _view(operator: Operator) -> Group:
    counts: Counter[tuple[str, str]] = Counter(operator.store.counts())
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("WORKFLOW")
    for status in _STATUSES:
        table.add_column(status.upper(), justify="right")
    for name in sorted({name for name, _ in counts}):
        row = [counts[name, status] for status in _STATUSES]
        style = "bold red" if counts[name, "held"] else "yellow" if counts[name, "expired"] else ""
        table.add_row(Text(name), *(Text(str(n) if n else "·") for n in row), style=style)
    return Group(table, Text(), _oldest(operator))


def _oldest(operator: Operator) -> Table:
    """The runs that need a person, or will soon."""
    now = time.time()
    found = [record for status in ("held", "expired") for record in operator.store.list_runs(status=status, limit=10)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("NEEDS YOU", "WORKFLOW", "STANDS", "AGE", "WHY"):
        table.add_column(heading)
    for record in found:
        age = duration(max(0.0, now - record.started))
        row = (record.key, record.workflow, standing(record, now), age, record.problem or record.reason or "")
        table.add_row(*(Text(cell) for cell in row))
    if not found:
        table.add_row(Text("nothing"), *(Text("") for _ in range(4)))
    return table
