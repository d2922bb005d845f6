"""The commands that change runs: cancel, resume, undo, hold, release and erase, for one run or for many; send; and gc.

A decision about several runs, or one that loses data, is listed first and must be confirmed, unless --yes is given. The
record keeps who decided, and why, except after release and erase.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import click

from ..errors import CorruptRecord, RunNotFound, StoreError, safe_repr, safe_str
from ..stores.base import RunRecord
from .app import Operator, complete_status, pages, pass_operator, say, with_key
from .words import age, state_of

__all__ = ["COMMANDS"]


@dataclass(frozen=True)
class Verb:
    """A decision: its name, its help text, whether it takes --force, and whether it loses data."""

    name: str
    meaning: str
    forceable: bool = False
    loses: bool = False


VERBS = (
    Verb(
        "cancel",
        "Cancel a run, whichever process runs it. No new step starts, and completed steps are undone, unless the run "
        "is past its pivot.",
    ),
    Verb(
        "resume",
        "Let the next caller, or recovery, resume a run that is held, parked, incomplete or expired, or that failed "
        "with nothing undone.",
    ),
    Verb(
        "undo",
        "Let the next caller, or recovery, undo a run, past its pivot too. A running run is cancelled and undone by "
        "its owner.",
    ),
    Verb("hold", "Refuse a key until you resume, undo or release it."),
    Verb(
        "release",
        "Give a run up, so that the next call with its key starts afresh. Its record stays until its retention is "
        "over.",
        forceable=True,
        loses=True,
    ),
    Verb(
        "erase",
        "Erase the data of a run at once: values, results, errors and carriers. Its key cannot be used again until it "
        "is released.",
        forceable=True,
        loses=True,
    ),
)


def _command(verb: Verb) -> click.Command:
    parameters: list[click.Parameter] = [
        click.Argument(["names"], nargs=-1, metavar="[KEY|RUN]..."),
        click.Option(["--reason"], help="Why, for the record."),
        click.Option(["--workflow"], help="Every run of this workflow."),
        click.Option(["--status"], shell_complete=complete_status, help="Every run with this status."),
        click.Option(
            ["--older-than"],
            callback=age,
            metavar="AGE",
            help="Every run started at least this long ago: 90s, 10m, 1h, 2d.",
        ),
        click.Option(["--dry-run"], is_flag=True, help="List the runs, and change nothing."),
        click.Option(["--yes", "-y"], is_flag=True, help="Do not ask for confirmation."),
    ]
    if verb.forceable:
        parameters.append(
            click.Option(
                ["--force"], is_flag=True, help="Also a run whose owner is alive, or whose record cannot be read."
            )
        )
    return click.Command(verb.name, params=parameters, callback=partial(_decide, verb), help=verb.meaning)


@pass_operator
def _decide(
    operator: Operator,
    /,
    verb: Verb,
    names: tuple[str, ...],
    reason: str | None,
    *,
    dry_run: bool,
    yes: bool,
    force: bool = False,
    **filters: Any,
) -> None:
    filters = {name: value for name, value in filters.items() if value is not None}
    if bool(names) == bool(filters):
        raise click.UsageError("Name the runs, or say which with --workflow, --status or --older-than.")
    found = (_named(operator, name, force=force) for name in names) if names else pages(operator, **filters)
    records = list({record.key: record for record in found}.values())  # a key and its run id name one run
    if not records:
        raise RunNotFound("No run matches.")
    if dry_run or ((len(records) > 1 or verb.loses) and not yes):
        now = time.time()
        for record in records:
            say(
                f"{verb.name} {safe_repr(record.key)}: run {record.run_id}, {state_of(record, now)}",
                aside=True,
            )
    if dry_run:
        return
    if (len(records) > 1 or verb.loses) and not yes:
        click.confirm(f"{verb.name} {len(records)} run{'s' * (len(records) > 1)}?", abort=True, err=True)
    _carry_out(operator, verb, records, reason, force=force)


def _named(operator: Operator, name: str, *, force: bool) -> RunRecord:
    """Return the record of a key or a run id. With `force`, a record that cannot be read has only its key."""
    try:
        return operator.find(name)
    except CorruptRecord as error:
        if not force or error.key is None:
            raise
        return RunRecord(error.key, "", "", None, "", problem=safe_str(error, 500))


def _carry_out(operator: Operator, verb: Verb, records: list[RunRecord], reason: str | None, *, force: bool) -> None:
    """Apply the verb to each run. A refusal does not stop the others; after them, the first refusal is raised."""
    why = f"{verb.name} by {operator.who}" + (f": {reason}" if reason else "")
    # A record that is released or erased keeps no reason.
    options: dict[str, Any] = {"force": force} if verb.forceable else {"reason": why}
    act: Callable[..., None] = partial(getattr(operator.store, verb.name), **options)
    done: list[str] = []
    refused: list[StoreError] = []
    for record in records:
        try:
            act(record.key)
        except StoreError as error:
            refused.append(error)
        else:
            done.append(record.key)
    lines = [f"{verb.name} {safe_repr(key)}: recorded" for key in done]
    operator.emit(
        {"verb": verb.name, "done": done, "refused": [with_key(error) for error in refused]}, "\n".join(lines)
    )
    if refused:
        raise refused[0]


@click.command("send")
@click.argument("name", metavar="KEY|RUN")
@click.argument("step")
@click.option("--json", "value", required=True, metavar="JSON", help="The value, as JSON.")
@click.option("--id", "named", help="An id for this value; sending it again with the same id has no further effect.")
@pass_operator
def send(operator: Operator, name: str, step: str, value: str, named: str | None) -> None:
    """Send a value to a STEP that waits for it. The run keeps it until it reaches that step. The first value counts:
    another one is refused."""
    try:
        known = json.loads(value)
    except ValueError as error:
        raise click.BadParameter(f"{error}", param_hint="--json") from error
    except RecursionError as error:
        raise click.BadParameter("the value is nested too deeply.", param_hint="--json") from error
    key = operator.find(name).key
    counts: bool = operator.store.send(key, step, known, id=named)
    result = "recorded" if counts else "refused: another value was sent before and counts"
    operator.emit(
        {"verb": "send", "key": key, "step": step, "counts": counts}, f"send {safe_repr(key)} {step}: {result}"
    )
    if not counts:
        sys.exit(1)


@click.command("gc")
@pass_operator
def gc(operator: Operator) -> None:
    """Delete the ended runs that are past their retention."""
    left = operator.store.gc()
    operator.emit({"left": left}, f"{left} runs are left.")


COMMANDS = (*map(_command, VERBS), send, gc)
