"""In which form durable stores keep a run: what goes in comes out, and what flowcore has not written is refused."""

import contextlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, strategies as st

from flowcore import (
    CorruptRecord,
    DefinitionError,
    Engine,
    NotSerializable,
    RunFailed,
    Status,
    StepReport,
    StoreError,
    Workflow,
)
from flowcore.errors import hashed_key
from flowcore.run import Sent
from flowcore.stores import PydanticCodec, SQLiteStore
from flowcore.stores.base import Checkpoint, Claim, Ending, RunRecord, StepRecord, Write
from flowcore.stores.codec import JsonCodec
from flowcore.stores.encoding import LARGEST, MIB, Encoding, microseconds

ENCODING = Encoding()
BEGUN = Claim(
    "order-1",
    "run1",
    "checkout",
    "f1",
    "g1",
    {"traceparent": "00-1"},
    {"card": "C-9", "amounts": [1, 2.5, None, True]},
    begins=("reserve",),
)
COUNTED = {"generation": "2", "fence": "7", "started": "1700000000000000", "expires": "1700000030000000"}


def stored(*reported: Checkpoint | Ending, claim: Claim = BEGUN) -> dict[str, str]:
    """What a store holds once it has been told all this."""
    fields = {**ENCODING.encode_claim(claim), **COUNTED}
    for one in reported:
        fields |= ENCODING.encode_checkpoint(one) if isinstance(one, Checkpoint) else ENCODING.encode_ending(one)
    return fields


def checkpoint(
    steps: Mapping[str, StepRecord] | None = None, writes: Mapping[Any, Write] | None = None, **more: Any
) -> Checkpoint:
    return Checkpoint("order-1", "run1", 7, 30, steps or {}, writes or {}, **more)


def done(seq: int, result: Any, **more: Any) -> StepRecord:
    return StepRecord(seq, StepReport(Status.SUCCESS, 1), has_result=True, result=result, **more)


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001
        return caught


# -- there and back ----------------------------------------------------------------------------------------------------


def test_a_fresh_claim_comes_back_as_a_running_record() -> None:
    record = ENCODING.decode("order-1", stored())
    assert (record.key, record.run_id, record.workflow) == ("order-1", "run1", "checkout")
    assert (record.fingerprint, record.graph, record.status) == ("f1", "g1", Status.RUNNING)
    assert (record.generation, record.fence, record.seq) == (2, 7, 1)
    assert (record.started, record.finished, record.expires) == (1.7e9, None, 1.7e9 + 30)
    assert (record.held, record.undoing, record.decision) == (False, False, None)
    assert record.carrier == {"traceparent": "00-1"}
    assert record.values == {"card": "C-9", "amounts": [1, 2.5, None, True]}
    assert record.steps == {"reserve": StepReport(Status.RUNNING, 1)}
    assert record.effects == ("reserve",)
    assert (record.results, record.undone, record.failed_step, record.error) == ({}, (), None, None)


def test_a_claim_of_little_is_a_record_of_little() -> None:
    record = ENCODING.decode("k", stored(claim=Claim("k", "r", "w", None, "", {})))
    assert (record.fingerprint, record.graph, record.carrier, record.values, record.seq) == (None, "", {}, {}, 0)


def test_numbers_may_be_ints_already() -> None:
    fields = {**stored(), "fence": 7, "started": 1_700_000_000_000_000, "held": 1}
    record = ENCODING.decode("order-1", fields)
    assert (record.fence, record.started, record.held) == (7, 1.7e9, True)


def test_results_come_in_order_of_completion_and_steps_in_flight_are_the_last_to_undo() -> None:
    steps = {
        "late": done(9, "l", effect=True),
        "flying": StepRecord(3, StepReport(Status.RUNNING, 2)),
        "early": done(4, "e", effect=True, carrier={"traceparent": "00-2"}),
        "nothing to undo": done(5, None),
        "failed": StepRecord(6, StepReport(Status.FAILURE, 3), has_result=True, result="no use", effect=True),
        "skipped": StepRecord(7, StepReport(Status.SKIPPED)),
    }
    record = ENCODING.decode("order-1", stored(checkpoint(steps)))
    assert list(record.results.items()) == [("early", "e"), ("nothing to undo", None), ("late", "l")]
    assert record.effects == ("early", "failed", "late", "reserve", "flying")
    assert list(record.steps) == ["reserve", "flying", "early", "nothing to undo", "failed", "skipped", "late"]
    assert record.carriers == {"early": {"traceparent": "00-2"}}
    assert record.seq == 9


