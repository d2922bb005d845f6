"""Tests of the contents of records: values of every kind, keys and names of any shape, and errors."""
# ruff: noqa: S101, RUF001 - these are tests; and keys that look alike are the point of some

from __future__ import annotations

import datetime as dt
import math
import pprint
import threading
import unicodedata
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import pytest

from ...errors import FlowcoreError, NotSerializable, RunFailed
from ...status import Status
from ...stores.base import Claim, Claimed, Finished
from .model import snapshot
from .rules import broken
from .suite import Suite, done, wrote

__all__ = ["ContentRules"]

VALUES: Final[dict[str, Any]] = {
    "none": None,
    "booleans": [True, False, 0, 1],
    "whole numbers": [0, -1, 2**31, 2**53 - 1, 2**53 + 1, -(2**63), 2**64, 10**40],
    "fractions": [0.1, -2.5, 1e-300, 1.7976931348623157e308, 3.0, 1e22, 123456789.12345679],
    "empty": [[], {}, "", [[]], [{}], {"": {}}],
    "nested": {"a": [{"b": [{"c": {"d": [1, [2, [3]]]}}]}]},
    "deep": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[["thirty"]]]]]]]]]]]]]]]]]]]]]]]]]]]]]],
    "texts": ["", " ", "a\nb\r\n\t", "null", "{}", '"', "\\", "\\u0000", "'; DROP TABLE runs; --", "%s", "${x}"],
    "unicode": [
        "\N{PILE OF POO}",
        "žluťoučký kůň",
        "日本語",
        "\u202e\u200b\ufeff\ufffe",
        "e\u0301é",
        "\x7f\x80\x85\u2028",
    ],
    "NUL": "a\x00b\x00",
    "keys": {" ": 1, "a.b": 2, "\n": 3, "é": 4, "\x00": 5, "__proto__": 6, "1": 7},
    "long": "x" * 200_000,
    "many": {str(number): number for number in range(1000)},
    "sequences": [(), (1, ("a",)), [(2,)], set(), {1, 2}, frozenset({"a"}), b"", b"\x00\xff"],
    "times": [
        dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.timezone(dt.timedelta(hours=2), "EET")),
        dt.datetime(2026, 10, 25, 2, 30, fold=1),  # noqa: DTZ001 - naive ones are kept, too
        *(dt.date(2026, 1, 2), dt.time(3, 4, 5, 6, tzinfo=dt.UTC), dt.timedelta(days=-1, microseconds=1)),
    ],
    "exact numbers": [Decimal("1.10"), Decimal("-0E+3"), Decimal("Infinity"), -0.0, math.inf, 10**700, UUID(int=7)],
    "keys that are not texts": {1: "a", "1": "b", (2, 3): "c", None: "d", Decimal("1.5"): "e"},
    "its own tags": [{"$": "tuple", "v": [1]}, {"$": 1}, {"a": {"$": "dict"}}],
}

HOSTILE: Final[dict[str, str]] = {
    "a space": " ",
    "spaces around": "  a  ",
    "NUL": "a\x00b",
    "a newline": "a\nb\r\n",
    "braces": "{}",
    "a hash tag": "{a}b",
    "a closing brace first": "}a{",
    "a glob": "*?[a-z]",
    "quotes": "'\"`\\",
    "a path": "../../etc/passwd",
    "SQL": "'; DROP TABLE runs; --",
    "a colon": "a:b:c",
    "letters of all kinds": "žluťoučký \N{PILE OF POO} 日本語 \u202e",
    "controls": "".join(map(chr, range(1, 32))),
    "a megabyte": "k" * 1_000_000,
    "a megabyte of others": "é" * 500_000,
    "half of a pair": "a\ud800b",
    "the other half": "\udfff",
}

