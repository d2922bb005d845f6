"""Hostile text must not leave the process as it came."""

import asyncio
import concurrent.futures

import pytest
from hypothesis import given, strategies as st

from flowcore import StepCancelled, StepTimeout
from flowcore_otel.text import error_type, fit, hashed, message, stacktrace, title


class Hostile(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


@given(st.text(st.characters(), max_size=300), st.integers(20, 200))
def test_fit_is_always_encodable_and_short_enough(text: str, limit: int) -> None:
    fitting = fit(text, limit)
    fitting.encode("utf-8")
    assert len(fitting) <= limit


def test_fit_leaves_ordinary_text_alone() -> None:
    assert fit("book seat · ✈") == "book seat · ✈"


def test_fit_escapes_a_lone_surrogate() -> None:
    assert fit("a\ud800b") == "a\\ud800b"


def test_clipped_text_says_so_and_stays_distinct() -> None:
    one, other = fit("x" * 1_000_000 + "1"), fit("x" * 1_000_000 + "2")
    assert len(one) == len(other) == 128
    assert "…" in one
    assert one != other


def test_a_title_of_a_huge_target_is_short() -> None:
    assert len(title("step", "x" * 1_000_000)) == len("step ") + 128


def test_a_message_survives_a_str_that_raises() -> None:
    assert "RuntimeError" in message(Hostile())


def test_an_error_without_words_is_called_by_its_class() -> None:
    assert message(ValueError()) == "ValueError"


def test_a_stacktrace_survives_a_str_that_raises_and_deep_recursion() -> None:
    def dive(depth: int) -> None:
        if depth:
            dive_again(depth)
        raise Hostile

    def dive_again(depth: int) -> None:
        dive(depth - 1)

    with pytest.raises(Hostile) as caught:
        dive(200)
    text = stacktrace(caught.value)
    assert len(text) <= 16_384
    assert "Hostile" in text


def test_error_types_are_few() -> None:
    assert error_type(ValueError("x")) == "ValueError"
    assert error_type(Hostile()).endswith("test_text.Hostile")
    assert error_type(StepTimeout()) == "timeout"
    assert error_type(TimeoutError()) == "TimeoutError"
    assert error_type(StepCancelled()) == "cancelled"
    assert error_type(asyncio.CancelledError()) == "cancelled"
    assert error_type(concurrent.futures.CancelledError()) == "cancelled"
    assert error_type(KeyboardInterrupt(), "cancelled") == "cancelled"
    assert error_type(None) == "_OTHER"


def test_a_key_is_hashed_whatever_it_holds() -> None:
    assert hashed("trip-T-1") == hashed("trip-T-1")
    assert len(hashed("\ud800")) == 16
