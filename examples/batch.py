"""A nightly batch of 10,000 rows, killed in the middle and started again: no row is booked twice, and none is left out.

    python examples/batch.py

`engine.map` takes rows from the CSV as workers become free, so that the file may be of any size. Each row is a durable
run with a key of its own: the second start replays the rows that have ended, resumes those that were in flight, and
runs the rest. A booking that was in flight at the kill may be sent twice, with the same `ctx.step_key`, by which the
accounts recognize it.
"""

import csv
import os
import shutil
import signal
import tempfile
from collections import Counter
from pathlib import Path

from flowcore import Context, Engine, ProgressHook, Workflow
from flowcore.stores import SQLiteStore

ROWS = 10_000
folder = Path(tempfile.mkdtemp())
accounts = folder / "accounts.txt"  # one line per booking: its step key and its amount
dies_after: int | None = None  # rows; only in the child process

wf = Workflow("row")


@wf.step
def check(ctx: Context) -> int:
    return int(ctx["amount"])  # a row without a number fails here, and only this row


@wf.step(depends_on=check)
def book(ctx: Context) -> None:
    with accounts.open("a") as bookings:
        bookings.write(f"{ctx.step_key} {ctx[check]}\n")


def run_the_batch() -> None:
    store = SQLiteStore(folder / "runs.db", durability="normal")
    outcomes: Counter[str] = Counter()
    with (
        (folder / "rows.csv").open(newline="") as file,
        ProgressHook(total=ROWS) as progress,  # on stderr: a bar on a terminal, else a line every few seconds
        Engine(store=store, hooks=[progress], lease=0.5) as engine,
    ):
        rows = csv.DictReader(file)
        for run in engine.map(wf, rows, key=lambda row: f"2026-11-29/{row['id']}"):
            outcomes["replayed" if run.replayed else str(run.status)] += 1
            if outcomes.total() == dies_after:
                os.kill(os.getpid(), signal.SIGKILL)
    store.close()
    before = outcomes["replayed"]  # how many were in flight at the kill depends on the machine
    print(f"  {'4,000 rows, or a few more,' if 4000 <= before < 4100 else before} had ended and were replayed")
    print(f"  {outcomes['failure']} rows failed, {outcomes['replayed'] + outcomes['success']:,} succeeded")


def write_rows() -> None:
    """Write the CSV, in which every thousandth amount is not a number."""
    with (folder / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "amount"), *((n, n % 97 if n % 1000 else "?") for n in range(1, ROWS + 1))])


if __name__ == "__main__":
    write_rows()
    child = os.fork()
    if child == 0:
        dies_after = 4000
        run_the_batch()
    _, status = os.waitpid(child, 0)
    print(f"The first start died of signal {os.WTERMSIG(status)}. The second one:", flush=True)
    run_the_batch()
    booked = dict(line.split() for line in accounts.read_text().splitlines())
    wanted = sum(n % 97 for n in range(1, ROWS + 1) if n % 1000)
    print(f"  {len(booked):,} bookings of {sum(map(int, booked.values())):,} in all; the rows say {wanted:,}")
    shutil.rmtree(folder)
