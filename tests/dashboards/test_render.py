"""render.py: numbers and queries as Grafana writes them, and a sentence where Prometheus is unreachable.
(test_live.py draws the dashboards with real data.)

What needs Matplotlib is imported by the tests that use it, because every process collects all files."""

import math
from pathlib import Path

import pytest
from drawing.asking import Asking, PrometheusError, Series, filled_in
from drawing.looks import colour_of, look, mapped, painted
from drawing.units import written

from flowcore_otel.dashboards import colours

from .conftest import DASHBOARDS, board
from .prometheus import free_port


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "s", "0 s"),
        (0.0000042, "s", "4.2 µs"),
        (0.0123, "s", "12.3 ms"),
        (0.25, "s", "250 ms"),
        (59.9, "s", "59.9 s"),
        (90, "s", "1.5 min"),
        (7200, "s", "2 hour"),
        (200000, "s", "2.31 day"),
        (0.9951, "percentunit", "99.5%"),
        (1, "percentunit", "100%"),
        (0, "percentunit", "0%"),
        (12345, "short", "12.3 K"),
        (12345, "none", "12345"),
        (4.5, "ops", "4.5 ops/s"),
        (0.012, "reqps", "0.012 req/s"),
        (math.inf, "s", "∞"),
        (math.nan, "s", "-"),
    ],
)
def test_numbers_are_written_for_people(value: float, unit: str, text: str) -> None:
    assert written(value, unit) == text


def test_decimals_can_be_asked_for() -> None:
    assert written(0.99512, "percentunit", 2) == "99.51%"


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        ("rate(x[$__rate_interval])", "rate(x[60s])"),
        ("increase(x[$__range])", "increase(x[3600s])"),
        ("x offset $__interval", "x offset 20s"),
        ('x{job=~"$job", workflow=~"${workflow}"}', 'x{job=~".+", workflow=~"checkout"}'),
    ],
)
def test_variables_are_filled_in_as_grafana_does(expr: str, text: str) -> None:
    assert filled_in(expr, seconds=3600, step=20, scrape=15, chosen={"workflow": "checkout"}) == text


def test_the_rate_interval_is_a_step_and_a_scrape_where_that_is_longer() -> None:
    assert filled_in("$__rate_interval", seconds=86400, step=300, scrape=15, chosen={}) == "315s"


def test_a_value_has_the_colour_of_the_threshold_that_it_has_reached() -> None:
    thresholds = {"steps": [{"color": "red", "value": None}, {"color": "green", "value": 0.995}]}
    assert [colour_of(value, thresholds) for value in (0, 0.994, 0.995, 1)] == ["red", "red", "green", "green"]


def test_overrides_by_name_and_by_pattern_change_a_series() -> None:
    (panel,) = [one for one in board("workflow")["panels"] if one["title"] == "p50, p95 and p99 of runs"]
    assert look(panel, "p50", 0).dash == "--"
    assert look(panel, "p95", 0).dash == "-"
    (panel,) = [one for one in board("overview")["panels"] if one["title"] == "Runs that failed or were undone"]
    assert look(panel, "compensated", 0).colour == "#B877D9"


@pytest.mark.parametrize(
    ("most", "ticks"),
    [(100, [0, 30, 60, 90]), (200, [0, 60, 120, 180]), (7000, [0, 1800, 3600, 5400]), (4, [0, 1, 2, 3, 4])],
)
def test_ticks_of_times_are_full_minutes_and_hours(most: float, ticks: list[float]) -> None:
    from drawing.time_series import TimeLocator

    assert [tick for tick in TimeLocator(4).tick_values(0, most) if tick <= most] == ticks


def test_ticks_of_logarithmic_axes_are_round_too() -> None:
    from drawing.time_series import POWERS_OF_TIME

    assert [written(tick, "s") for tick in POWERS_OF_TIME[6:14]] == (
        ["1 ms", "10 ms", "100 ms", "1 s", "10 s", "1 min", "10 min", "1 hour"]
    )


def test_ticks_of_counts_are_whole_numbers() -> None:
    from drawing.frame import Frame
    from drawing.time_series import draw_lines
    from matplotlib.figure import Figure

    (panel,) = [one for one in board("overview")["panels"] if one["title"].startswith("Workers and what")]
    figure = Figure(figsize=(6, 3))
    found = [Series({}, [(0.0, 0.0), (60.0, 2.0)], "A", "workers busy")]
    draw_lines(Frame(figure, 0, 0, 600, 300), panel, found, Asking("http://nowhere.test", 0, 60))
    ticks = [tick for tick in figure.axes[0].get_yticks() if tick <= 2]
    assert ticks == [0, 1, 2]


def test_an_override_paints_the_number_that_it_names() -> None:
    (panel,) = [one for one in board("workflow")["panels"] if one["title"] == "Last success"]
    assert painted(panel, "overdue") == colours.FAILED
    assert painted(panel, "value") is None


def test_a_mapped_value_says_something_else() -> None:
    mappings = [{"type": "value", "options": {"0": {"text": "none", "color": "green", "index": 0}}}]
    assert mapped("0", mappings) == ("none", "green")
    assert mapped("1", mappings) is None


def test_without_a_prometheus_it_says_so_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import render

    url = f"http://127.0.0.1:{free_port()}"
    out = tmp_path / "overview.png"
    monkeypatch.setattr("sys.argv", ["render.py", str(DASHBOARDS / "overview.json"), f"--prometheus={url}", f"-o{out}"])
    assert render.main() == 1
    assert capsys.readouterr().err.startswith(f"Prometheus at {url} is unreachable: ")
    assert not out.exists()


def test_a_time_that_is_none_is_refused_with_examples(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import render

    monkeypatch.setattr("sys.argv", ["render.py", "overview.json", "-o", "x.png", "--last=hour"])
    with pytest.raises(SystemExit):
        render.main()
    assert "'hour' is not a time: write 90s, 15m, 1h or 7d" in capsys.readouterr().err


def test_an_unreachable_prometheus_is_an_error_of_its_own() -> None:
    asking = Asking(f"http://127.0.0.1:{free_port()}", 0, 60)
    with pytest.raises(PrometheusError, match="is unreachable"):
        asking.series({"expr": "up", "instant": True, "refId": "A", "legendFormat": ""})


def test_the_committed_pictures_are_there_and_of_moderate_size() -> None:
    for name in ("overview", "workflow", "store"):
        assert 10_000 < (DASHBOARDS / f"{name}.png").stat().st_size < 300_000