def test_steps_that_begin_with_the_claim_come_in_its_order_whatever_the_store_does() -> None:
    fields = stored(claim=Claim("k", "r", "w", None, "g", {}, begins=("b", "c", "a")))
    for mixed in (fields, dict(reversed(fields.items())), dict(sorted(fields.items()))):
        record = ENCODING.decode("k", mixed)
        assert (record.effects, record.seq) == (("b", "c", "a"), 3)


def test_a_report_keeps_all_that_it_reports() -> None:
    report = StepReport(
        Status.TIMEOUT,
        3,
        0.25,
        1.5,
        0.0,
        raised(ValueError("no")),
        Status.FAILURE,
        raised(OSError("gone")),
        failed=2,
        errors=(("ValueError", "no"), ("OSError", "none")),
        started=1.7e9,
        retry_at=1.7e9 + 0.25,
        completed_late=Status.SUCCESS,
    )
    back = ENCODING.decode("order-1", stored(checkpoint({"pay": StepRecord(2, report)}))).steps["pay"]
    assert (back.status, back.attempts, back.waited, back.ran, back.backed_off) == (Status.TIMEOUT, 3, 0.25, 1.5, 0.0)
    assert (back.undo, back.completed_late) == (Status.FAILURE, Status.SUCCESS)
    assert str(back.error) == "run run1 of 'checkout' failed at step 'pay': ValueError: no"
    assert str(back.undo_error) == "run run1 of 'checkout' could not undo step 'pay': OSError: gone"


def test_writes_are_applied_to_the_initial_values_the_later_ones_last() -> None:
    writes = {
        "newer": Write(6, 2),
        "new": Write(5, {"a": 1}),
        "card": Write(3, deleted=True),
        "amounts": Write(4, None),
        "gone": Write(2, deleted=True),
    }
    record = ENCODING.decode("order-1", stored(checkpoint(writes=writes)))
    assert list(record.values.items()) == [("amounts", None), ("new", {"a": 1}), ("newer", 2)]
    assert record.seq == 6


def test_an_error_comes_back_as_run_failed_with_its_type_message_and_traceback() -> None:
    fields = stored(checkpoint(undoing=True, failed_step="pay", error=raised(ValueError("declined"))))
    record = ENCODING.decode("order-1", fields)
    error = record.error
    assert isinstance(error, RunFailed)
    assert str(error) == "run run1 of 'checkout' failed at step 'pay': ValueError: declined"
    assert (error.run, error.step, error.error_type, error.message) == ("run1", "pay", "ValueError", "declined")
    assert re.search(r"in raised\n.*ValueError: declined\n$", error.traceback_text, re.DOTALL)
    assert (record.undoing, record.failed_step) == (True, "pay")


def test_an_error_of_an_error_reports_the_first_one() -> None:
    once = ENCODING.decode("order-1", stored(checkpoint(failed_step="pay", error=raised(ValueError("declined"))))).error
    twice = ENCODING.decode("order-1", stored(checkpoint(failed_step="pay", error=once))).error
    assert (str(twice), vars(twice)) == (str(once), vars(once))


def test_long_messages_and_tracebacks_are_clipped() -> None:
    error = raised(ValueError("x" * 100_000 + "!"))
    back = ENCODING.decode("order-1", stored(checkpoint(error=error))).error
    assert (len(back.message), len(back.traceback_text)) == (1025, 16 * 1024 + 1)
    assert back.traceback_text.endswith("xxx!\n")  # its end says most
    assert back.step is None
    assert str(back).startswith("run run1 of 'checkout' failed: ValueError: xxx")


