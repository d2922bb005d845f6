"""The workflow that the recipes of this folder deploy, and its store.

It has three steps, of which the second is slow. Their effects are lines of the file $ORDERS_LEDGER. $FLOWCORE_STORE is
sqlite:PATH or redis://HOST.
"""

import os
import time
from pathlib import Path

import flowcore.stores
from flowcore import Context, Workflow

order = Workflow("order")


def open_store() -> flowcore.stores.Store:
    """Open the store of this process. A missing SQLite file is created."""
    where = os.environ["FLOWCORE_STORE"]
    if where.startswith("sqlite:"):
        return flowcore.stores.SQLiteStore(where.removeprefix("sqlite:"))
    return flowcore.stores.open(where)


def record(effect: str, ctx: Context) -> None:
    """Append one line, as the effect of a step. A real step calls a service, and passes it `ctx.step_key`."""
    with Path(os.environ["ORDERS_LEDGER"]).open("a", encoding="utf-8") as ledger:
        ledger.write(f"{effect} {ctx['number']} {time.time()}\n")


@order.step
def reserve(ctx: Context) -> None:
    """Take the goods."""
    record("reserve", ctx)


@reserve.compensate
def release(ctx: Context) -> None:
    """Put the goods back."""
    record("release", ctx)


@order.step(depends_on=reserve)
def pack(ctx: Context) -> None:
    """Pack the goods, which takes a while: a deploy finds this step running, and waits for it, at most for `grace`."""
    record("pack", ctx)
    time.sleep(float(os.environ.get("ORDERS_PACKING", "1")))


@order.step(depends_on=pack)
def ship(ctx: Context) -> None:
    """Send the goods."""
    record("ship", ctx)
