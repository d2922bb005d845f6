"""The documents say what the catalogue says."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from flowcore_otel import names

SCRIPT = Path(__file__).parents[2] / "dashboards" / "catalogue.py"


@pytest.fixture(scope="module")
def catalogue() -> Any:
    spec = importlib.util.spec_from_file_location("catalogue", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_written_tables_are_current(catalogue: Any) -> None:
    # If this fails: python dashboards/catalogue.py
    for document, tables in catalogue.DOCUMENTS.items():
        text = document.read_text(encoding="utf-8")
        assert catalogue.rewritten(text, tables()) == text


def test_a_document_without_marks_is_refused(catalogue: Any) -> None:
    first, last = catalogue.MARKS
    assert "stale" not in catalogue.rewritten(f"a\n{first}\nstale\n{last}\nb", "new")
    for text in ("none", first, f"{last} {first}"):
        with pytest.raises(ValueError, match="lacks the line <!-- catalogue -->"):
            catalogue.rewritten(text, "new")


def test_they_have_all_there_is_and_each_row_its_columns(catalogue: Any) -> None:
    for metric in names.METRICS:
        assert f"`{metric.prometheus}`" in catalogue.whole()
    text = catalogue.whole()
    listed = [*names.ATTRIBUTES, *names.LOG_EVENTS, *names.LABELS, *(f"{action} {{…}}" for action in names.SPANS)]
    listed += [name for metric in names.METRICS for name in (metric.name, metric.prometheus)]
    assert [name for name in listed if f"`{name}`" not in text] == []
    for block in text.split("\n\n"):
        columns = {line.replace("\\|", "").count("|") for line in block.splitlines() if line.startswith("|")}
        assert len(columns) <= 1
