"""What a panel's options say of looks: colours of values and of series, overrides, mappings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["BACKGROUND", "BORDER", "CANVAS", "FAINT", "GRID", "TEXT", "Look", "colour_of", "look", "mapped", "painted"]

Json = dict[str, Any]

CANVAS: Final = "#111217"
BACKGROUND: Final = "#181b1f"
BORDER: Final = "#25272d"
GRID: Final = "#2c2f36"
TEXT: Final = "#d5d6dd"
FAINT: Final = "#8e8e9a"

# Grafana's classic palette begins like this.
PALETTE: Final = (
    *("#7EB26D", "#EAB839", "#6ED0E0", "#EF843C", "#E24D42", "#1F78C1", "#BA43A9", "#705DA0", "#508642", "#CCA300"),
    *("#447EBC", "#C15C17", "#890F02", "#0A437C", "#6D1F62", "#584477", "#B7DBAB", "#F4D598", "#70DBED", "#F9BA8F"),
)


@dataclass(frozen=True)
class Look:
    """Of one series."""

    colour: str
    unit: str
    width: float
    dash: str
    right: bool
    """whether its axis is the one on the right"""


def look(panel: Json, name: str, index: int) -> Look:
    defaults, properties = panel["fieldConfig"]["defaults"], _overridden(panel, name)
    colour = properties.get("color", defaults.get("color", {})).get("fixedColor") or PALETTE[index % len(PALETTE)]
    custom = defaults.get("custom", {})
    style = properties.get("custom.lineStyle", {}).get("fill", "solid")
    return Look(
        colour,
        properties.get("unit", defaults["unit"]),
        properties.get("custom.lineWidth", custom.get("lineWidth", 1)),
        {"dash": "--", "dot": ":"}.get(style, "-"),
        properties.get("custom.axisPlacement") == "right",
    )


def painted(panel: Json, name: str) -> str | None:
    """The colour that an override gives a series."""
    colour: str | None = _overridden(panel, name).get("color", {}).get("fixedColor")
    return colour


def _overridden(panel: Json, name: str) -> Json:
    properties: Json = {}
    for override in panel["fieldConfig"]["overrides"]:
        if _matches(override["matcher"], name):
            properties |= {one["id"]: one["value"] for one in override["properties"]}
    return properties


def _matches(matcher: Json, name: str) -> bool:
    if matcher["id"] == "byName":
        return bool(matcher["options"] == name)
    return re.search(matcher["options"].strip("/"), name) is not None


def colour_of(value: float, thresholds: Json) -> str:
    """The colour of the last threshold that the value has reached."""
    colour = FAINT
    for step in thresholds["steps"]:
        if step["value"] is None or value >= step["value"]:
            colour = step["color"]
    return colour


def mapped(value: str, mappings: list[Json]) -> tuple[str, str] | None:
    """What is said instead of a value, and its colour."""
    for mapping in mappings:
        if value in mapping["options"]:
            said = mapping["options"][value]
            return said.get("text", value), said["color"]
    return None