class Hostile(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


def test_an_error_that_cannot_be_printed_is_reported_all_the_same() -> None:
    back = ENCODING.decode("order-1", stored(checkpoint(error=raised(Hostile())))).error
    assert (back.error_type, back.message) == ("Hostile", "(its __str__ raised RuntimeError)")


def test_an_ending_replaces_what_checkpoints_said_of_the_run() -> None:
    steps = {"reserve": done(2, 1, effect=True)}
    steps["reserve"].report.undo = Status.SUCCESS
    fields = stored(checkpoint(steps, undoing=True, failed_step="pay", error=ValueError("no")))
    assert ENCODING.decode("order-1", fields).undone == ()  # while the undo goes on, its steps tell
    ended = RunRecord("order-1", "run1", "checkout", "f1", "g1", status=Status.PARKED, undone=("b", "a"))
    fields |= ENCODING.encode_ending(Ending(ended, checkpoint({"last": done(3, 3)})))
    record = ENCODING.decode("order-1", fields)
    assert (record.status, record.held, record.undone) == (Status.PARKED, False, ("b", "a"))
    assert (record.failed_step, record.error, record.undoing) == (None, None, True)
    assert record.results["last"] == 3


@pytest.mark.parametrize("status", ["success", "failure", "compensated", "compensation_failed", "incomplete", "parked"])
def test_every_status_of_a_run_comes_back(status: str) -> None:
    ended = RunRecord(
        "order-1", "run1", "w", None, "", status=Status(status), held=True, failed_step="a", error=OSError()
    )
    record = ENCODING.decode("order-1", stored(Ending(ended)))
    assert (record.status, record.held, record.failed_step) == (status, True, "a")
    assert isinstance(record.status, Status)


@pytest.mark.parametrize("status", ["running", "lost", "pending", "surprise"])
def test_a_run_cannot_end_in_any_other_way(status: Any) -> None:
    ended = RunRecord("order-1", "run1", "w", None, "", status=status)
    with pytest.raises(StoreError, match=f"run run1 cannot end with the status '{status}'"):
        ENCODING.encode_ending(Ending(ended))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
NAMES = st.text().filter(lambda text: text.encode("utf-8", "ignore").decode() == text)


@given(st.dictionaries(NAMES, JSON, max_size=3), st.dictionaries(NAMES, JSON, max_size=3), NAMES)
def test_any_json_under_any_name_comes_back_equal(results: dict[str, Any], values: dict[str, Any], name: str) -> None:
    steps = {step: done(seq, result) for seq, (step, result) in enumerate(results.items(), 2)}
    writes = {key: Write(seq, value) for seq, (key, value) in enumerate(values.items(), 2)}
    fields = stored(checkpoint(steps, writes), claim=Claim(name, "r", name, name, name, {name: name}, values))
    record = ENCODING.decode(name, fields)
    assert (record.results, record.values) == (results, values)
    assert (record.key, record.workflow, record.graph, record.carrier) == (name, name, name, {name: name})
    for text in (*fields, *fields.values()):
        text.encode()


def test_half_a_surrogate_pair_in_a_value_survives() -> None:
    record = ENCODING.decode("order-1", stored(checkpoint({"a": done(2, ["\ud800", {"\udfff": 1}])})))
    assert record.results == {"a": ["\ud800", {"\udfff": 1}]}


@pytest.mark.parametrize(
    ("claim", "culprit"),
    [
        (Claim("k\ud800", "r", "w", None, "g", {}), "its key " + hashed_key("k\ud800")),
        (Claim("k", "r", "w\ud800", None, "g", {}), "its workflow 'w\\ud800'"),
        (Claim("k", "r", "w", None, "g", {}, begins=("s\ud800",)), "the step name 's\\ud800'"),
    ],
)
def test_half_a_surrogate_pair_in_a_name_is_refused(claim: Claim, culprit: str) -> None:
    with pytest.raises(
        NotSerializable, match=re.escape(f"run 'r' cannot be stored: {culprit} contains a lone surrogate")
    ):
        ENCODING.encode_claim(claim)
    with pytest.raises(NotSerializable, match=re.escape("the context key 'c\\ud800' contains a lone surrogate")):
        ENCODING.encode_checkpoint(checkpoint(writes={"c\ud800": Write(1)}))
    with pytest.raises(
        NotSerializable, match=re.escape("the wait name 'm\\ud800' contains a lone surrogate")
    ) as refused:
        ENCODING.encode_sent("m\ud800", Sent(1), "r")
    assert str(refused.value).encode()  # it can be printed


def test_the_seq_stands_in_front_of_ascii() -> None:
    fields = stored(checkpoint({"é": done(12, "é")}, {"ü": Write(34, "ü")}))
    assert fields["s:é"].startswith("12 {")
    assert fields["w:ü"].startswith("34 {")
    assert all(text.isascii() for text in fields.values())


def test_carriers_lose_what_is_no_text_since_hooks_must_not_break_a_run() -> None:
    odd: Any = {"a": "b", "c": 1, 2: "d", "e": None}
    record = ENCODING.decode(
        "k", stored(checkpoint({"s": done(1, 1, carrier=odd)}), claim=Claim("k", "r", "w", None, "", odd))
    )
    assert (record.carrier, record.carriers) == ({"a": "b"}, {"s": {"a": "b"}})


def test_durations_are_microseconds_and_at_most_a_century() -> None:
    assert microseconds(1.5) == 1_500_000
    assert microseconds(math.inf) == microseconds(1e30) == 100 * 365 * 24 * 3600 * 10**6
    assert microseconds(math.inf) * 2 < LARGEST  # there is room for it from now on


# -- what cannot be stored ---------------------------------------------------------------------------------------------


def test_a_value_that_the_codec_refuses_is_named() -> None:
    why = "object is not a type that the default codec keeps. Use plain data, or give the store a codec= that keeps it."
    for where, encode in (
        ("the result of step 'pay' in run run1", lambda value: checkpoint({"pay": done(2, value)})),
        ("the value of 'card' in run run1", lambda value: checkpoint(writes={"card": Write(2, value)})),
    ):
        with pytest.raises(NotSerializable, match=re.escape(f"{where} cannot be stored: {why}")):
            ENCODING.encode_checkpoint(encode(object()))
    with pytest.raises(
        NotSerializable, match=re.escape(f"the initial value of 'card' in run r cannot be stored: {why}")
    ):
        ENCODING.encode_claim(Claim("k", "r", "w", None, "", {}, {"card": object()}))


@pytest.mark.parametrize("key", [1, None, ("a",), b"a"])
def test_a_context_key_must_be_a_string(key: Any) -> None:
    wanted = (
        re.escape(f"the context key {key!r} in run ")
        + "r.* cannot be stored: a durable store keeps values under strings"
    )
    with pytest.raises(NotSerializable, match=wanted):
        ENCODING.encode_checkpoint(checkpoint(writes={key: Write(2, 1)}))
    with pytest.raises(NotSerializable, match=wanted):
        ENCODING.encode_claim(Claim("k", "r", "w", None, "", {}, {key: 1}))


def test_a_value_may_take_a_mebibyte_and_no_more_unless_the_store_says_so() -> None:
    fits = "x" * (MIB - 2)  # and two quotes
    assert ENCODING.decode("order-1", stored(checkpoint({"a": done(2, fits)}))).results == {"a": fits}
    with pytest.raises(NotSerializable) as caught:
        stored(checkpoint({"a": done(2, fits + "x")}))
    assert str(caught.value) == (
        "the result of step 'a' in run run1 takes 1,048,577 bytes, and this store keeps at most 1,048,576: store it "
        "elsewhere and keep a reference, or make the store with a larger max_value_bytes=."
    )
    Encoding(None, MIB + 1).encode_checkpoint(checkpoint({"a": done(2, fits + "x")}))


# -- a codec of one's own ----------------------------------------------------------------------------------------------


class Rot:
    """Encrypts, nearly."""

    def dumps(self, value: Any, annotation: Any) -> str:
        return "é" + json.dumps(value)[::-1]

    def loads(self, text: str, annotation: Any) -> Any:
        return json.loads(text[:0:-1])


def test_a_codec_sees_every_value_of_the_users_and_nothing_else() -> None:
    encoding = Encoding(Rot())
    fields = {**encoding.encode_claim(BEGUN), **COUNTED}
    fields |= encoding.encode_checkpoint(checkpoint({"pay": done(2, "secret")}, {"w": Write(3, "secret")}))
    assert "secret" not in str(fields)
    assert "C-9" not in str(fields)
    record = encoding.decode("order-1", fields)
    assert record.results == {"pay": "secret"}
    assert record.values == {**BEGUN.values, "w": "secret"}
    assert record.workflow == "checkout"


class Odd:
    plain = True

    def __init__(self, text: Any) -> None:
        self.text = text

    def dumps(self, value: Any, annotation: Any) -> Any:
        return self.text

    def loads(self, text: str, annotation: Any) -> Any:
        raise KeyError("the key of 2025")


def test_a_codec_must_answer_with_text_of_at_most_so_many_bytes() -> None:
    with pytest.raises(NotSerializable, match=r"dumps\(\) of the store's codec= must return a str, not a bytes"):
        Encoding(Odd(b"x")).encode_checkpoint(checkpoint({"a": done(2, 1)}))
    with pytest.raises(NotSerializable, match="takes 6 bytes, and this store keeps at most 5"):
        Encoding(Odd("ééé"), 5).encode_checkpoint(checkpoint({"a": done(2, 1)}))
    any_text = Encoding(Odd("\ud800"), 3).encode_checkpoint(checkpoint({"a": done(2, 1)}))["s:a"]
    assert any_text.isascii()


def test_what_the_codec_cannot_read_is_a_corrupt_record() -> None:
    fields = stored(checkpoint({"a": done(2, 1)}))
    with pytest.raises(CorruptRecord, match=r"codec cannot read its field 's:a' \(KeyError: 'the key of 2025'\)"):
        Encoding(Odd("")).decode("order-1", {**fields, "values": "{}"})


class Panic(BaseException):
    """As that of a codec in Rust: it is no Exception."""


class Panics:
    plain = True

    def dumps(self, value: Any, annotation: Any) -> str:
        if value == "unlucky":
            raise Panic("index out of bounds")
        return json.dumps(value)

    def loads(self, text: str, annotation: Any) -> Any:
        raise Panic("index out of bounds")


def test_what_a_codec_raises_that_is_no_exception_is_the_error_of_the_value_or_of_the_record(tmp_path: Path) -> None:
    store, undone, wf = SQLiteStore(tmp_path / "db", codec=Panics()), list[str](), Workflow("w")
    wf.add_step("a", lambda ctx: "unlucky").compensate(lambda ctx: undone.append("a"))
    with Engine(store=store) as engine, pytest.raises(NotSerializable, match=r"RuntimeError: Panic: index out of"):
        engine.run(wf)
    assert undone == ["a"]
    with pytest.raises(
        CorruptRecord, match=r"cannot read its field 's:a' \(RuntimeError: Panic: index out of bounds\)"
    ):
        Encoding(Panics()).decode("order-1", {**stored(checkpoint({"a": done(2, 1)})), "values": "{}"})


@pytest.mark.parametrize("leaves", [SystemExit, KeyboardInterrupt])
def test_an_exit_in_a_codec_is_raised(leaves: type[BaseException]) -> None:
    def dumps(value: Any, annotation: Any) -> str:
        raise leaves

    codec = Odd("")
    codec.dumps = dumps  # type: ignore[method-assign]
    with pytest.raises(leaves):
        Encoding(codec).encode_checkpoint(checkpoint({"a": done(2, 1)}))


@pytest.mark.parametrize(
    "codec",
    [
        json.dumps,
        1,
        type("C", (), {"dumps": str})(),
        type("C", (), {"dumps": lambda self, value: "", "loads": lambda self, text: 1})(),
    ],
)
def test_a_codec_must_be_one(codec: Any) -> None:
    with pytest.raises(
        DefinitionError, match=r"codec= must have the methods dumps\(value, type\) and loads\(text, type\), unlike"
    ):
        Encoding(codec)


def test_the_class_of_a_codec_is_no_codec_unless_its_methods_need_no_instance() -> None:
    class Static:
        dumps, loads = staticmethod(JsonCodec().dumps), staticmethod(JsonCodec().loads)

    for kind in (JsonCodec, PydanticCodec):
        with pytest.raises(
            DefinitionError, match=rf"not the class {kind.__name__}\. Make one: {kind.__name__}\(\.\.\.\)"
        ):
            Encoding(cast("Any", kind))
    Encoding(cast("Any", Static))


def test_what_is_given_as_a_codec_is_in_no_message() -> None:
    with pytest.raises(DefinitionError, match=r"unlike an object of type str\.$"):
        Encoding(cast("Any", "the key of a codec that encrypts"))


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "1"])
def test_max_value_bytes_must_be_a_whole_number_from_one_up(wrong: Any) -> None:
    with pytest.raises(DefinitionError, match="max_value_bytes= must be a whole number from 1 up, not"):
        Encoding(None, wrong)


