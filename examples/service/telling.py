"""The demo's report: its chapters, and the checks that can fail."""

import json
import os
import shutil
import sys
from collections import Counter

from audit import Audit
from flowcore.picture import Kind, gantt
from replay import Answer
from running import Sample, Service
from timeline import Span, bare, timeline_of

STYLES = {"good": "32", "bad": "31", "undo": "35", "wait": "33", "dim": "2", "bold": "1"}
BARS = {
    Kind.WAIT: "dim",
    Kind.WORK: "good",
    Kind.FAILED: "bad",
    Kind.BACKOFF: "wait",
    Kind.UNDO: "undo",
    Kind.UNDO_FAILED: "bad",
    Kind.LATE: "dim",
}


class Story:
    """Prints the demo's chapters, and counts the checks that failed."""

    def __init__(self) -> None:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self.paint = _ansi if colour else _plain
        self.width = max(80, min(shutil.get_terminal_size((100, 24)).columns, 120))
        self.failed = 0

    def say(self, text: str = "") -> None:
        try:
            print(text, flush=True)
        except BrokenPipeError:  # the reader of a pipe has ended, as in `make demo | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)

    def chapter(self, text: str) -> None:
        self.say(f"\n{self.paint(text, 'bold')}")

    def check(self, holds: bool, text: str, faults: list[str] | None = None) -> None:
        self.failed += not holds
        self.say(f"  {self.paint('✓', 'good') if holds else self.paint('✗', 'bad')} {text}")
        for fault in (faults or [])[:5]:
            self.say(f"      {self.paint(fault, 'bad')}")
        if faults and len(faults) > 5:
            self.say(f"      … and {len(faults) - 5} more")


def _plain(text: str, _style: str) -> str:
    return text


def _ansi(text: str, style: str) -> str:
    return f"\033[{STYLES[style]}m{text}\033[0m"


def tell_failure(story: Story, failed: Answer, spans: list[Span]) -> None:
    line = failed.line
    story.chapter(
        f"An order that fails ({line.key}: {line.order['quantity']} {line.order['sku']}, {failed.body['detail']})"
    )
    run = next(span for span in spans if span.attributes.get("flowcore.run.id") == failed.body["run"])
    drawn = gantt(
        timeline_of(_trace(spans, run)),
        width=story.width - 2,
        paint=lambda text, kind: story.paint(text, BARS[kind]),
    )
    for row in drawn.splitlines():
        story.say(f"  {row}")


def tell_replay(story: Story, replayed: Answer, spans: list[Span]) -> None:
    story.chapter("A replay, and the run that it repeats")
    by_id = {span.id: span for span in spans}
    for hit in spans:
        link = next(
            (link for link in hit.links if link["attributes"].get("flowcore.link.type") == "original_run"), None
        )
        original = by_id.get(bare(link["context"]["span_id"])) if link else None
        if original and original.attributes.get("flowcore.run.id") == replayed.body["run"] and hit.error is None:
            story.say(f"  {hit.name:<26} trace {hit.trace}  {replayed.line.key} came again")
            story.say(
                f"  └─ linked to {original.name:<13} trace {original.trace}  "
                f"{hit.start - original.start:.1f} s earlier, {len(_trace(spans, original))} spans"
            )
            return
    story.check(holds=False, text=f"no span links the replay of {replayed.line.key} to its original")


def _trace(spans: list[Span], one: Span) -> list[Span]:
    return [span for span in spans if span.trace == one.trace]


def tell_outcomes(story: Story, answers: list[Answer]) -> None:
    story.chapter("Responses to the clients")
    by = Counter(outcome(answer) for answer in answers)
    status = Counter(answer.status for answer in answers)
    waited = sum(answer.told_to_wait > 0 for answer in answers)
    again = f", {waited} after a 409 with Retry-After" if waited else ""
    for name, text in {
        "done": "201",
        "replayed": f"201 with Idempotent-Replayed{again}",
        "compensated": f"402 card declined: {status[402]} · 502 gateway or carrier gave up: {status[502]}",
        "refused": f"410 sold out: {status[410]} · 422 key of another order: {status[422]}",
    }.items():
        story.say(f"  {name:<12}{by[name]:>4}  {text}")
    wrong = [a for a in answers if not a.expected]
    story.check(
        not wrong,
        f"all {len(answers)} responses are as expected" if not wrong else f"{len(wrong)} unexpected responses",
        [f"line {a.line.number}, {a.line.kind}: {a.status} {a.body.get('detail', '')}" for a in wrong],
    )


def outcome(answer: Answer) -> str:
    """The row of the outcome table that an answer belongs to."""
    if answer.status == 201:
        return "replayed" if answer.replayed else "done"
    return "compensated" if answer.status in (402, 502) else "refused" if answer.status in (409, 410, 422) else "broken"


