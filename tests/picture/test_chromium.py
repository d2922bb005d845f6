"""The page of a run in a real Chromium, opened from disk: light, dark, on paper, and for a screen reader."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator

import pytest

from flowcore.picture import Bar, Kind, Row, Timeline, page
from tests.picture.chromium import Chromium, program

STEPS = 40


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    found = program()
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("Chromium is missing: .ci/servers installs it where it may")
        pytest.skip("Chromium is not installed")
    folder = tmp_path_factory.mktemp("chromium")
    kinds = list(Kind)
    rows = [
        Row(
            f"step {n}",
            "success",
            (f"step {n - 1}",) if n else (),
            [Bar(kinds[n % len(kinds)], n, n + 1.0)],
            1,
        )
        for n in range(STEPS)
    ]
    timeline = Timeline("checkout", "0" * 32, "compensated", 1_700_000_000.0, float(STEPS), rows, [(7.0, "host-2")])
    (folder / "run.html").write_text(page(timeline, "the story"), encoding="utf-8")
    with Chromium(found, folder / "profile") as chromium:
        chromium.open((folder / "run.html").as_uri())
        yield chromium


def test_the_page_opens_from_disk_without_a_complaint(browser: Chromium) -> None:
    assert browser.value("document.title") == "checkout: compensated"
    assert browser.console == []
    assert browser.value("performance.getEntriesByType('resource').length") == 0


def test_a_screen_reader_finds_headings_the_picture_and_the_table(browser: Chromium) -> None:
    nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
    found = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    assert ("heading", "checkout compensated") in found
    assert next(name for role, name in found if role == "image").startswith("It took 40 s")
    assert sum(role == "row" for role, _ in found) == STEPS + 1
    assert ("region", "Waterfall") in found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_ink_and_ground_differ_enough_to_be_read(browser: Chromium, scheme: str) -> None:
    browser.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def light(what: str) -> float:
        """The relative luminance of a colour, as WCAG 2 defines it."""
        text = browser.value(
            f"getComputedStyle({what}).getPropertyValue('{'background-color' if 'body' in what else 'color'}')"
        )
        parts = [int(part) / 255 for part in text[text.index("(") + 1 : -1].split(",")[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    ground = light("document.body")
    for what in ("h1", "p.soft", ".outcome", "th", "td"):
        ink = light(f"document.querySelector('{what}')")
        contrast = (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05)
        assert contrast >= 4.5, (scheme, what, contrast)
    assert (ground > 0.5) == (scheme == "light")


def test_it_prints_and_fits_a_phone(browser: Chromium) -> None:
    printed = base64.b64decode(browser.send("Page.printToPDF")["data"])
    assert printed.startswith(b"%PDF")
    browser.send("Emulation.setDeviceMetricsOverride", width=380, height=700, deviceScaleFactor=1, mobile=True)
    assert browser.value("document.documentElement.scrollWidth") <= 380, (
        "only the waterfall and the table scroll sideways"
    )
    browser.send("Emulation.clearDeviceMetricsOverride")


def test_the_keyboard_reaches_what_scrolls(browser: Chromium) -> None:
    assert browser.value("document.querySelectorAll('.scroll[tabindex=\"0\"]').length") == 2


def test_a_screenshot_has_the_colours_of_what_happened(browser: Chromium) -> None:
    shot = base64.b64decode(browser.send("Page.captureScreenshot", format="png")["data"])
    assert shot.startswith(b"\x89PNG")
    assert (
        browser.value("new Set([...document.querySelectorAll('svg rect')].map(r => getComputedStyle(r).fill)).size")
        >= 5
    )
