"""The commands that only read: ls, show, timeline, html, doctor, graph, schedules. A read-only user may run them."""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
from rich.cells import cell_len

from .._engines.driving import drive
from ..errors import DefinitionError, one_line, safe_repr
from ..fires import LOG, logged_schedule
from ..picture import Timeline, gantt
from ..schedule import Schedule, ScheduleStatus, status_of
from ..stores.base import RunRecord
from ..stores.opening import load
from ..workflow import Workflow
from .app import URGENT, Operator, complete_status, pages, pass_operator, say, shows
from .words import age, as_data, duration, next_commands, state_of

__all__ = ["COMMANDS"]

_LAST: Final = 50
"""the number of recent runs whose median duration counts as usual"""
_WIDEST: Final = 48
"""characters to which the cells of a column are padded at most"""
_WIDEST_PICTURE: Final = 1_000
"""the characters of a line of `timeline` at most, whatever COLUMNS says"""


@click.command("ls")
@click.option(
    "--status",
    shell_complete=complete_status,
    help="queued, running, waiting, success, failure, compensated, parked, …, held or expired.",
)
@click.option("--workflow", help="Only runs of this workflow.")
@click.option(
    "--older-than", callback=age, metavar="AGE", help="Only runs started at least this long ago: 90s, 10m, 1h, 2d."
)
@click.option("--key", "text", help="Only runs whose key contains this text.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="Runs to list.")
@click.option("--after", metavar="CURSOR", help="The cursor at the end of the previous page, for the next one.")
@pass_operator
def ls(operator: Operator, /, limit: int, after: str | None, **filters: Any) -> None:
    """List runs: held and expired ones first, then the newest."""
    filters = {name: value for name, value in filters.items() if value is not None}
    urgent: list[RunRecord] = []
    if after is None and "status" not in filters:
        for status in URGENT:
            urgent.extend(operator.store.list_runs(status=status, limit=limit, **filters))
    known = {record.run_id for record in urgent}
    page = operator.store.list_runs(limit=limit, after=after, **filters)
    records = [*urgent, *(record for record in page if record.run_id not in known)]
    if operator.as_json:
        operator.emit({"runs": [as_data(record) for record in records], "cursor": page.cursor}, "")
        return
    if not records:
        say("No run matches.")
        return
    now = time.time()
    say(_columns(("KEY", "WORKFLOW", "STATE", "AGE", "RUN", "WHY"), (_run_cells(one, now) for one in records)))
    if page.cursor is not None:
        say(f"More: add --after {page.cursor}")


def _columns(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a line for each row, as long as necessary: at the width of a terminal, a rich table would drop the columns
    that matter most. A long cell does not push the columns of the other rows away."""
    lines = [heading, *rows]
    widths = [min(_WIDEST, max(map(cell_len, column))) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _run_cells(record: RunRecord, now: float) -> tuple[str, ...]:
    return (
        safe_repr(record.key)[1:-1],
        safe_repr(record.workflow)[1:-1],
        state_of(record, now),
        duration(max(0.0, now - record.started)) if record.started else "",
        record.run_id[:12],
        one_line(record.problem or record.reason or ""),
    )


@click.command("show")
@click.argument("name", metavar="KEY|RUN")
@click.option("--values", is_flag=True, help="Also the results and values, which may be secrets.")
@pass_operator
def show(operator: Operator, name: str, *, values: bool) -> None:
    """Show what happened to one run, its present state, and the exact command for each possible decision."""
    record = operator.look_up(name)
    data = as_data(record, values=values)
    lines = [record.explain()]
    if values:
        lines += [f"  value {safe_repr(key)} = {safe_repr(value, 200)}" for key, value in record.values.items()]
        lines += [f"  result of {safe_repr(step)} = {safe_repr(value, 200)}" for step, value in record.results.items()]
    lines += [f"  {command}" for command in next_commands(record, time.time())]
    operator.emit(data, "\n".join(lines))


@click.command("doctor")
@click.option("--deep", is_flag=True, help="Also check the integrity of the whole file, which may take long.")
@pass_operator
def doctor(operator: Operator, *, deep: bool) -> None:
    """Report what can lose runs in this store, and how many runs are not over."""
    findings = operator.store.doctor(deep=True) if deep else operator.store.doctor()
    operator.emit(findings, "\n".join(f"{name}: {finding}" for name, finding in findings.items()))


@click.command("graph")
@click.argument("workflow", metavar="PACKAGE.MODULE:WORKFLOW")
@click.option("--mermaid", "form", flag_value="mermaid", help="As a Mermaid flowchart.")
@click.option("--dot", "form", flag_value="dot", help="In Graphviz's DOT language.")
@click.option("--svg", "form", flag_value="svg", help="As an SVG picture.")
@click.option("--run", "name", metavar="KEY|RUN", help="With --svg: colour each step by its outcome in this run.")
@pass_operator
def graph(operator: Operator, workflow: str, form: str | None, name: str | None) -> None:
    """Draw a workflow's steps."""
    if name is not None and form != "svg":
        raise click.UsageError("--run needs --svg.")
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` does, because an operator names a module of the service
    found = load(workflow)
    if not issubclass(type(found), Workflow):
        raise DefinitionError(f"{safe_repr(workflow)} is not a Workflow.")
    record = None if name is None else operator.look_up(name)
    drawings = {"mermaid": found.to_mermaid, "dot": found.to_dot, "svg": partial(found.to_svg, record)}
    say(drawings[form]() if form is not None else repr(found))


@click.command("timeline")
@click.argument("name", metavar="KEY|RUN")
@pass_operator
def timeline(operator: Operator, name: str) -> None:
    """Draw where a run's time went."""
    width = min(shutil.get_terminal_size((100, 24)).columns, _WIDEST_PICTURE)
    drawn = gantt(Timeline.of_record(operator.look_up(name)), width=width, ascii=not shows("█"))
    say(drawn)


@click.command("html")
@click.argument("name", metavar="KEY|RUN")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The file to write."
)
@click.option("--trace-url", metavar="TEMPLATE", help="Where traces are, with {trace_id} in it.")
@pass_operator
def html(operator: Operator, name: str, output: Path, trace_url: str | None) -> None:
    """Write one run as one self-contained HTML page."""
    record = operator.look_up(name)
    last = operator.store.list_runs(workflow=record.workflow, status="success", limit=_LAST)
    lengths = [one.finished - one.started for one in last if one.finished is not None]
    usual = statistics.median(lengths) if lengths else None
    output.write_text(record.html(trace_url=trace_url, usual=usual), encoding="utf-8")
    operator.emit({"written": str(output)}, f"Written to {output}.")


@click.command("schedules")
@pass_operator
def schedules(operator: Operator) -> None:
    """List the schedules of the engines on this store, with their next fires and the outcome of the last one."""
    now = datetime.now(UTC)
    found = [drive(status_of(one, operator.store, now), lambda call: call()) for one in _recorded(operator)]
    if operator.as_json:
        operator.emit({"schedules": [_as_data(one) for one in found]}, "")
    elif not found:
        say("No engine has recorded a schedule in this store.")
    else:
        heading = ("SCHEDULE", "WORKFLOW", "FIRES", "NEXT (UTC)", "LAST (UTC)", "STATE", "WHY")
        say(_columns(heading, map(_schedule_cells, found)))


def _recorded(operator: Operator) -> list[Schedule]:
    """Return the schedules in the store, as their newest entries record them, sorted by name."""
    found: dict[str, Schedule] = {}
    for head in pages(operator, workflow=LOG, status="success"):
        name = logged_schedule(head.key)
        if name is None or name in found:
            continue
        record = operator.store.find(head.key)
        if record is not None and record.values:
            found[name] = Schedule.from_record(record.values)
    return [found[name] for name in sorted(found)]


def _as_data(status: ScheduleStatus) -> dict[str, Any]:
    outcome, last = status.last_outcome, status.last_fire
    return {
        **status.schedule.to_record(),
        "next_fires": [fire.isoformat() for fire in status.next_fires],
        "last_fire": None if last is None else last.isoformat(),
        "last_outcome": None if outcome is None else str(outcome),
        "reason": status.reason,
    }


def _schedule_cells(status: ScheduleStatus) -> tuple[str, ...]:
    return (
        safe_repr(status.name)[1:-1],
        safe_repr(status.schedule.workflow)[1:-1],
        str(status.schedule),
        f"{status.next_fires[0]:%Y-%m-%d %H:%M:%S}" if status.next_fires else "",
        "" if status.last_fire is None else f"{status.last_fire:%Y-%m-%d %H:%M:%S}",
        "" if status.last_outcome is None else str(status.last_outcome),
        one_line(status.reason or ""),
    )


COMMANDS = (ls, show, timeline, html, doctor, graph, schedules)
