"""kill -9 in the middle of a run: the next call with its key goes on from there.

    python examples/crash_and_take_over.py

A child process dies of signal 9 just after the bank has charged the card, and before it could write that down. What it had
written down is done and stays done: `book` is not called again. Whether `pay` happened is unknown, so its `verify=` looks.
Without `verify=` it would be attempted again, with the same `ctx.step_key`, for the bank to recognize.
"""

import os
import shutil
import signal
import tempfile
from pathlib import Path

from flowcore import Context, Engine, Landed, NotLanded, Workflow
from flowcore.stores import SQLiteStore

folder = Path(tempfile.mkdtemp())
bank = folder / "bank.txt"  # a line for each charge: the key it was made with
dies = False

wf = Workflow("trip")


@wf.step
def book(ctx: Context) -> str:
    print("  booked seat 12A", flush=True)
    return "12A"


def was_charged(ctx: Context) -> Landed[str] | type[NotLanded]:
    """Asked where a process died in `pay`: did it happen, and what would it have returned?"""
    print("  asked the bank whether it knows of the charge", flush=True)
    return Landed("receipt") if bank.exists() and ctx.step_key in bank.read_text() else NotLanded


@wf.step(depends_on=book, verify=was_charged)
def pay(ctx: Context) -> str:
    with bank.open("a") as charges:
        charges.write(f"{ctx.step_key}\n")
    print("  charged the card", flush=True)
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    return "receipt"


@wf.step(depends_on=pay)
def send(ctx: Context) -> str:
    print("  sent the ticket", flush=True)
    return f"ticket for {ctx[book]}"


def book_a_trip() -> None:
    store = SQLiteStore(folder / "runs.db")
    with Engine(store=store, lease=0.5) as engine:  # half a second, for those who watch; the default is 30
        # The owner of the key may be at work, or dead: wait for its outcome, or for the end of its lease.
        run = engine.run(wf, {"passenger": "Ada"}, idempotency_key="trip-1", wait=10)
        print(run.explain())
    store.close()


if __name__ == "__main__":
    print("A child process books a trip:", flush=True)
    child = os.fork()
    if child == 0:
        dies = True
        book_a_trip()
    _, status = os.waitpid(child, 0)
    print(f"It died of signal {os.WTERMSIG(status)}. Its parent asks for the same trip:", flush=True)
    book_a_trip()
    print(f"Charges: {len(bank.read_text().splitlines())}")
    shutil.rmtree(folder)
