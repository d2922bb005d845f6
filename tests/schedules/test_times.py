"""When a schedule fires: against a walk over every minute, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import takewhile
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from flowcore import DefinitionError
from flowcore.schedule import Schedule

ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "America/Sao_Paulo", "UTC")
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
START, END = datetime(2017, 1, 1, tzinfo=UTC), datetime(2019, 1, 1, tzinfo=UTC)
"""two years in which São Paulo changed its clocks at midnight, and Lord Howe by half an hour"""


@dataclass(frozen=True)
class Cron:
    """An expression, and the same spelled out. `fixed`: its minutes and hours do not begin with a star."""

    text: str
    minutes: frozenset[int]
    hours: frozenset[int]
    fixed: bool
    day: Callable[[date], bool] = lambda day: True

    def matches(self, local: datetime) -> bool:
        return local.minute in self.minutes and local.hour in self.hours and self.day(local.date())


ANY_MINUTE, ANY_HOUR, QUARTERS = frozenset(range(60)), frozenset(range(24)), frozenset({0, 15, 30, 45})
CRONS = (
    Cron("30 2 * * *", frozenset({30}), frozenset({2}), fixed=True),
    Cron("0 0 * * *", frozenset({0}), frozenset({0}), fixed=True),
    Cron("0,15,45 0,2,23 * * *", frozenset({0, 15, 45}), frozenset({0, 2, 23}), fixed=True),
    Cron("5 1-3 * * 1-5", frozenset({5}), frozenset({1, 2, 3}), fixed=True, day=lambda day: day.weekday() < 5),
    Cron("10 12 L * *", frozenset({10}), frozenset({12}), fixed=True, day=lambda day: (day + DAY).day == 1),
    Cron("*/15 * * * *", QUARTERS, ANY_HOUR, fixed=False),
    Cron("*/15 0 * * *", QUARTERS, frozenset({0}), fixed=False),
    Cron("0 */6 * * *", frozenset({0}), frozenset({0, 6, 12, 18}), fixed=False),
    Cron("5 * * * *", frozenset({5}), ANY_HOUR, fixed=False),
    Cron("* 2 * * *", ANY_MINUTE, frozenset({2}), fixed=False),
)


def walked(crons: tuple[Cron, ...], zone: str, start: datetime, end: datetime) -> dict[Cron, list[datetime]]:
    """What fires, by looking at every minute: the local time of each, and those that are left out or come again."""
    found: dict[Cron, list[datetime]] = {cron: [] for cron in crons}
    rules = ZoneInfo(zone)
    moment = start
    before = latest = (start - MINUTE).astimezone(rules).replace(tzinfo=None)
    while moment <= end:
        local = moment.astimezone(rules).replace(tzinfo=None)
        left_out = (
            [before + MINUTE * n for n in range(1, (local - before) // MINUTE)] if local - before > MINUTE else []
        )
        for cron in crons:
            if cron.fixed:
                fires = (local > latest and cron.matches(local)) or any(map(cron.matches, left_out))
            else:
                fires = cron.matches(local)
            if fires:
                found[cron].append(moment)
        before, latest = local, max(latest, local)
        moment += MINUTE
    return found


def changes(zone: str, start: datetime, end: datetime) -> Iterator[datetime]:
    rules, moment = ZoneInfo(zone), start
    while moment < end:
        if moment.astimezone(rules).utcoffset() != (moment + DAY).astimezone(rules).utcoffset():
            yield moment
        moment += DAY


@pytest.mark.parametrize("zone", ZONES)
def test_each_cron_expression_fires_when_a_walk_over_the_minutes_says_so(zone: str, full: bool) -> None:
    windows = [(START, END)] if full else [(day - DAY, day + 3 * DAY) for day in changes(zone, START, END)]
    for start, end in windows or [(START, START + 40 * DAY)]:
        expected = walked(CRONS, zone, start, end)
        for cron in CRONS:
            schedule = Schedule.of("s", "w", cron=cron.text, timezone=zone)
            fires = list(takewhile(lambda fire: fire <= end, schedule.after(start - MINUTE)))  # noqa: B023
            if cron.fixed:  # the walk does not know which local times came before it began
                expected[cron] = [fire for fire in expected[cron] if fire > start + DAY / 2]
                fires = [fire for fire in fires if fire > start + DAY / 2]
            assert fires == expected[cron], (zone, cron.text)


@pytest.mark.parametrize("zone", ZONES)
def test_looking_back_finds_the_same_fires_from_every_moment(zone: str) -> None:
    for cron in CRONS:
        schedule = Schedule.of("s", "w", cron=cron.text, timezone=zone)
        for day in [*changes(zone, START, START + 365 * DAY), START + 28 * DAY]:
            start, end = day - DAY, day + 2 * DAY
            forward = list(takewhile(lambda fire: fire <= end, schedule.after(start)))  # noqa: B023
            assert list(schedule.before(end, start)) == forward[::-1]
            for moment in (day + timedelta(hours=hour, minutes=7) for hour in range(0, 48, 5)):
                following = [fire for fire in forward if fire > moment]
                assert not following or next(schedule.after(moment)) == following[0]


def test_a_fixed_time_fires_once_on_the_days_on_which_the_clocks_change() -> None:
    schedule = Schedule.of("s", "w", cron="30 2 * * *", timezone="Europe/Berlin")
    spring = schedule.next_fires(datetime(2026, 3, 28, 12, tzinfo=UTC), 2)
    autumn = schedule.next_fires(datetime(2026, 10, 24, 12, tzinfo=UTC), 2)
    assert spring == (datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 3, 30, 0, 30, tzinfo=UTC))
    assert autumn == (datetime(2026, 10, 25, 0, 30, tzinfo=UTC), datetime(2026, 10, 26, 1, 30, tzinfo=UTC))


def test_a_period_is_counted_alike_by_every_instance() -> None:
    schedule = Schedule.of("s", "w", every=timedelta(hours=6))
    assert schedule.next_fires(datetime(2026, 1, 1, 5, 59, 59, tzinfo=UTC), 2) == (
        datetime(2026, 1, 1, 6, tzinfo=UTC),
        datetime(2026, 1, 1, 12, tzinfo=UTC),
    )
    assert next(schedule.after(datetime(2026, 1, 1, 6, tzinfo=UTC))) == datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert next(Schedule.of("s", "w", every=90).after(datetime(1970, 1, 1, tzinfo=UTC))) == datetime(
        1970, 1, 1, 0, 1, 30, tzinfo=UTC
    )


def test_jitter_is_the_same_for_all_and_never_reaches_the_next_fire() -> None:
    one, same, other = (Schedule.of(name, "w", cron="* * * * *", jitter=3600) for name in ("a", "a", "b"))
    fires = one.next_fires(START, 50)
    delays = [(one.due(fire) - fire).total_seconds() for fire in fires]
    assert delays == [(same.due(fire) - fire).total_seconds() for fire in fires]
    assert delays != [(other.due(fire) - fire).total_seconds() for fire in fires]
    assert all(0 <= delay < 60 for delay in delays)
    assert max(delays) - min(delays) > 30


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "neither": ({}, "takes either cron= or every=, but got neither"),
    "both": ({"cron": "* * * * *", "every": 60}, "takes either cron= or every=, but got both"),
    "four fields": ({"cron": "* * * *"}, "is not a valid cron expression"),
    "a bad minute": ({"cron": "61 * * * *"}, "Bad minute"),
    "no text": ({"cron": 5}, "is not a valid cron expression: it must be a string. Use"),
    "an odd step": ({"cron": "* * * * MON#1/2"}, "is not a valid cron expression"),
    "31 February": ({"cron": "0 0 31 2 *"}, "cron"),
    "never": ({"cron": "* * */20 * 1L"}, "never fires"),
    "an unknown zone": ({"cron": "* * * * *", "timezone": "Europe/Atlantis"}, "timezone='Europe/Atlantis' is unknown"),
    "a zone of letters": ({"cron": "* * * * *", "timezone": "../etc/passwd"}, "is unknown"),
    "no zone": ({"cron": "* * * * *", "timezone": 3}, "timezone= must be a name"),
    "a zone for a period": ({"every": 60, "timezone": "UTC"}, "timezone= is only for cron="),
    "no time": ({"every": 0}, "at least one second"),
    "for ever": ({"every": float("inf")}, "at most 36,500 days, not inf"),
    "longer than datetime knows": ({"every": 1e300}, "at most 36,500 days, not 1e"),
    "the longest timedelta": ({"every": timedelta.max}, "at most 36,500 days"),
    "a period past the year 9999": ({"every": timedelta(days=365 * 9000)}, "at most 36,500 days"),
    "negative": ({"every": -1}, "every="),
    "missed": ({"every": 60, "missed": "some"}, "missed= must be one of skip, latest, all"),
    "overlap": ({"every": 60, "overlap": True}, "overlap= must be one of skip, queue, cancel"),
    "unhashable": ({"every": 60, "overlap": []}, "overlap= must be one of"),
    "jitter": ({"every": 60, "jitter": -1}, "jitter="),
    "infinite jitter": ({"every": 60, "jitter": float("inf")}, "must be finite"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_describes_no_schedule_is_refused(what: str) -> None:
    options, message = REFUSED[what]
    with pytest.raises(DefinitionError, match=message.replace("(", r"\(")):
        Schedule.of("s", "w", **options)


@pytest.mark.parametrize("name", ["", None, "a\nb", 5])
def test_a_name_that_is_none_is_refused(name: Any) -> None:
    with pytest.raises(DefinitionError, match="the name of a schedule"):
        Schedule.of(name, "w", every=60)


def test_what_is_recorded_of_a_schedule_makes_the_same() -> None:
    for options in ({"cron": "0 3 * * 1", "timezone": "Asia/Kathmandu", "jitter": 5}, {"every": 90, "missed": "all"}):
        schedule = Schedule.of("s", "w", **options)
        assert Schedule.from_record(schedule.to_record()) == schedule


def test_an_expression_with_seconds_fires_whenever_it_matches() -> None:
    schedule = Schedule.of("s", "w", cron="*/20 30 2 * * *", timezone="Europe/Berlin")
    autumn = schedule.next_fires(datetime(2026, 10, 24, 12, tzinfo=UTC), 6)
    assert [fire.hour for fire in autumn] == [0, 0, 0, 1, 1, 1]


WITHOUT = """
import sys
sys.modules["cronsim"] = None
from flowcore import Engine, Workflow
wf = Workflow("w")
engine = Engine()
try:
    engine.schedule(wf, cron="* * * * *")
except ImportError as error:
    print(error)
engine.schedule(wf, every=3600)
engine.close()
"""

WITHOUT_ZONES = """
import sys, zoneinfo
zoneinfo.reset_tzpath([])
sys.modules["tzdata"] = None
from flowcore.schedule import Schedule
Schedule.of("s", "w", cron="0 0 * * *")
try:
    Schedule.of("s", "w", cron="0 0 * * *", timezone="Europe/Berlin")
except Exception as error:
    print(type(error).__name__, error)
"""


def test_without_cronsim_the_error_names_the_extra_and_a_period_works() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "cron= needs cronsim: pip install 'flowcore[schedule]'"


def test_without_a_time_zone_database_the_error_names_tzdata_and_utc_works() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_ZONES], capture_output=True, text=True, timeout=60, check=True)
    assert "DefinitionError timezone='Europe/Berlin' is unknown: this system has no time zone database." in done.stdout
    assert "pip install tzdata" in done.stdout


def test_no_part_of_it_is_imported_by_who_has_no_schedule() -> None:
    code = (
        "import sys, flowcore; print([m for m in sys.modules if 'zoneinfo' in m or 'cronsim' in m or 'schedul' in m])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
