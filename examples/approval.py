"""A run that waits for a person, and occupies no thread meanwhile.

    python examples/approval.py

While the order waits for its approval, it is only in the store: no process keeps it. Another engine, which stands for
another process, sends the approval and resumes the run. A second approval has no effect: `send` returns False.
"""

import tempfile
from datetime import timedelta
from pathlib import Path

from flowcore import Context, Engine, SendRefused, Workflow
from flowcore.stores import SQLiteStore

wf = Workflow("order")


@wf.step
def reserve(ctx: Context) -> str:
    print("reserved")
    return "shelf 7"


@reserve.compensate
def put_back(ctx: Context) -> None:
    print("put back")


approved = wf.wait("approved", depends_on=reserve, timeout=timedelta(days=3))


@wf.step(depends_on=approved)
def ship(ctx: Context) -> str:
    print(f"shipped from {ctx[reserve]}, as {ctx[approved]} says")
    return "parcel 1"


def database(folder: str) -> SQLiteStore:
    """Open the store that all processes share."""
    return SQLiteStore(Path(folder) / "runs.db")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        with Engine(store=database(folder)) as first:
            run = first.run(wf, idempotency_key="order-1", until="waiting")
            print(f"the order is {run.status}: {run.steps['approved'].status}")

        with Engine(store=database(folder)) as second:
            print(f"Ann approves: {second.send('order-1', 'approved', 'Ann')}")
            print(f"Bob approves too: {second.send('order-1', 'approved', 'Bob')}")
            run = second.run(wf, idempotency_key="order-1", wait=10)
            print(f"the order is {run.status}: {run[ship]}")
            try:
                second.send("order-1", "invoiced", 1)
            except SendRefused as error:
                print(f"refused: {str(error).partition(' has ')[2]}")
