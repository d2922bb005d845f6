"""`flowcore top`: a live view of the store, with keys to decide about the runs that need an operator."""

from __future__ import annotations

import os
import re
import select
import sys
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import click
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..errors import FlowcoreError, one_line
from ..stores.base import RunRecord
from .app import Operator, pass_operator, with_key
from .words import duration, state_of

__all__ = ["Screen", "top"]

_STATUSES: Final = ("running", "queued", "waiting", "parked", "incomplete", "expired", "held")
_DECIDES: Final = {"c": "cancel", "u": "undo", "e": "resume", "r": "release"}
_KEYS: Final = "↑ ↓ choose   s show   c cancel   e resume   u undo   r release   q quit"
_ARROWS: Final = {"\x1b[A": "up", "\x1b[B": "down", "\x1bOA": "up", "\x1bOB": "down"}
_PAGE: Final = 200
"""runs that are read for ages and rates"""
_LISTED: Final = 10
"""runs of each kind that are listed"""


@click.command("top")
@click.option("--every", type=click.FloatRange(0.2), default=2.0, show_default=True, help="Seconds between updates.")
@click.option("--once", is_flag=True, help="Show the runs once and exit.")
@pass_operator
def top(operator: Operator, every: float, *, once: bool) -> None:
    """Watch the runs in progress and those that need an operator. On a terminal, keys show, cancel, resume, undo and
    release a run."""
    if operator.as_json:
        counts = operator.store.counts()
        operator.emit([{"workflow": name, "status": status, "runs": n} for (name, status), n in counts.items()], "")
        return
    screen = Screen(operator)
    screen.look()
    if once or not sys.stdout.isatty():
        operator.console.print(screen.drawn(keys=False))
        return
    with _keyboard() as read, Live(screen.drawn(), console=operator.console, screen=True, auto_refresh=False) as live:
        while not screen.over:
            key = read(every)
            if key is None:
                screen.look()
            else:
                screen.press(key)
            live.update(screen.drawn(), refresh=True)


