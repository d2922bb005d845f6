"""A saga: when the last attempt to pay fails, the seat that was booked is given back.

    python examples/saga.py

`pay` gets three attempts, with waits in between that double. When the last one has failed, every step that was done is
undone, the newest first. The caller then sees the step's own exception, with a note of what was undone.
"""

from flowcore import Backoff, Context, Retry, Workflow

seats = {"12A": "free"}

wf = Workflow("trip")


@wf.step
def book(ctx: Context) -> str:
    seats["12A"] = ctx["passenger"]
    return "12A"


@book.compensate
def cancel(ctx: Context) -> None:
    seats[ctx[book]] = "free"


# Without jitter=False each wait would be random, from zero to its bound, which spreads the load of many clients.
@wf.step(depends_on=book, retry=Retry(3, Backoff.exponential(0.02, jitter=False), on=ConnectionError))
def pay(ctx: Context) -> str:
    print(f"    seat 12A: {seats['12A']}; the bank is asked, attempt {ctx.attempt}")
    raise ConnectionError("the bank does not answer")


if __name__ == "__main__":
    try:
        wf.run({"passenger": "Ada"})
    except ConnectionError as error:
        print(f"\nThe caller gets {error!r}, with a note:", *error.__notes__, sep="\n  ")

    print(f"seat 12A: {seats['12A']}")
