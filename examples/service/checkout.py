"""The checkout saga: reserve the goods, charge the card, ship the parcel, notify the customer.

Every effect is made under `ctx.step_key`, which stays the same over all attempts: a charge that landed although its
reply was lost is not made again. Steps are undone even if they *raised* (`undo="attempted"`), for the same reason: an
attempt that got no answer may have landed all the same, so the undos look at what is really there.
"""

from flowcore import Backoff, Context, Retry, Workflow
from ledger import Ledger, SoldOut
from partners import Carrier, Declined, Gateway, NoAnswer

PATIENCE = Retry(3, Backoff.exponential(0.04), on=NoAnswer)

__all__ = ["Declined", "NoAnswer", "SoldOut", "checkout"]


def checkout(ledger: Ledger, gateway: Gateway, carrier: Carrier) -> Workflow:
    """The workflow of one order; initial values: ref, sku, quantity, cents, card, address."""
    wf = Workflow("checkout", errors=(Declined, SoldOut, NoAnswer))

    @wf.step(undo="attempted")
    def reserve(ctx: Context) -> None:
        ledger.reserve(ctx.step_key, ctx["ref"], ctx["sku"], ctx["quantity"], ctx["cents"])

    @reserve.compensate
    def release(ctx: Context) -> None:
        if ledger.is_reserved(ctx["ref"]):
            ledger.release(ctx.step_key, ctx["ref"], ctx["sku"], ctx["quantity"])

    # Attempts count across owners, and a gateway that stumbled twice may do so again for the next one.
    @wf.step(depends_on=reserve, retry=Retry(5, Backoff.exponential(0.04), on=NoAnswer), timeout=10.0, undo="attempted")
    def charge(ctx: Context) -> str:
        return gateway.charge(ctx["ref"], ctx["card"], ctx["cents"], idempotency_key=ctx.step_key)

    @charge.compensate(retry=Retry(5, Backoff.exponential(0.04)))
    def refund(ctx: Context) -> None:
        gateway.refund(ctx["ref"], moody="refund flaky" in ctx["address"], idempotency_key=ctx.step_key)

    @wf.step(depends_on=charge, retry=PATIENCE, timeout=10.0, undo="attempted")
    def ship(ctx: Context) -> str:
        return carrier.ship(ctx["ref"], ctx["address"], idempotency_key=ctx.step_key)

    @ship.compensate
    def recall(ctx: Context) -> None:
        carrier.recall(ctx["ref"], idempotency_key=ctx.step_key)

    @wf.step(depends_on=ship)
    def notify(ctx: Context) -> str:
        ledger.note(ctx.step_key, ctx["ref"], "notified")
        return f"{ctx['quantity']} {ctx['sku']} on the way: {ctx[ship]}"

    return wf
