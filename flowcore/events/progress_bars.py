"""The bars of `ProgressHook` on a terminal. Needs rich, from the extra `cli`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ..errors import safe_repr
from .progress import Display, Tally

__all__ = ["Bars"]


class Bars(Display):
    """A bar for each workflow. Whatever the program prints in the meantime appears above the bars."""

    def __init__(self, file: TextIO) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[what]}"),
            TextColumn("{task.fields[detail]}", style="dim"),
            TimeRemainingColumn(compact=True),
            console=Console(file=file),
            auto_refresh=False,
        )
        self._tasks: dict[str, TaskID] = {}
        self._started = False

    def show(self, tallies: Mapping[str, Tally]) -> None:
        if not self._started:
            self._started = True
            self._progress.start()
        for name, tally in tallies.items():
            done, total, what = tally.count()
            detail = escape(tally.detail())
            if name not in self._tasks:
                title = escape(safe_repr(name)[1:-1])
                self._tasks[name] = self._progress.add_task(title, total=total, what=what, detail=detail)
            self._progress.update(self._tasks[name], completed=done, total=total, what=what, detail=detail)
        self._progress.refresh()

    def end(self, tallies: Mapping[str, Tally]) -> None:
        self.show(tallies)
        self._progress.stop()

    def give_up(self) -> None:
        if self._started:
            self._progress.stop()