# -- what flowcore has not written -------------------------------------------------------------------------------------

FULL = stored(
    checkpoint(
        {
            "pay": StepRecord(
                2,
                StepReport(
                    *(Status.FAILURE, 1, 1.0, 1.0, 1.0, OSError(), Status.FAILURE, OSError()),
                    failed=1,
                    errors=(("OSError", ""),),
                    started=1.0,
                    retry_at=2.0,
                    completed_late=Status.FAILURE,
                ),
            )
        },
        {"card": Write(3, 1)},
        undoing=True,
        failed_step="pay",
        error=OSError(),
    ),
    Ending(
        RunRecord(
            "order-1",
            "run1",
            "w",
            None,
            "",
            status=Status.COMPENSATION_FAILED,
            held=True,
            undone=("a",),
            error=OSError(),
        )
    ),
) | {
    "decision": "undo",
    "finished": "5",
    "before_status": "parked",
    "before_expires": "5",
    "deadline": "5",
    "reason": "why",
    "by": '{"host":"h","pid":1}',
    "since": "5",
    "before_by": '{"host":"h","pid":1}',
    "before_since": "5",
    "takeovers": "1",
    "retries": "1",
    "delay": "5",
    "not_before": "5",
}

GARBAGE: tuple[Any, ...] = (
    b"\xff",
    1.5,
    "",
    "garbage",
    "-1",
    "1e3",
    "9" * 400,
    "NaN",
    "[" * 100_000,
    "2 garbage",
    2**53,
    -1,
    None,
)
TEXTS = {"key", "run_id", "owner", "workflow", "graph", "fingerprint", "reason"}


