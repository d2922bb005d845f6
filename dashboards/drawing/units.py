"""Numbers as Grafana writes them, for the units that our dashboards use."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["written"]

_PER_SECOND: Final = {"ops": "ops/s", "reqps": "req/s"}
_TIMES: Final = (
    (1e-6, 1e-9, "ns"),
    (1e-3, 1e-6, "µs"),
    (1.0, 1e-3, "ms"),
    (60.0, 1.0, "s"),
    (3600.0, 60.0, "min"),
    (86400.0, 3600.0, "hour"),
)


def written(value: float, unit: str, decimals: int | None = None) -> str:
    """`0.0042` in seconds is `4.2 ms`."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "-"
    if unit == "percentunit":
        return f"{_number(100 * value, decimals)}%"
    if unit == "s":
        return _time(value, decimals)
    if unit in _PER_SECOND:
        return f"{_short(value, decimals)} {_PER_SECOND[unit]}"
    return _short(value, decimals) if unit == "short" else _number(value, decimals)


def _time(value: float, decimals: int | None) -> str:
    if value == 0:
        return "0 s"
    for below, one, name in _TIMES:
        if abs(value) < below:
            return f"{_number(value / one, decimals)} {name}"
    return f"{_number(value / 86400, decimals)} day"


def _short(value: float, decimals: int | None) -> str:
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= size:
            return f"{_number(value / size, decimals)} {name}"
    return _number(value, decimals)


def _number(value: float, decimals: int | None) -> str:
    """Three digits that say something, unless told otherwise."""
    if decimals is not None:
        return f"{value:.{decimals}f}"
    if value == 0:
        return "0"
    places = max(0, 2 - math.floor(math.log10(abs(value)))) if abs(value) < 100 else 0
    text = f"{value:.{min(places, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