ALIKE: Final = (
    *("a", "A", "a ", " a", "a\n", "a\x00", "\x00a", "a\u200b", "а"),
    *(unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é"), "ｅ", "e", "{a}", "a:", "%61"),
    *("b" * 100_000 + "1", "b" * 100_000 + "2"),
)


class ContentRules(Suite):
    """The tests that contents come back as they were, or are refused with an error that names the culprit."""

    # -- values --------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("kind", VALUES)
    def test_json_values_come_back_as_they_were(self, kind: str) -> None:
        value = VALUES[kind]
        owner = self.begin(values={"initial": value})
        owner.saves({"a": done(value)}, {"written": wrote(value)})
        owner.ends(Status.SUCCESS, {"b": done(value)}, {"late": wrote(value)})
        answer = self.other.claim(self.request())
        assert isinstance(answer, Finished), broken("claim-success", answer)
        record = answer.record
        for where, seen in (
            *((f"the value of {key!r}", record.values.get(key, "nothing")) for key in ("initial", "written", "late")),
            *((f"the result of {step!r}", record.results.get(step, "nothing")) for step in ("a", "b")),
        ):
            assert _text(seen) == _text(value), broken(
                "values-round-trip", f"{where} is {seen!r:.500}, not {value!r:.500}"
            )

    @pytest.mark.parametrize("where", ["a result", "a write", "an initial value", "a result at the end"])
    def test_a_value_that_cannot_be_kept_is_refused_by_name(self, where: str) -> None:
        if not self.store.durable:
            pytest.skip("a store in memory keeps any object")
        value = {"inside": threading.Lock()}
        if where == "an initial value":
            self._refused(self.store.claim, self.request(values={"culprit": value}))
            assert self.store.find(self.key) is None, broken("not-serializable", "a record was begun nevertheless")
            return
        owner = self.begin()
        with self.unchanged("not-serializable"):
            match where:
                case "a result":
                    self._refused(self.store.checkpoint, owner.says({"b": done(), "culprit": done(value)}))
                case "a write":
                    self._refused(self.store.checkpoint, owner.says({"b": done()}, {"culprit": wrote(value)}))
                case _:
                    self._refused(self.store.finish, owner.ending(Status.SUCCESS, {"culprit": done(value)}))
        owner.ends(Status.FAILURE)

    def _refused(self, verb: Any, argument: Any) -> None:
        with self.refuses("not-serializable", "it", NotSerializable) as refusal:
            verb(argument)
        assert "culprit" in str(refusal.error), broken(
            "not-serializable", f"the error does not name the value: {refusal.error}"
        )

    # -- errors --------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("status", [Status.FAILURE, Status.INCOMPLETE, Status.COMPENSATION_FAILED])
    def test_the_error_of_a_run_comes_back_at_least_in_words(self, status: Status) -> None:
        owner, error = self.begin(), ConnectionError("the bank is closed: žluťoučký \N{PILE OF POO}\n\x00")
        owner.ends(status, held=status == Status.COMPENSATION_FAILED, failed_step="pay", error=error)
        self._tells_of(error, owner.run_id)

    def test_the_error_of_a_run_that_is_being_undone_comes_back_too(self) -> None:
        owner, error = self.begin(), LookupError("no seat")
        owner.saves(undoing=True, failed_step="pay", error=error)
        self._tells_of(error, owner.run_id)

    def _tells_of(self, error: BaseException, run_id: str) -> None:
        record = self.record()
        found = record.error
        if found is error:
            return
        assert isinstance(found, RunFailed), broken("errors", repr(found))
        seen = (found.run, found.step, found.error_type, found.message)
        assert seen == (run_id, "pay", type(error).__name__, str(error)), broken("errors", seen)
        assert record.failed_step == "pay", broken("finish", record.failed_step)

    def test_an_error_that_stands_for_another_comes_back_unchanged(self) -> None:
        owner = self.begin()
        failed = RunFailed(
            run=owner.run_id, step="pay", error_type="CardError", error_message="declined", traceback_text="…"
        )
        owner.ends(Status.INCOMPLETE, failed_step="pay", error=failed)
        assert snapshot(self.record())["error"] == ("CardError", "declined"), broken("errors", self.record().error)

    def test_an_error_that_cannot_be_printed_does_no_harm(self) -> None:
        class Hostile(Exception):
            def __str__(self) -> str:
                raise TypeError("no words")

        owner = self.begin()
        owner.ends(Status.FAILURE, failed_step="pay", error=Hostile())
        assert self.record().error is not None, broken("errors", "the error is lost")

    # -- names ---------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("kind", HOSTILE)
    def test_any_key_is_taken_literally_or_refused(self, kind: str) -> None:
        key = HOSTILE[kind] + self.key
        claim = self.request(key)
        try:
            answer = self.store.claim(claim)
        except FlowcoreError:
            return
        assert isinstance(answer, Claimed), broken("keys-are-literal", answer)
        record = self.other.find(key)
        assert record is not None, broken("keys-are-literal", f"{key!r:.100} is not found")
        assert (record.key, record.run_id) == (key, claim.run_id), broken("keys-are-literal", f"{record.key!r:.100}")
        self.store.release(key, force=True)
        self.begin(key).ends(Status.SUCCESS)
        listed = {one.key for one in self.store.list_runs(workflow=self.workflow)}
        assert listed == {key}, broken("keys-are-literal", f"{key!r:.100} is listed as {listed!r:.200}")

    def test_keys_that_look_alike_are_not_the_same(self) -> None:
        runs: dict[str, str] = {}
        for key in ALIKE:
            answer = self.store.claim(claim := self.request(self.key + key))
            assert isinstance(answer, Claimed), broken(
                "keys-are-literal", f"{key!r:.100} is another's: {answer!r:.200}"
            )
            runs[claim.key] = claim.run_id
        for key, run_id in runs.items():
            assert self.record(key).run_id == run_id, broken("keys-are-literal", f"{key!r:.100}")

    @pytest.mark.parametrize("kind", HOSTILE)
    def test_any_name_is_kept_or_refused(self, kind: str) -> None:
        name = HOSTILE[kind]
        try:
            owner = self.begin(values={name: 1}, carrier={name: name}, begins=(name,))
            owner.saves({name: done(name, carrier={name: name})}, {name: wrote(2), name + "2": wrote(name)})
        except FlowcoreError:
            return
        record = self.record()
        assert dict(record.values) == {name: 2, name + "2": name}, broken("values", f"{record.values!r:.200}")
        assert dict(record.results) == {name: name}, broken("results", f"{record.results!r:.200}")
        assert tuple(record.effects) == (name,), broken("effects", f"{record.effects!r:.200}")
        assert record.carriers == {name: {name: name}}, broken("carriers", f"{record.carriers!r:.200}")
        assert record.carrier == {name: name}, broken("carriers", f"{record.carrier!r:.200}")

    @pytest.mark.parametrize("kind", HOSTILE)
    def test_any_workflow_fingerprint_and_graph_is_kept_or_refused(self, kind: str) -> None:
        text = HOSTILE[kind]
        claim = Claim(self.key, self.key, text, text, text, {})
        try:
            answer = self.store.claim(claim)
        except FlowcoreError:
            return
        assert isinstance(answer, Claimed), broken("claim-begins", answer)
        record = self.record()
        seen = (record.workflow, record.fingerprint, record.graph)
        assert seen == (text, text, text), broken("claim-is-recorded", f"{seen!r:.200}")
        assert any(one.key == self.key for one in self.store.list_runs(workflow=text)), broken(
            "list-runs", f"{text!r:.100}"
        )

    @pytest.mark.parametrize("name", ["run_id", "status", "s:a", "w:x", "fence", "0", "values"])
    def test_names_that_a_store_may_use_itself_are_as_good_as_any(self, name: str) -> None:
        owner = self.begin(values={name: 1, "kept": 1}, begins=(name,))
        owner.saves({name: done(name)}, {name: wrote(2)})
        owner.saves({name + "2": done(name)}, {"other": wrote(3)})
        record = self.record()
        assert (record.run_id, record.status, record.fence) == (owner.run_id, Status.RUNNING, owner.fence), broken(
            "steps"
        )
        assert dict(record.values) == {name: 2, "kept": 1, "other": 3}, broken("values", record.values)
        assert dict(record.results) == {name: name, name + "2": name}, broken("results", record.results)


def _text(value: Any) -> str:
    """Return a text that differs for values that Python takes as equal, such as 1, True and 1.0."""
    return pprint.pformat(value, width=1_000_000)
