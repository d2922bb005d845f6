"""The same durable chain of ten on DBOS, with its SQLite system database, and on `Engine` with an SQLiteStore.

Both wait for the disk at each commit ("full"), or neither does ("normal"). DBOS leaves SQLite's journal as it is, a
rollback journal, which costs it more than a write-ahead log would: it is measured with both. It allows one instance a
process, so each has a process of its own (`python -m tests.benchmarks.durable_dbos FILE JOURNAL SYNCHRONOUS`), which times
itself.
"""

# What is imported here need not be installed.
# mypy: disable-error-code="import-not-found, import-untyped, misc, untyped-decorator, unused-ignore"
# pyright: reportMissingImports=false, reportMissingTypeStubs=false

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

from flowcore.stores import SQLiteStore

from .durable_work import STEPS, VALUES, Durable, book, work
from .harness import Options, Report, Row, Target, interleaved, median_ratio
from .memory import ROOT
from .work import SYNC

__all__ = ["measure"]

LIMIT: Final = 1 / 5
OF_DBOS: Final = {
    "DBOS, full": ("delete", "full"),
    "DBOS with a write-ahead log, full": ("wal", "full"),
    "DBOS with a write-ahead log, normal": ("wal", "normal"),
}
"""name -> journal mode and synchronous setting"""
TARGETS: Final = (
    Target("Engine, full", LIMIT, "DBOS, full"),
    Target("Engine, normal", LIMIT, "DBOS with a write-ahead log, normal"),
)

Turn = Callable[[], float]


def measure(options: Options) -> Report:
    report = Report("dbos", "a durable chain of 10 beside DBOS, on SQLite", "µs per run", "DBOS, full")
    if importlib.util.find_spec("dbos") is None:
        report.notes.append("left out: dbos is not installed.")
        return report
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        number = 5 if options.quick else 20
        turns = {
            "Engine, full": stack.enter_context(engine(folder / "full", "full", number)),
            "Engine, normal": stack.enter_context(engine(folder / "normal", "normal", number)),
        }
        for name, settings in OF_DBOS.items():
            file = folder / "-".join(("dbos", *settings))
            turns[name] = stack.enter_context(dbos(file, *settings, number))
        for turn in turns.values():
            turn()  # caches fill, threads start
        samples = interleaved(turns, options.rounds)
    for name in turns:
        target = next((target for target in TARGETS if target.subject == name), None)
        report.rows.append(
            Row(
                name,
                statistics.median(samples[name]) * 1e6,
                min(samples[name]) * 1e6,
                median_ratio(samples, name, "DBOS, full"),
                target,
                None if target is None else median_ratio(samples, name, target.reference),
            )
        )
    given = median_ratio(samples, "Engine, full", "DBOS with a write-ahead log, full")
    report.rows[0].note = f"({given:.2f} × DBOS with a write-ahead log)"
    return report


@contextlib.contextmanager
def engine(file: Path, durability: Literal["full", "normal"], number: int) -> Iterator[Turn]:
    """Seconds per run of that many on `Engine`."""
    store = SQLiteStore(file, durability=durability)
    subject = Durable(store)
    run = subject.prepare(work(SYNC))

    def turn() -> float:
        before = time.perf_counter()
        for _ in range(number):
            run()
        return (time.perf_counter() - before) / number

    yield turn
    subject.engine.close()
    store.close()


@contextlib.contextmanager
def dbos(file: Path, journal: str, synchronous: str, number: int) -> Iterator[Turn]:
    """Seconds per run of that many on DBOS, in a process of its own."""
    command = [sys.executable, "-m", f"{__package__}.durable_dbos", str(file), journal, synchronous]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def turn() -> float:
            print(number, file=stdin, flush=True)
            return float(stdout.readline())

        try:
            yield turn
        finally:
            stdin.close()
            process.wait()


def main(file: str, journal: str, synchronous: str) -> None:
    """Answer each line of the standard input, a number of runs, with the seconds that one of them took."""
    import sqlalchemy
    from dbos import DBOS, SetWorkflowID

    @sqlalchemy.event.listens_for(sqlalchemy.Engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        connection.execute(f"PRAGMA synchronous = {synchronous}")

    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal}")
    DBOS(
        config={
            "name": "benchmark",
            "system_database_url": f"sqlite:///{file}",
            "run_admin_server": False,
            "log_level": "CRITICAL",
        }
    )
    calls = 0

    @DBOS.step()
    def step(values: dict[str, Any]) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        return book(values)

    @DBOS.workflow()
    def chain(values: dict[str, Any]) -> list[dict[str, Any]]:
        return [step(values) for _ in range(STEPS)]

    DBOS.launch()
    orders = itertools.count()
    for line in sys.stdin:
        number, calls = int(line), 0
        before = time.perf_counter()
        for _ in range(number):
            with SetWorkflowID(f"order-{next(orders)}"):
                chain(dict(VALUES))
        seconds = (time.perf_counter() - before) / number
        if calls != number * STEPS:
            raise AssertionError(f"DBOS made {calls} calls, not {number * STEPS}")
        print(seconds, flush=True)
    DBOS.destroy()


if __name__ == "__main__":
    main(*sys.argv[1:])
