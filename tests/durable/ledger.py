"""What steps did, and what stores said, written where a kill -9 cannot take it back; and what must be true of it after.

Both journals are files that all processes append to, a line at a time, and in the order in which they were written. A
kill -9 may cut a line short, where a page of the file ends: such a line is not there, as if the kill had come just before
it. Each begins with a newline for that, so that the next one is whole. Times are `time.monotonic()`, which all processes
of a machine share.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["CALLED", "Effect", "Journal", "Ledger", "Word", "effects_of", "lines_of", "words_of"]


CALLED: ContextVar[float] = ContextVar("called")
"""when the step that is going on was called; set by those that may wait"""


class Effect(NamedTuple):
    """A step, or its undo, has had its effect on the world."""

    key: str
    step: str
    step_key: str
    what: str
    """do, undo, or failed undo, which has no effect"""
    fence: int
    run_id: str
    pid: int
    thread: int
    at: float
    called: float
    """when the step began, which may have waited since then"""


class Word(NamedTuple):
    """A store has said yes to a verb, which was sent at one time and heard of at another."""

    key: str
    verb: str
    run_id: str
    fence: int
    done: list[str]
    """steps that it knows to be done, from now on"""
    undone: list[str]
    pid: int
    thread: int
    sent: float
    heard: float


class Ledger:
    """An O_APPEND file of lines that are JSON lists."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, line: Iterable[Any]) -> None:
        os.write(self._file, b"\n" + json.dumps(list(line)).encode())

    def close(self) -> None:
        os.close(self._file)

    def did(self, ctx: Any, what: str) -> None:
        """Note the effect of a step."""
        whose = ctx["key"], ctx.step, ctx.step_key, what, ctx.fence, ctx.run_id
        now = time.monotonic()
        self.write(Effect(*whose, os.getpid(), threading.get_ident(), now, CALLED.get(now)))


class Journal(Ledger):
    """What stores have accepted."""

    def accepted(self, verb: str, argument: Any, answer: Any, sent: float) -> None:
        """Note a verb's good answer."""
        when = os.getpid(), threading.get_ident(), sent, time.monotonic()
        if verb == "claim":
            run_id = argument.run_id if answer.record is None else answer.record.run_id
            self.write(Word(argument.key, verb, run_id, answer.fence, [], [], *when))
            return
        checkpoint = argument if verb == "checkpoint" else argument.changes
        steps = {} if checkpoint is None else checkpoint.steps
        whose = argument if verb == "checkpoint" else argument.record
        done = [name for name, step in steps.items() if step.report.status == "success"]
        undone = [name for name, step in steps.items() if step.report.undo == "success"]
        self.write(Word(whose.key, verb, whose.run_id, whose.fence, done, undone, *when))


def effects_of(path: str | Path) -> dict[str, list[Effect]]:
    """A ledger's lines, by key."""
    by_key: dict[str, list[Effect]] = {}
    for line in lines_of(path):
        effect = Effect(*line)
        by_key.setdefault(effect.key, []).append(effect)
    return by_key


def words_of(path: str | Path) -> dict[str, list[Word]]:
    """A journal's lines, by key."""
    by_key: dict[str, list[Word]] = {}
    for line in lines_of(path):
        word = Word(*line)
        by_key.setdefault(word.key, []).append(word)
    return by_key


def lines_of(path: str | Path) -> Iterable[list[Any]]:
    """What is written in such a file."""
    with suppress(FileNotFoundError), Path(path).open("rb") as file:  # nothing has been written yet
        for text in file:
            try:
                line: list[Any] = json.loads(text)
            except ValueError:  # the empty first one, or one that is cut short, or not yet complete
                continue
            yield line
