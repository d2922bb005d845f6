"""kill -9 in the middle of a run: the next call with its key resumes it.

    python examples/crash_and_take_over.py

A child process dies of signal 9 just after the bank has charged the card, and before the run could record that. Steps
that are recorded as done stay done: `book` is not called again. Whether `pay` took effect is unknown, so its `verify=`
asks the bank. Without `verify=`, `pay` would be attempted again, with the same `ctx.step_key`, by which the bank can
recognize it.
"""

import os
import shutil
import signal
import tempfile
from pathlib import Path

from flowcore import Context, Engine, Landed, NotLanded, Workflow
from flowcore.stores import SQLiteStore

folder = Path(tempfile.mkdtemp())
bank = folder / "bank.txt"  # one line per charge: its step key
dies = False

wf = Workflow("trip")


@wf.step
def book(ctx: Context) -> str:
    print("  booked seat 12A", flush=True)
    return "12A"


def was_charged(ctx: Context) -> Landed[str] | type[NotLanded]:
    """Whether the card was charged, and what `pay` would have returned. Called after a process died in `pay`."""
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
    with Engine(store=store, lease=0.5) as engine:  # half a second, to keep the example short; the default is 30
        # The key's owner may be alive or dead: wait for its outcome, or for the end of its lease.
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