class Screen:
    """The view of `top` and the actions of its keys. A decision is carried out after it is confirmed by `y`."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator
        self._counts: Counter[tuple[str, str]] = Counter()
        self._newest: Sequence[RunRecord] = ()
        self._running: Sequence[RunRecord] = ()
        self._listed: list[RunRecord] = []
        self._chosen = 0
        self._pending_verb: str | None = None
        """the decision that waits to be confirmed"""
        self._message = ""
        self.over = False

    def look(self) -> None:
        """Read the store again. If that fails, keep the old view and show the error."""
        store = self._operator.store
        try:
            self._counts = Counter(store.counts())
            self._newest = store.list_runs(limit=_PAGE)
            self._running = store.list_runs(status="running", limit=_PAGE)
            urgent = [one for status in ("held", "expired") for one in store.list_runs(status=status, limit=_LISTED)]
        except FlowcoreError as error:
            self._message = one_line(str(error))
            return
        known = {record.run_id for record in urgent}
        oldest = sorted(self._running, key=lambda record: record.started)[:_LISTED]
        self._listed = urgent + [record for record in oldest if record.run_id not in known]
        self._chosen = max(0, min(self._chosen, len(self._listed) - 1))

    def press(self, key: str) -> None:
        """Handle a key that was pressed."""
        if self._pending_verb is not None:
            verb, self._pending_verb = self._pending_verb, None
            self._message = "Nothing was done."
            if key == "y":
                self._decide(verb)
        elif key == "q":
            self.over = True
        elif key in {"up", "k", "down", "j"}:
            step = -1 if key in {"up", "k"} else 1
            self._chosen = max(0, min(self._chosen + step, len(self._listed) - 1))
            self._message = ""
        elif self._listed and key == "s":
            self._message = self._described(self._listed[self._chosen])
        elif self._listed and key in _DECIDES:
            self._pending_verb = _DECIDES[key]

    def _described(self, head: RunRecord) -> str:
        try:
            record = self._operator.store.find(head.key)
        except FlowcoreError as error:
            return one_line(with_key(error))
        return "The run no longer exists." if record is None else str(record.explain())

    def _decide(self, verb: str) -> None:
        record = self._listed[self._chosen]
        why = {} if verb == "release" else {"reason": f"{verb} by {self._operator.who}"}
        try:
            getattr(self._operator.store, verb)(record.key, **why)
        except FlowcoreError as error:
            self._message = one_line(with_key(error))
        else:
            self._message = f"{verb} {record.key}: recorded"
            self.look()

    # -- drawing -------------------------------------------------------------------------------------------------------

    def drawn(self, *, keys: bool = True) -> Group:
        """Return the whole screen, for rich to print."""
        parts: list[Any] = [self._workflows(), Text(), self._runs(marked=keys)]
        if self._pending_verb is not None and self._listed:
            record = self._listed[self._chosen]
            question = (
                f"{self._pending_verb} {one_line(record.key)} (run {record.run_id[:12]})? y: yes, any other key: no"
            )
            parts += [Text(), Text(question, style="bold reverse")]
        elif self._message:
            parts += [Text(), Text(self._message)]
        if keys:
            keys_shown = _KEYS if self._can_show("↑") else _KEYS.replace("↑ ↓", "k j")
            parts += [Text(), Text(keys_shown, style="dim")]
        return Group(*parts)

    def _can_show(self, text: str) -> bool:
        try:
            text.encode(self._operator.console.encoding)
        except UnicodeError:
            return False
        return True

    def _workflows(self) -> Table:
        now = time.time()
        rates = Counter(record.workflow for record in self._newest if now - record.started <= 60)
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("WORKFLOW")
        for heading in (*map(str.upper, _STATUSES), "OLDEST", "STARTED/MIN"):
            table.add_column(heading, justify="right")
        for name in sorted({name for name, _ in self._counts} | set(rates)):
            ages = [now - record.started for record in self._running if record.workflow == name]
            row = [self._counts[name, status] for status in _STATUSES]
            style = "bold red" if self._counts[name, "held"] else "yellow" if self._counts[name, "expired"] else ""
            oldest = duration(max(0.0, *ages)) if ages else "-"
            figures = [*(str(n) if n else "-" for n in row), oldest, str(rates[name]) if rates[name] else "-"]
            table.add_row(Text(one_line(name)), *map(Text, figures), style=style)
        return table

    def _runs(self, *, marked: bool) -> Table:
        """Return the table of held runs, of expired runs, and of the oldest running ones."""
        now = time.time()
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("RUN", "WORKFLOW", "STATE", "AGE", "WHY"):
            table.add_column(heading)
        for place, record in enumerate(self._listed):
            stands = state_of(record, now)
            age = duration(max(0.0, now - record.started))
            row = (record.key, record.workflow, stands, age, record.problem or record.reason or "")
            chosen = marked and place == self._chosen
            style = "reverse" if chosen else "bold red" if stands == "held" else "yellow" if stands == "expired" else ""
            table.add_row(*(Text(one_line(cell)) for cell in row), style=style)
        if not self._listed:
            table.add_row(Text("nothing"), *(Text("") for _ in range(4)))
        return table


@contextmanager
def _keyboard() -> Generator[Any]:
    """Yield a function that waits some seconds for a key and returns it, or None."""
    try:
        import termios
        import tty
    except ImportError:  # without termios, `top` only shows; Ctrl-C ends it
        yield _no_key
        return
    if not sys.stdin.isatty():
        yield _no_key
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal)
    try:
        yield _Typed()
    finally:
        with suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)


class _Typed:
    """Returns the keys that are typed one by one, even if several arrive together."""

    def __init__(self) -> None:
        self._waiting: list[str] = []

    def __call__(self, seconds: float) -> str | None:
        terminal = sys.stdin.fileno()
        if not self._waiting and select.select([terminal], [], [], seconds)[0]:
            typed = os.read(terminal, 1024).decode("utf-8", "replace")
            if not typed:
                raise click.Abort  # the terminal is gone
            self._waiting = re.findall(r"\x1b[\[O][A-D]|.", typed, re.DOTALL)
        if not self._waiting:
            return None
        key = self._waiting.pop(0)
        return _ARROWS.get(key, key)


def _no_key(seconds: float) -> str | None:
    time.sleep(seconds)
    return None
