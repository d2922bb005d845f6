"""Has a Prometheus work out the shipped rules over days that are past, as if it had done so then."""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from .fleet import Labels, Samples, openmetrics

__all__ = ["Alert", "Archive", "Query", "firing"]

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
Json = dict[str, Any]
Range = tuple[int, int, int]
"""first and last second, and the step"""
Alert = tuple[str, str, Labels]
"""name, severity and labels"""


class Archive:
    """A folder of past samples, and how to start a Prometheus on it. `serve`: starts one, gives its address."""

    def __init__(self, folder: Path, promtool: str, serve: Callable[[Path], Any]) -> None:
        self.folder = folder
        self._promtool = promtool
        self._serve = serve

    def add(self, samples: Samples) -> None:
        if not samples:
            return
        text = self.folder / "samples.om"
        self.folder.mkdir(parents=True, exist_ok=True)
        with text.open("w", encoding="utf-8") as file:
            file.writelines(openmetrics(samples))
        # promtool reads the file once for each block: the fewer the better.
        command = [self._promtool, "tsdb", "create-blocks-from", "--max-block-duration=500h", "openmetrics", "-q"]
        command += [str(text), str(self.folder / "data")]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        text.unlink()

    @contextmanager
    def served(self) -> Iterator[Query]:
        with self._serve(self.folder / "data") as url:
            yield Query(url)

    def record(self, groups: Iterable[Json], ranges: Sequence[Range]) -> None:
        """Work the recording rules out and add what they give: those that build on others after these.

        A rule that takes up what it has recorded before is worked out again and again, each time with what it gave last, until it
        gives the same once more: each round looks further back.
        """
        rules = [rule for group in groups for rule in group["rules"]]
        while rules:
            names = {rule["record"] for rule in rules}
            level = [rule for rule in rules if not any(name in rule["expr"] for name in names - {rule["record"]})]
            rules = [rule for rule in rules if rule not in level]
            found = self._found(level, ranges, "round0")
            again = [rule for rule in level if rule["record"] in rule["expr"]]
            remembered = {key: points for key, points in found.items() if key[0] in {rule["record"] for rule in again}}
            before: Samples = {}
            rounds = itertools.count(1)
            while remembered != before:
                number = f"round{next(rounds)}"
                self.add({(f"{name}:{number}", labels): points for (name, labels), points in remembered.items()})
                before, remembered = remembered, self._found(again, ranges, number)
            self.add(found | remembered)

    def _found(self, rules: Iterable[Json], ranges: Sequence[Range], last: str) -> Samples:
        """What rules give. `last`: the round whose series take the place of a rule's own."""
        with self.served() as query:
            return {
                (rule["record"], labels): points
                for rule in rules
                for labels, points in query.ranges(
                    rule["expr"].replace(rule["record"], f"{rule['record']}:{last}"), ranges
                )
            }


class Query:
    """The HTTP API of a Prometheus."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ranges(self, expr: str, ranges: Iterable[Range]) -> list[tuple[Labels, list[tuple[int, float]]]]:
        """Each series of an expression, at the moments of all ranges."""
        found: dict[Labels, dict[int, float]] = {}
        for start, end, step in ranges:
            for series in self._ask(expr, start, end, step):
                labels = tuple(sorted((name, value) for name, value in series["metric"].items() if name != "__name__"))
                points = {int(at): float(value) for at, value in series["values"]}
                found.setdefault(labels, {}).update(points)
        return [
            (labels, [(at, value) for at, value in sorted(points.items()) if not math.isnan(value)])
            for labels, points in found.items()
        ]

    def _ask(self, expr: str, start: int, end: int, step: int) -> list[Json]:
        body = urllib.parse.urlencode({"query": expr, "start": start, "end": end, "step": step}).encode()
        with urllib.request.urlopen(f"{self.url}/api/v1/query_range", body, timeout=120) as response:
            result: list[Json] = json.load(response)["data"]["result"]
            return result


def seconds(duration: str) -> int:
    return sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)([smhd])", duration))


def firing(query: Query, groups: Iterable[Json], span: Range) -> dict[Alert, list[int]]:
    """Each alert that fires in the span, and the moments at which it begins to: pending for its `for` first."""
    found: dict[Alert, list[int]] = {}
    for rule in (rule for group in groups for rule in group["rules"]):
        wait = seconds(rule.get("for", "0s"))
        for labels, points in query.ranges(rule["expr"], [span]):
            began: int | None = None
            fires, last = False, -math.inf
            for at, _ in points:
                if at - last > span[2]:
                    began, fires = at, False
                last = at
                if not fires and began is not None and at - began >= wait:
                    fires = True
                    found.setdefault((rule["alert"], rule["labels"]["severity"], labels), []).append(at)
    return found