@pytest.mark.parametrize("field", FULL)
def test_a_record_with_garbage_in_any_one_field_is_refused_naming_its_key(field: str) -> None:
    ENCODING.decode("order-1", FULL)
    for garbage in GARBAGE:
        if field in TEXTS - {"key"} and isinstance(garbage, str):
            continue  # any text will do there
        with pytest.raises(CorruptRecord) as caught:
            ENCODING.decode("order-1", {**FULL, field: garbage})
        message = str(caught.value)
        assert message.startswith(f"the record of key {hashed_key('order-1')} is corrupted: its ")
        assert message.endswith("discard it with store.release(error.key, force=True).")
        assert caught.value.key == "order-1"
        assert len(message) < 600


OPTIONAL = {
    *("fingerprint", "values", "carrier", "undone", "failed_step", "error", "decision", "finished", "expires"),
    *("held", "undoing", "before_status", "before_expires", "deadline", "reason", "by", "since", "before_by"),
    *("before_since", "takeovers", "retries", "delay", "not_before", "seq"),
}


@pytest.mark.parametrize("field", sorted(name for name in FULL if ":" not in name))
def test_only_optional_fields_may_be_missing(field: str) -> None:
    fields = {name: text for name, text in FULL.items() if name != field}
    if field in OPTIONAL:
        ENCODING.decode("order-1", fields)
    else:
        with pytest.raises(CorruptRecord, match=f"its (field '{field}'|{field}) .*(missing|None)"):
            ENCODING.decode("order-1", fields)


