"""The days, each as a job of its own in one Prometheus, and the alerts that a person wants to get on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from flowcore_otel import names

from .fleet import MINUTE, Flow, Process, Samples, Step, Weather

__all__ = ["DAY", "HOUR", "SHOP", "STORIES", "Expected", "Story", "shop", "tell"]

HOUR: Final = 3600
DAY: Final = 24 * HOUR

CHECKOUT: Final = Flow(
    "checkout",
    180,
    (
        Step("reserve", 0.012),
        Step("charge", 0.22, fails=0.01, attempts=3, error="partners.NoAnswer"),
        Step("ship", 0.09, fails=0.004, attempts=2, error="partners.NoAnswer"),
        Step("notify", 0.02),
    ),
    undone=0.028,
    failed=0.0002,
    repeated=0.02,
)
REFUND: Final = Flow(
    "refund", 3, (Step("lookup", 0.01), Step("refund-card", 0.4, 0.01, 3), Step("mail", 0.03)), failed=0.0005
)
INVOICE: Final = Flow("invoice", 24, (Step("render", 0.3), Step("store", 0.04)), failed=0.0002)
SYNC: Final = Flow("stock-sync", 1, (Step("fetch", 4, 0.01, 3), Step("diff", 0.5), Step("apply", 2)))
LETTER: Final = Flow("newsletter", 1.2, (Step("pick", 0.05), Step("send", 1.2)), failed=0.0005)
SHOP: Final = (CHECKOUT, REFUND, INVOICE, SYNC, LETTER)


@dataclass(frozen=True)
class Expected:
    """An alert that fires on the day, `after` to `before` minutes from what caused it. Of a page and a ticket about one budget
    Alertmanager shows the page."""

    alert: str
    severity: str
    workflow: str
    after: float
    before: float


@dataclass(frozen=True)
class Story:
    """A day. `tell` writes it as the job `name`, ending `end`, and returns when the trouble began."""

    name: str
    about: str
    tell: Callable[[str, int, Samples], int]
    expected: tuple[Expected, ...] = ()
    days: int = 1
    """how many days to look at"""


def tell(end: int) -> tuple[Samples, dict[str, int]]:
    """All of the days, and when trouble began on each of them."""
    samples: Samples = {}
    return samples, {story.name: story.tell(story.name, end, samples) for story in STORIES}


def _live(processes: list[Process], start: int, end: int) -> None:
    for at in range(start, end, MINUTE):
        for process in processes:
            process.minute(at)


def day(at: int) -> float:
    """How busy it is: least at four in the morning, most at four in the afternoon (UTC)."""
    return 0.55 - 0.45 * math.cos(2 * math.pi * ((at % DAY) / DAY - 4 / 24))


def _quiet_shop(job: str, end: int, samples: Samples) -> int:
    """Few customers, none at night, a declined card now and then, one failure in the afternoon."""

    def forecast(at: int, flow: Flow) -> Weather:
        hour = at % DAY // HOUR
        return Weather(busy=0.0 if hour < 7 else 1.0, failed=1.0 if at // MINUTE == (end - 5 * HOUR) // MINUTE else 0.0)

    flows = (replace(CHECKOUT, rate=0.6), replace(REFUND, rate=0.05))
    _live([Process(job, "a", flows, samples, forecast=forecast)], end - 54 * HOUR, end)
    return end - DAY


_BAD_NIGHTS: Final = {"export": range(3, 9), "backup": (3, 5, 6), "mirror": (1, 3, 5, 7)}
"""the nights in which a job fails"""


def _nights(job: str, end: int, samples: Samples) -> int:
    """Jobs of ten minutes at two in the morning: one works, one fails from the fourth night on, one is not started any more
    then, one fails in the fourth night and twice after one that was well, one fails every other night."""
    first = (end - 9 * DAY) // DAY * DAY + 2 * HOUR
    for night in range(9):
        began = first + night * DAY
        for name in ("report", "export", "cleanup", "backup", "mirror"):
            if name == "cleanup" and night >= 3:
                continue
            flow = Flow(name, 0, (Step("work", 300),))
            process = Process(job, f"{name}-{night}", (flow,), samples, store="sqlite")
            for minute in range(11):
                at = began + minute * MINUTE
                if at >= end:
                    break
                if minute == 8:
                    _once(process, flow, at, "failure" if night in _BAD_NIGHTS.get(name, ()) else "success")
                process.scrape(at)
    return first + 3 * DAY


def _once(process: Process, flow: Flow, at: int, outcome: str) -> None:
    process.add(names.RUNS, 1, workflow=flow.name, outcome=outcome)
    process.observe(names.RUN_DURATION, 1, 400, workflow=flow.name, outcome=outcome)
    process.set(names.LAST_END, at, workflow=flow.name, outcome=outcome)


def shop(job: str, end: int, samples: Samples, *, rich: bool = False, hours: int = 30, ago: int = 90) -> int:
    """A partner takes cards slowly, or not at all, for twenty minutes; a new version came an hour before."""
    began = end - ago * MINUTE

    def forecast(at: int, flow: Flow) -> Weather:
        away = began <= at < began + 20 * MINUTE and flow.name in {"checkout", "refund"}
        steps = ("charge", "refund-card")
        return Weather(day(at), slow=11, undone=0.115, attempts_fail=0.55, steps=steps) if away else Weather(day(at))

    flows = SHOP if rich else (CHECKOUT, REFUND)
    for number, instance in enumerate(("10.0.3.7:8000", "10.0.3.9:8000") if rich else ("a",)):
        deploy = began - (60 + 2 * number) * MINUTE
        for version, start, until in (("1.4.0", end - hours * HOUR, deploy), ("1.5.0", deploy, end)):
            held = _held(began, end) if rich else lambda at, flow: {}
            process = Process(job, instance, flows, samples, version, forecast=forecast, held=held, rich=rich)
            _live([process], start, until)
    return began


def _held(began: int, end: int) -> Callable[[int, Flow], dict[str, int]]:
    def held(at: int, flow: Flow) -> dict[str, int]:
        return {"held": 2} if flow.name == "checkout" and at >= began + 14 * MINUTE else {}

    return held


def _slow_burn(job: str, end: int, samples: Samples) -> int:
    """From six in the morning on two runs of a hundred fail."""
    began = end - 18 * HOUR

    def forecast(at: int, flow: Flow) -> Weather:
        return Weather(failed=0.02 if at >= began else 0.0)

    _live(
        [Process(job, "a", (replace(CHECKOUT, rate=60, undone=0.0),), samples, forecast=forecast)], end - 30 * HOUR, end
    )
    return began


def _rolling_deploy(job: str, end: int, samples: Samples) -> int:
    """Four processes are replaced, one every two minutes; the new ones take over what the old ones parked."""
    began = end - 5 * HOUR
    flow = replace(CHECKOUT, rate=20)
    for number in range(4):
        change = began + 2 * number * MINUTE
        _live([Process(job, f"old-{number}", (flow,), samples)], end - 8 * HOUR, change)
        new = Process(job, f"new-{number}", (flow,), samples, version="1.5.0")
        new.scrape(change, up=False)
        new.minute(change + MINUTE)
        new.add(names.RUN_RECOVERIES, 1, workflow=flow.name, decision="forward")
        _live([new], change + 2 * MINUTE, end)
    return began


def _crash_loop(job: str, end: int, samples: Samples) -> int:
    """A poisoned run kills one process after the other: five takeovers, then it is held."""
    began = end - 6 * HOUR
    flow = replace(CHECKOUT, rate=20)
    held_at = began + 20 * MINUTE

    def held(at: int, _: Flow) -> dict[str, int]:
        return {"held": 1} if at >= held_at else {}

    for number in range(4):
        process = Process(job, f"p{number}", (flow,), samples, held=held)
        crash = began + 4 * number * MINUTE
        _live([process], end - 9 * HOUR, crash)
        reborn = Process(job, f"p{number}", (flow,), samples, held=held, seed=5)
        reborn.scrape(crash, up=False)
        reborn.minute(crash + MINUTE)
        reborn.add(names.RUN_RECOVERIES, 1, workflow=flow.name, decision="hold" if number == 3 else "forward")
        _live([reborn], crash + 2 * MINUTE, end)
    return held_at


def _one_of_fifty(job: str, end: int, samples: Samples) -> int:
    """One of fifty processes cannot be scraped for hours."""
    began = end - 8 * HOUR
    for number in range(50):
        process = Process(job, f"pod-{number}", (), samples)
        for at in range(end - 12 * HOUR, end, MINUTE):
            process.scrape(at, up=number != 17 or at < began)
    return began


def _failover(job: str, end: int, samples: Samples) -> int:
    """For forty seconds no call of the store succeeds, until a replica is promoted."""
    began = end - 4 * HOUR

    def forecast(at: int, _: Flow) -> Weather:
        return Weather(store_fails=0.7 if at // MINUTE == began // MINUTE else 0.0)

    _live([Process(job, "a", (replace(CHECKOUT, rate=60),), samples, forecast=forecast)], end - 7 * HOUR, end)
    return began


def _silent_store(job: str, end: int, samples: Samples) -> int:
    """A request every two minutes; for three hours no call of the store succeeds."""
    began = end - 6 * HOUR

    def forecast(at: int, _: Flow) -> Weather:
        away = began <= at < began + 3 * HOUR
        return Weather(exactly=int(at % (2 * MINUTE) == 0), store_fails=1.0 if away else 0.0)

    _live(
        [Process(job, "a", (replace(REFUND, rate=0.5, failed=0.0),), samples, forecast=forecast)], end - 9 * HOUR, end
    )
    return began


def _hidden(job: str, end: int, samples: Samples) -> int:
    """One workflow has thousands of good runs an hour, another one in ten minutes, of which all fail."""
    began = end - 7 * HOUR

    def forecast(at: int, flow: Flow) -> Weather:
        if flow.name == "checkout":
            return Weather()
        return Weather(exactly=int(at % (10 * MINUTE) < MINUTE), failed=1.0 if at >= began else 0.0)

    rare = Flow("payout", 0.03, (Step("pay", 0.5),))
    flows = (replace(CHECKOUT, rate=100), rare)
    _live([Process(job, "a", flows, samples, forecast=forecast)], end - 12 * HOUR, end)
    return began


def _out_of_memory(job: str, end: int, samples: Samples) -> int:
    """One of two processes is killed every ten minutes; two of its runs are taken over each time."""
    began = end - 6 * HOUR
    flow = replace(REFUND, rate=2, failed=0.0)
    _live([Process(job, "well", (flow,), samples)], end - 7 * HOUR, end)
    for start in range(end - 7 * HOUR, end, 10 * MINUTE):
        process = Process(job, "killed", (flow,), samples)
        process.scrape(start, up=start < began)
        process.minute(start + MINUTE)
        if start > began:
            process.add(names.RUN_RECOVERIES, 2, workflow=flow.name, decision="forward")
        _live([process], start + 2 * MINUTE, start + 10 * MINUTE)
    return began


def _clock_behind(job: str, end: int, samples: Samples) -> int:
    """A host whose clock is an hour behind. Nothing else is wrong."""
    flow = replace(REFUND, rate=2, failed=0.0)
    _live([Process(job, "a", (flow,), samples, clock=-HOUR)], end - 54 * HOUR, end)
    return end - DAY


def _one_batch(job: str, end: int, samples: Samples) -> int:
    """Ten thousand runs in ten minutes, six days ago; the process stays for an hour, and no other run follows."""
    began = end - 6 * DAY
    flow = Flow("backfill", 0, (Step("convert", 0.2),))

    def forecast(at: int, _: Flow) -> Weather:
        return Weather(exactly=1000 if at < began + 10 * MINUTE else 0)

    _live([Process(job, "a", (flow,), samples, forecast=forecast)], began, began + HOUR)
    return began


def _renamed(job: str, end: int, samples: Samples) -> int:
    """A run is held; an hour later a new version names its workflow anew; two hours after that the run is released."""
    began = end - 8 * HOUR
    deploy, released = began + HOUR, began + 3 * HOUR
    old = Process(
        job, "a", (replace(REFUND, rate=1, failed=0.0),), samples, held=lambda at, _: {"held": int(at >= began)}
    )
    _live([old], end - 9 * HOUR, deploy)
    new = Process(job, "a", (replace(REFUND, name="refunds", rate=1, failed=0.0),), samples, version="1.5.0")
    new.scrape(deploy, up=False)
    for number, until in ((1, released), (0, end)):
        new.set(names.STORE_RUNS, number, workflow=names.UNKNOWN, status="held")
        _live([new], deploy + MINUTE if number else released, until)
    return began


STORIES: Final = (
    Story("quiet-shop", "few customers, none at night", _quiet_shop),
    Story(
        "nights",
        "nightly jobs: some fail, one is no longer started, one is well",
        _nights,
        (
            Expected("FlowcoreRunsFailing", "ticket", "export", 24 * 60, 24 * 60 + 30),
            Expected("FlowcoreRunsFailing", "ticket", "backup", 72 * 60, 72 * 60 + 30),
            Expected("FlowcoreSuccessOverdue", "ticket", "cleanup", 48 * 60, 48 * 60 + 60),
        ),
        days=8,
    ),
    Story(
        "shop",
        "a partner is away for twenty minutes",
        shop,
        (
            Expected("FlowcoreUndoneSurge", "page", "checkout", 5, 12),
            Expected("FlowcoreRetryStorm", "ticket", "checkout", 10, 20),
            Expected("FlowcoreRetryStorm", "ticket", "refund", 10, 20),
            Expected("FlowcoreRunsSlow", "ticket", "checkout", 5, 25),
            Expected("FlowcoreRunsSlow", "ticket", "refund", 5, 25),
        ),
    ),
    Story(
        "slow-burn",
        "two runs of a hundred fail all day",
        _slow_burn,
        (Expected("FlowcoreErrorBudgetBurn", "ticket", "checkout", 120, 18 * 60),),
    ),
    Story("rolling-deploy", "four processes are replaced one after the other", _rolling_deploy),
    Story(
        "crash-loop",
        "a run kills its processes until it is held",
        _crash_loop,
        (Expected("FlowcoreRunsHeld", "ticket", "checkout", 0, 2),),
    ),
    Story(
        "out-of-memory",
        "one of two processes is killed every ten minutes",
        _out_of_memory,
        (Expected("FlowcoreTakeoverSurge", "ticket", "refund", 120, 200),),
    ),
    Story("clock-behind", "a host whose clock is an hour behind", _clock_behind),
    Story("one-batch", "ten thousand runs, and then no more", _one_batch, days=8),
    Story(
        "renamed",
        "a new version names a workflow anew while one of its runs is held",
        _renamed,
        (
            Expected("FlowcoreRunsHeld", "ticket", "refund", 0, 2),
            Expected("FlowcoreRunsHeld", "ticket", "_unknown", 60, 63),
        ),
    ),
    Story("one-of-fifty", "one of fifty processes is down", _one_of_fifty),
    Story("failover", "the store is away for forty seconds", _failover),
    Story(
        "silent-store",
        "the store of a quiet service is away for three hours",
        _silent_store,
        (Expected("FlowcoreStoreErrors", "page", "", 5, 16),),
    ),
    Story(
        "hidden",
        "a busy workflow hides one that fails each time",
        _hidden,
        (
            Expected("FlowcoreRunsFailing", "ticket", "payout", 15, 45),
            Expected("FlowcoreErrorBudgetBurn", "page", "payout", 10, 300),
            Expected("FlowcoreErrorBudgetBurn", "ticket", "payout", 30, 300),
        ),
    ),
)