def tell_books(story: Story, answers: list[Answer], books: Audit) -> None:
    story.chapter("The ledger (SQLite, append-only, read without the service)")
    kept = books.charged - books.refunded
    price = sum(order.price for order in books.orders.values() if order.parcels)
    story.check(
        kept == price,
        f"money: {_money(books.charged)} charged - {_money(books.refunded)} refunded = {_money(kept)}, "
        f"the price of {len(books.shipped)} shipped orders" + ("" if kept == price else f" is {_money(price)}"),
    )
    delivered, shelf = books.delivered.total(), books.shelf.total()
    story.check(
        delivered == shelf + books.pieces_shipped,
        f"stock: {delivered} pieces delivered = {shelf} on the shelf + {books.pieces_shipped} shipped",
    )
    lost = {a.line.key for a in answers if a.line.order["card"] in {"tok_lost_reply", "tok_black_hole"}}
    story.check(
        not books.faults,
        f"no order charged twice ({len(lost)} lost the reply), none charged but neither shipped nor refunded, "
        "none shipped unpaid",
        books.faults,
    )
    told = {answer.line.ref for answer in answers if answer.status == 201}
    wrong = told ^ books.shipped
    story.check(
        not wrong,
        f"the {len(told)} orders whose clients got 201 are the ones that were shipped",
        [f"{key}: {'got 201, not shipped' if key in told else 'shipped, never got 201'}" for key in sorted(wrong)],
    )


def _money(cents: int) -> str:
    return f"{cents / 100:,.2f}"


def tell_metrics(story: Story, answers: list[Answer], samples: list[Sample], spans: list[Span]) -> None:
    story.chapter("A scrape of /metrics")
    runs = counts(samples, "flowcore_run_duration_seconds_count", "outcome")
    hits = counts(samples, "flowcore_idempotency_hits_total", "outcome")
    for title, found in {
        "flowcore_run_duration_seconds_count": runs,
        "flowcore_step_retries_total": counts(samples, "flowcore_step_retries_total", "step"),
        "flowcore_compensations_total": counts(samples, "flowcore_compensations_total", "step"),
        "flowcore_idempotency_hits_total": hits,
    }.items():
        story.say(f"  {title:<37}{listed(found)}")

    outcomes = Counter(outcome(answer) for answer in answers)
    # An order that was sold out counts as compensated too: its undo ran, and found nothing to put back.
    outcomes["compensated"] += sum(answer.status == 410 for answer in answers)
    told = {
        "done": runs.get("success", 0),
        "compensated": runs.get("compensated", 0),
        "replayed": hits.get("replayed", 0),
    }
    wrong = [
        f"{name}: {count} scraped, {outcomes[name]} in the responses"
        for name, count in told.items()
        if count != outcomes[name]
    ]
    wrong += [
        f"hook {hook} raised {n} times: see the log"
        for hook, n in counts(samples, "flowcore_hook_errors_total", "hook").items()
    ]
    story.check(not wrong, "its counts are the clients' counts: done, compensated, replayed; no hook raised", wrong)
    traces = {span.trace for span in spans}
    for sample in reversed(samples):
        trace = sample.exemplar.get("trace_id")
        if sample.name == "flowcore_run_duration_seconds_bucket" and trace in traces:
            what = f"{sample.labels['outcome']}, at most {sample.labels['le']} s"
            story.check(holds=True, text=f"its exemplars lead to traces; a slow one ({what}): {trace}")
            return
    story.check(holds=False, text="no exemplar leads to a trace")


def counts(samples: list[Sample], name: str, label: str) -> dict[str, int]:
    """Return the sums of a counter by one of its labels, without zeros."""
    found: Counter[str] = Counter()
    for sample in samples:
        if sample.name == name:
            found[sample.labels[label]] += int(sample.value)
    return +found


def listed(counts: dict[str, int]) -> str:
    return " · ".join(f"{value} {count}" for value, count in counts.items())


def tell_where_next(story: Story, service: Service, replayed: Answer, *, serve: bool) -> None:
    story.chapter("Where to go next")
    if not serve:
        story.say("  make demo SERVE=1               keeps the service running: /docs, /metrics, a curl that replays")
        story.say(
            "  make demo KILL=1                kills it in the middle (STORE=sqlite:PATH, redis or redis://HOST:PORT)"
        )
        story.say("  examples/service/checkout.py    the saga that you have just seen, in 50 lines")
        story.say("  examples/*.py                   one idea each;  README.md  the first ten lines")
        return
    story.say(f"  the service   {service.url}/docs")
    story.say(f"  its metrics   {service.url}/metrics")
    story.say(f"  the books     python examples/service/audit.py {service.ledger}")
    story.say(f"  any trace     python examples/service/timeline.py {service.spans} TRACE")
    story.say("  this order was placed before, so it is replayed; with another key it is a new one:")
    story.say(f"    curl -i {service.url}/orders -H 'Content-Type: application/json' \\")
    story.say(f"      -H 'Idempotency-Key: {replayed.line.key}' -d '{json.dumps(replayed.line.order)}'")
    story.say("  Ctrl-C ends it.")