STEP = '2 {"status":"success","attempts":1%s}'
WRONG = {
    "a field that no version writes": ("x:y", "1 {}"),
    "a plain field that no version writes": ("surprise", "1"),
    "an unknown status": ("s:a", '2 {"status":"lost","attempts":1}'),
    "no status": ("s:a", '2 {"attempts":1}'),
    "no attempts": ("s:a", '2 {"status":"success"}'),
    "attempts that are true": ("s:a", '2 {"status":"success","attempts":true}'),
    "attempts below zero": ("s:a", '2 {"status":"success","attempts":-1}'),
    "attempts beyond counting": ("s:a", '2 {"status":"success","attempts":1e300}'),
    "a step with more": ("s:a", STEP % ',"more":1'),
    "a result that is no text": ("s:a", STEP % ',"result":1'),
    "a result that is no JSON": ("s:a", STEP % ',"result":"{"'),
    "a result that is NaN": ("s:a", STEP % ',"result":"NaN"'),
    "a deep result": ("s:a", STEP % f',"result":"{"[" * 100_000}"'),
    "an effect that is 1": ("s:a", STEP % ',"effect":1'),
    "a carrier of numbers": ("s:a", STEP % ',"carrier":{"a":1}'),
    "a time that is NaN": ("s:a", STEP % ',"ran":NaN'),
    "a time without end": ("s:a", STEP % ',"ran":1e999'),
    "a time of 400 digits": ("s:a", STEP % f',"ran":{"9" * 400}'),
    "a time of 5,000 digits": ("s:a", STEP % f',"ran":{"9" * 5000}'),
    "failed attempts of text": ("s:a", STEP % ',"failed":"x"'),
    "errors of three": ("s:a", STEP % ',"errors":[["a","b","c"]]'),
    "errors of numbers": ("s:a", STEP % ',"errors":[["a",1]]'),
    "an owner with more": ("by", '{"host":"h","pid":1,"more":1}'),
    "an owner without a number": ("by", '{"host":"h","pid":"x"}'),
    "a time below zero": ("s:a", STEP % ',"waited":-1'),
    "a time that is true": ("s:a", STEP % ',"waited":true'),
    "an undo that is pending": ("s:a", STEP % ',"undo":"pending"'),
    "a late completion that runs": ("s:a", STEP % ',"completed_late":"running"'),
    "an error of text": ("s:a", STEP % ',"error":"no"'),
    "an error with less": ("s:a", STEP % ',"undo_error":{"type":"a","message":"b"}'),
    "a list for a step": ("s:a", "2 []"),
    "no seq": ("s:a", '{"status":"success","attempts":1}'),
    "a seq beyond counting": ("s:a", STEP.replace("2", str(2**53)) % ""),
    "a write with more": ("w:a", '2 {"value":"1","more":1}'),
    "a write of nothing": ("w:a", '2 {"more":1}'),
    "values of numbers": ("values", '{"a":1}'),
    "a list of values": ("values", "[]"),
    "a list for a carrier": ("carrier", "[]"),
    "undone by number": ("undone", "[1]"),
    "undone by name": ("undone", '{"a":1}'),
    "a number for a failed step": ("failed_step", "1"),
    "a decision to wait": ("decision", "wait"),
    "held twice": ("held", "2"),
    "digits of another script": ("fence", "\u0667"),
    "a fence that is true": ("fence", True),
    "bytes read as text": ("workflow", b"\xff".decode(errors="surrogateescape")),
    "bytes in JSON": ("w:a", '2 {"value":"\\"\udcff\\""}'),
    "bytes in a name": ("s:\udcff", STEP % ""),
}


