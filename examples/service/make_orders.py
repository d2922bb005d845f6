"""Writes orders.jsonl: a few hundred orders, the same ones every time.

    python examples/service/make_orders.py > examples/service/orders.jsonl

A line has `kind`, for the reader; `key`, the Idempotency-Key; `order`, the body to post; `expect`, the statuses that
the final response may have. Lines that use an earlier line's key have `when`: "after" means once the earlier line has
its response, "during" means while the earlier order is in progress.
"""

import json
import random
import sys
from typing import Any

PRICES = {"mug": 1200, "shirt": 2500, "lamp": 5900}
# kind -> (how many, how its order differs from a normal one, the statuses that are expected)
KINDS: dict[str, tuple[int, dict[str, Any], list[int]]] = {
    "normal": (186, {}, [201]),
    "declined": (20, {"card": "tok_declined"}, [402]),
    "flaky card": (20, {"card": "tok_flaky"}, [201]),
    "lost reply": (12, {"card": "tok_lost_reply"}, [201]),
    "black hole": (5, {"card": "tok_black_hole"}, [502]),
    "flaky carrier": (12, {"address": "hills"}, [201]),
    "no carrier": (7, {"address": "island"}, [502]),
    "flaky refund": (4, {"address": "island, refund flaky"}, [502]),
    "scarce": (18, {"sku": "poster", "quantity": 1, "cents": 1900}, [201, 410]),
    "overlap": (12, {"card": "tok_slow"}, [201]),
}
DUPLICATES, MISMATCHES, SECOND_TRIES = 24, 6, 6
LATER = 24  # a line that refers to an earlier one comes at least so many lines after it


def main() -> None:
    rng = random.Random(2026)  # noqa: S311 - it should be predictable
    kinds = [kind for kind, (count, _, _) in KINDS.items() for _ in range(count)]
    rng.shuffle(kinds)
    lines: list[dict[str, Any]] = []
    for number, kind in enumerate(kinds, start=1):
        _, special, expect = KINDS[kind]
        sku, quantity = rng.choice(list(PRICES)), rng.choice([1, 1, 1, 2, 3])
        order = {
            "sku": sku,
            "quantity": quantity,
            "cents": PRICES[sku] * quantity,
            "card": "tok_visa",
            "address": "home",
        }
        line: dict[str, Any] = {"kind": kind, "key": f"order-{number:03d}", "order": order | special, "expect": expect}
        lines.append(line)
        if kind == "overlap":
            lines.append({**line, "when": "during"})

    plain = [line for line in lines if line["kind"] in {"normal", "lost reply"}]
    declined = [line for line in lines if line["kind"] == "declined"]
    for line in rng.sample(plain, DUPLICATES):
        insert(rng, lines, line, {**line, "kind": "duplicate", "when": "after"})
    for line in rng.sample(plain, MISMATCHES):
        other = {**line["order"], "cents": line["order"]["cents"] + 100}
        insert(rng, lines, line, {**line, "kind": "mismatch", "order": other, "expect": [422], "when": "after"})
    for line in rng.sample(declined, SECOND_TRIES):
        other = {**line["order"], "card": "tok_visa"}
        insert(rng, lines, line, {**line, "kind": "second card", "order": other, "expect": [201], "when": "after"})

    for line in lines:
        sys.stdout.write(json.dumps(line) + "\n")


def insert(rng: random.Random, lines: list[dict[str, Any]], first: dict[str, Any], line: dict[str, Any]) -> None:
    """Put `line` well after `first`, but not between an overlapping pair."""
    at = rng.randint(min(lines.index(first) + LATER, len(lines)), len(lines))
    while at < len(lines) and lines[at].get("when") == "during":
        at += 1
    lines.insert(at, line)


if __name__ == "__main__":
    main()
