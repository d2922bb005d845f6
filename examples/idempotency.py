"""An idempotency key: two calls do the work once.

    python examples/idempotency.py

The second call with a key gets the stored results of the first. The same key with other values is refused, because that
is not the same request. A run that failed and was undone releases its key: the next call with it starts a new run.
"""

from flowcore import Context, Engine, IdempotencyMismatch, Workflow

charges: list[int] = []
declined = {"C-13"}

wf = Workflow("checkout")


@wf.step
def charge(ctx: Context) -> str:
    if ctx["card"] in declined:
        raise PermissionError(f"card {ctx['card']} was declined")
    charges.append(ctx["cents"])
    return f"receipt {len(charges)}"


if __name__ == "__main__":
    engine = Engine()  # prints nothing; keeps its runs in memory, unless it gets another store
    order = {"card": "C-9", "cents": 4200}

    for attempt in ("first", "second"):
        run = engine.run(wf, order, idempotency_key="order-17")
        print(f"{attempt} call: {run[charge]}, {'replayed' if run.replayed else 'done now'}; charged {charges}")

    try:
        engine.run(wf, {**order, "cents": 9900}, idempotency_key="order-17")
    except IdempotencyMismatch:
        print(f"same key, other amount: refused; charged {charges}")

    for answer in ("declined", "paid"):
        run = engine.run(wf, {"card": "C-13", "cents": 500}, idempotency_key="order-18", check=False)
        print(f"order-18 {answer}: {run.error or run[charge]}; charged {charges}")
        declined.clear()