@pytest.mark.parametrize(("field", "text"), WRONG.values(), ids=WRONG)
def test_a_record_with_anything_else_in_it_is_refused(field: str, text: Any) -> None:
    with pytest.raises(CorruptRecord, match=f"the record of key {hashed_key('order-1')} is corrupted: "):
        ENCODING.decode("order-1", {**FULL, field: text})


def test_a_record_of_a_newer_flowcore_is_refused_saying_so() -> None:
    with pytest.raises(
        CorruptRecord, match="its schema is 3, but this version of flowcore supports only 2: upgrade flowcore"
    ):
        ENCODING.decode("order-1", {**FULL, "schema": "3"})
    for old in ("0", "1"):
        with pytest.raises(CorruptRecord, match=f"its schema is {old}, written by an older version of flowcore"):
            ENCODING.decode("order-1", {**FULL, "schema": old})


def test_a_record_of_another_key_is_refused() -> None:
    with pytest.raises(CorruptRecord, match="is corrupted: its key differs from the key under which it is stored"):
        ENCODING.decode("mine", FULL)


@given(
    st.dictionaries(
        st.sampled_from(sorted(FULL)) | st.text() | st.binary(),
        st.text() | st.integers() | st.binary() | st.none(),
        max_size=5,
    )
)
def test_no_garbage_makes_it_fail_in_any_other_way(garbage: dict[Any, Any]) -> None:
    with contextlib.suppress(CorruptRecord):
        ENCODING.decode("order-1", {**FULL, **garbage})
