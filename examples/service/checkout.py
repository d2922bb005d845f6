"""The checkout saga: reserve the goods, charge the card, ship the parcel, notify the customer.

With `approval`, a person has to approve the order before the card is charged, and the parcel leaves once the payment
provider's webhook has confirmed the payment. A webhook that comes before the charge call has returned is kept.

Every call passes `ctx.step_key`, which is the same for all attempts: a charge that was made although its reply was lost
is not made again. Steps are undone even if they *raised* (`undo="attempted"`), for the same reason: an attempt without
a reply may have taken effect, so the undos check what there is to undo.
"""

from datetime import timedelta

from flowcore import Backoff, Context, Retry, Workflow
from ledger import Ledger, SoldOut
from partners import Carrier, Declined, Gateway, NoAnswer

TO_APPROVE = timedelta(days=3)
TO_CONFIRM = timedelta(hours=1)
PATIENCE = Retry(3, Backoff.exponential(0.04), on=NoAnswer)

__all__ = ["Declined", "NoAnswer", "NotApproved", "SoldOut", "checkout"]


class NotApproved(Exception):
    """A person has refused the order."""


def checkout(ledger: Ledger, gateway: Gateway, carrier: Carrier, *, approval: bool = False) -> Workflow:
    """Return the workflow of one order. Its initial values: ref, sku, quantity, cents, card, address."""
    wf = Workflow("purchase" if approval else "checkout", errors=(Declined, SoldOut, NoAnswer, NotApproved))
    before_charge, before_ship = ["reserve"], ["charge"]

    @wf.step(undo="attempted")
    def reserve(ctx: Context) -> None:
        ledger.reserve(ctx.step_key, ctx["ref"], ctx["sku"], ctx["quantity"], ctx["cents"])

    @reserve.compensate
    def release(ctx: Context) -> None:
        if ledger.is_reserved(ctx["ref"]):
            ledger.release(ctx.step_key, ctx["ref"], ctx["sku"], ctx["quantity"])

    if approval:
        approved = wf.wait("approved", depends_on=reserve, timeout=TO_APPROVE)

        @wf.step(depends_on=approved, effect=False)
        def decide(ctx: Context) -> str:
            if not ctx[approved]["approved"]:
                raise NotApproved(f"{ctx[approved]['by']} refused it")
            return f"approved by {ctx[approved]['by']}"

        wf.wait("paid", depends_on=decide, timeout=TO_CONFIRM)
        before_charge, before_ship = ["decide"], ["charge", "paid"]

    # Attempts count across owners. A gateway that failed twice may fail twice again under the next owner, hence five.
    @wf.step(
        depends_on=before_charge, retry=Retry(5, Backoff.exponential(0.04), on=NoAnswer), timeout=10.0, undo="attempted"
    )
    def charge(ctx: Context) -> str:
        return gateway.charge(ctx["ref"], ctx["card"], ctx["cents"], idempotency_key=ctx.step_key)

    @charge.compensate(retry=Retry(5, Backoff.exponential(0.04)))
    def refund(ctx: Context) -> None:
        gateway.refund(ctx["ref"], moody="refund flaky" in ctx["address"], idempotency_key=ctx.step_key)

    @wf.step(depends_on=before_ship, retry=PATIENCE, timeout=10.0, undo="attempted")
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
