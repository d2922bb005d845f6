"""Decode a record from the texts that a durable store keeps. `encoding.py` describes their format.

A record that does not have this format was not written by flowcore. It is refused as a whole, and no part of it is
used.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final, cast

from ..errors import CorruptRecord, RunFailed, hashed_key, safe_repr, safe_str
from ..run import Sent, StepReport
from ..status import Status
from . import parts
from .base import Owner, RunRecord, StepRecord, Write
from .parts import LARGEST, Fields
from .sealing import Sealing

__all__ = [
    "ENDINGS",
    "INITIAL",
    "NEVER",
    "SCHEMA",
    "SENT",
    "STEP",
    "WRITE",
    "decode",
    "refusing",
    "sent_id",
    "step_status",
]

SCHEMA: Final = 2
STEP: Final = "s:"
WRITE: Final = "w:"
INITIAL: Final = "v:"
"""in a Place: precedes the key of an initial value"""
SENT: Final = "m:"
"""precedes the name of a step to which a value was sent"""
NEVER: Final = LARGEST
"""the value of `not_before` if recovery never resumes the run by itself"""

ENDINGS: Final = frozenset(
    {"success", "failure", "compensated", "compensation_failed", "incomplete", "parked", "waiting"},
)
"""statuses in which the owner of a run may leave it"""

_LIVE: Final = frozenset({"running", "queued"})
_RUN: Final = ENDINGS | _LIVE
_STEP: Final = frozenset(
    {"pending", "running", "success", "failure", "timeout", "cancelled", "skipped", "unknown", "waiting"},
)
_UNDO: Final = frozenset({"running", "success", "failure", "timeout"})
_COMPLETED_LATE: Final = frozenset({"success", "failure"})
_DECISION: Final = frozenset({"resume", "undo", "cancel"})
_HEAD: Final = frozenset(
    {
        *(
            "schema",
            "key",
            "key_text",
            "run_id",
            "owner",
            "workflow",
            "fingerprint",
            "graph",
            "status",
            "held",
            "undoing",
        ),
        *("decision", "reason", "by", "since", "before_status", "before_expires", "before_by", "before_since"),
        *("takeovers", "retries", "delay", "not_before", "deadline", "generation", "fence", "seq"),
        *("started", "finished", "expires", "values", "carrier", "undone", "failed_step", "error"),
        *("received", "waiting_for"),
    }
)
_TIMES: Final = (
    *("waited", "ran", "backed_off", "started", "retry_at", "until"),
    *("undo_started", "undo_finished", "completed_late_at"),
)
_IN_A_STEP: Final = frozenset(
    {
        *("status", "attempts", "failed", "errors", "result", "effect", "carrier", *_TIMES),
        *("error", "undo", "undo_error", "completed_late", "attempt_times"),
    }
)

Types = Mapping[str, Any]
"""annotations by field name"""


def decode(key: str, fields: Fields, sealing: Sealing, types: Types) -> RunRecord:
    """Decode a record from its fields. Without the fields of its steps and writes, the record is a head. Numbers may be
    ints already.

    `key`: the key, or the text under which the store finds the run. Raises CorruptRecord, which names the key, for
    anything that flowcore did not write.
    """
    with refusing(key):
        _refuse_bytes(fields)
        key, fields = _with_key(key, fields, sealing)
        record = _head(key, fields, sealing)
        stored = {field: text for field, text in fields.items() if field not in _HEAD}
        _add_steps(record, stored, sealing, types)
        _add_values(record, stored, fields, sealing, types)
    return record


@contextmanager
def refusing(key: str) -> Generator[None]:
    """Raise CorruptRecord, which names the key, in place of Foreign."""
    try:
        yield
    except parts.Foreign as error:
        raise CorruptRecord(
            f"the record of key {hashed_key(key)} is corrupted: {error}. It was not modified; repair it by hand, or "
            "discard it with store.release(error.key, force=True).",
            key=key,
        ) from error


def _refuse_bytes(fields: Fields) -> None:
    """Refuse a field that was not UTF-8. Its bytes arrive as lone surrogates, which flowcore never writes, because JSON
    escapes them."""
    for field, text in fields.items():
        if not isinstance(cast("object", field), str):
            raise parts.Foreign(f"it has a field {safe_repr(field)}")
        if isinstance(text, str) and not (field.isascii() and text.isascii()):
            try:
                field.encode()
                text.encode()
            except UnicodeEncodeError:
                raise parts.Foreign(f"its field {safe_repr(field)} is not UTF-8") from None


def _with_key(key: str, fields: Fields, sealing: Sealing) -> tuple[str, Fields]:
    """Return the key of the record, and its fields. If the codec hides keys, the field `key` has the decrypted key
    instead of its HMAC."""
    if not sealing.hides:
        if "key_text" in fields:
            raise parts.Foreign("its key was written with a codec= that this store does not have")
        return key, fields
    opened = _opened(parts.parsed(parts.text(fields, "key_text"), "key_text"), sealing, parts.run_id(fields), "key")
    if sealing.lookup(opened) != parts.text(fields, "key"):
        raise parts.Foreign("its key differs from the key under which it is stored")
    return (opened if key == fields["key"] else key), {**fields, "key": opened}


def _head(key: str, fields: Fields, sealing: Sealing) -> RunRecord:
    schema = parts.number(fields, "schema")
    if schema > SCHEMA:
        raise parts.Foreign(
            f"its schema is {schema}, but this version of flowcore supports only {SCHEMA}: upgrade flowcore"
        )
    if schema != SCHEMA:
        raise parts.Foreign(
            f"its schema is {schema}, written by an older version of flowcore, but this one supports only {SCHEMA}"
        )
    if parts.text(fields, "key") != key:
        raise parts.Foreign("its key differs from the key under which it is stored")
    parts.text(fields, "owner")
    record = RunRecord(
        key,
        parts.run_id(fields),
        parts.text(fields, "workflow"),
        parts.text(fields, "fingerprint") if "fingerprint" in fields else None,
        parts.text(fields, "graph"),
        status=parts.status(_RUN, fields.get("status"), "status"),
        held=parts.flag(fields, "held"),
        undoing=parts.flag(fields, "undoing"),
        decision=parts.one_of(_DECISION, fields["decision"], "decision") if "decision" in fields else None,
        owner=_owner(fields, "by", "since"),
        previous_owner=_owner(fields, "before_by", "before_since"),
        takeovers=parts.count(fields, "takeovers"),
        retries=parts.count(fields, "retries"),
        deadline=parts.time(fields, "deadline"),
        generation=parts.number(fields, "generation"),
        fence=parts.number(fields, "fence"),
        seq=parts.count(fields, "seq"),
        received=parts.count(fields, "received"),
        started=parts.number(fields, "started") / 1e6,
        finished=parts.time(fields, "finished"),
        expires=parts.time(fields, "expires"),
    )
    if "carrier" in fields:
        known = _own(parts.parsed(parts.text(fields, "carrier"), "carrier"), sealing, record.run_id, "carrier")
        record.carrier = parts.strings(known, "carrier")
    # These values are from the last time that the run was parked or held, and do not apply to a run that is running.
    reason, not_before, delay = (
        parts.optional(fields, "reason"),
        parts.time(fields, "not_before"),
        parts.count(fields, "delay") / 1e6,
    )
    if record.status not in _LIVE:
        record.not_before = math.inf if not_before == NEVER / 1e6 else not_before
    elif delay and record.expires is not None:
        record.not_before = record.expires + delay
    if record.status == Status.WAITING:
        names = parts.items(parts.json(fields, "waiting_for", []), "waiting_for")
        record.waiting_for = tuple(parts.string(name, "waiting_for") for name in names)
    if reason and sealing.hides:
        reason = _opened(parts.parsed(reason, "reason"), sealing, sealing.lookup(key), "reason")
    if reason and (record.status not in _LIVE or record.decision in {"undo", "cancel"}):
        record.reason = reason
    if "before_status" in fields:
        parts.status(_RUN, fields["before_status"], "before_status")
    parts.time(fields, "before_expires")
    if (step := parts.json(fields, "failed_step", None)) is not None:
        record.failed_step = parts.string(step, "failed_step")
    if (error := parts.json(fields, "error", None)) is not None:
        where = "" if step is None else f" at step {safe_repr(step)}"
        error = _own(error, sealing, record.run_id, "error")
        record.error = _failure(error, record, record.failed_step, f"failed{where}")
    if (undone := parts.json(fields, "undone", None)) is not None:
        record.undone = tuple(parts.string(name, "undone") for name in parts.items(undone, "undone"))
    return record


def _owner(fields: Fields, by: str, since: str) -> Owner | None:
    at = parts.count(fields, since) / 1e6
    if by not in fields:
        return None
    known = parts.mapping(parts.json(fields, by, {}), by)
    if known.keys() != {"host", "pid"}:
        raise parts.Foreign(f"its field {safe_repr(by)} does not have exactly host and pid")
    return Owner(parts.string(known["host"], by), parts.number(known, "pid"), at)


def _add_steps(record: RunRecord, stored: Fields, sealing: Sealing, types: Types) -> None:
    steps = [
        (field[2:], _step(field, text, record, sealing, types))
        for field, text in stored.items()
        if field.startswith(STEP)
    ]
    steps.sort(key=lambda step: step[1].seq)
    ended = [(name, step) for name, step in steps if step.report.status is not Status.RUNNING]
    in_flight = [name for name, step in steps if step.report.status is Status.RUNNING]
    record.seq = max(record.seq, steps[-1][1].seq if steps else 0)
    record.steps = {name: step.report for name, step in steps}
    record.carriers = {name: step.carrier for name, step in steps if step.carrier}
    record.results = {
        name: step.result for name, step in ended if step.has_result and step.report.status is Status.SUCCESS
    }
    record.effects = (*(name for name, step in ended if step.effect), *in_flight)


def _add_values(record: RunRecord, stored: Fields, fields: Fields, sealing: Sealing, types: Types) -> None:
    initial = parts.strings(parts.json(fields, "values", {}), "values")
    values = {
        key: _loaded(text, "values", sealing, types.get(WRITE + key, Any), record.run_id, INITIAL + key)
        for key, text in initial.items()
    }
    record.sent = {
        field[2:]: _sent(field, text, record, sealing) for field, text in stored.items() if field.startswith(SENT)
    }
    writes = [
        (field, _write(field, text, record, sealing, types))
        for field, text in stored.items()
        if not field.startswith((STEP, SENT))
    ]
    writes.sort(key=lambda write: write[1].seq)
    for field, write in writes:
        record.seq = max(record.seq, write.seq)
        if write.deleted:
            values.pop(field[2:], None)
        else:
            values[field[2:]] = write.value
    record.values = values


def _step(field: str, text: object, record: RunRecord, sealing: Sealing, types: Types) -> StepRecord:
    seq, known = parts.numbered(text, field)
    name, attempts, effect = field[2:], known.get("attempts"), known.get("effect", False)
    if not _IN_A_STEP.issuperset(known) or type(effect) is not bool:
        raise parts.Foreign(f"its field {safe_repr(field)} has an unknown entry")
    if type(attempts) is not int or not 0 <= attempts <= LARGEST:
        raise parts.Foreign(f"its field {safe_repr(field)} has the invalid number of attempts {safe_repr(attempts)}")
    report = StepReport(parts.status(_STEP, known.get("status"), field), attempts)
    report.failed = parts.count(known, "failed")
    if "errors" in known:
        errors = _own(known["errors"], sealing, record.run_id, f"s.errors:{name}")
        report.errors = tuple(parts.pair(error, field) for error in parts.items(errors, field))
    if "attempt_times" in known:
        report.attempt_times = tuple(parts.times(times, field) for times in parts.items(known["attempt_times"], field))
    for time in _TIMES:
        if time in known:
            setattr(report, time, parts.seconds(known[time], field))
    if "error" in known:
        error = _own(known["error"], sealing, record.run_id, f"s.error:{name}")
        report.error = _failure(error, record, name, f"failed at step {safe_repr(name)}")
    if "undo" in known:
        report.undo = parts.status(_UNDO, known["undo"], field)
    if "undo_error" in known:
        error = _own(known["undo_error"], sealing, record.run_id, f"s.undo_error:{name}")
        report.undo_error = _failure(error, record, name, f"could not undo step {safe_repr(name)}")
    if "completed_late" in known:
        report.completed_late = parts.status(_COMPLETED_LATE, known["completed_late"], field)
    carrier: dict[str, str] = {}
    if "carrier" in known:
        carrier = parts.strings(_own(known["carrier"], sealing, record.run_id, f"s.carrier:{name}"), field)
    if "result" not in known:
        return StepRecord(seq, report, effect=effect, carrier=carrier)
    result = _loaded(known["result"], field, sealing, types.get(field, Any), record.run_id, field)
    return StepRecord(seq, report, True, result, effect, carrier)


def _write(field: str, text: object, record: RunRecord, sealing: Sealing, types: Types) -> Write:
    if not field.startswith(WRITE):
        raise parts.Foreign(f"it has a field {safe_repr(field)}")
    seq, known = parts.numbered(text, field)
    if not known:
        return Write(seq, deleted=True)
    if known.keys() != {"value"}:
        raise parts.Foreign(f"its field {safe_repr(field)} has an unknown entry")
    return Write(seq, _loaded(known["value"], field, sealing, types.get(field, Any), record.run_id, field))


def _sent(field: str, text: object, record: RunRecord, sealing: Sealing) -> Sent:
    known, name = parts.mapping(parts.parsed(parts.string(text, field), field), field), field[2:]
    if known.keys() != {"value", "at", "host", "pid", "id", "carrier"}:
        raise parts.Foreign(f"its field {safe_repr(field)} has an unknown entry")
    return Sent(
        _loaded(known["value"], field, sealing, Any, record.run_id, field),
        parts.number(known, "at") / 1e6,
        parts.string(known["host"], field),
        parts.number(known, "pid"),
        sent_id(text, name, sealing, record.run_id),
        parts.strings(_own(known["carrier"], sealing, record.run_id, f"m.carrier:{name}"), field),
    )


def sent_id(text: object, name: str, sealing: Sealing, run_id: str) -> str | None:
    """The id that the sender gave to a value, from the stored text of that value. Raises ValueError for a text that
    flowcore did not write."""
    field = SENT + name
    known = parts.mapping(parts.parsed(parts.string(text, field), field), field).get("id")
    return None if known is None else parts.string(_own(known, sealing, run_id, f"m.id:{name}"), field)


def step_status(text: object) -> Status:
    """The status of a step, from the stored text of that step. Raises ValueError for a text that flowcore did not
    write."""
    return parts.status(_STEP, parts.numbered(text, STEP)[1].get("status"), STEP)


def _failure(known: object, record: RunRecord, step: str | None, what: str) -> RunFailed:
    stored = parts.strings(known, "error")
    if stored.keys() != {"type", "message", "traceback"}:
        raise parts.Foreign("an error in it does not have exactly type, message and traceback")
    return RunFailed(
        f"run {record.run_id} of {safe_repr(record.workflow)} {what}: {stored['type']}: {stored['message']}",
        run=record.run_id,
        step=step,
        error_type=stored["type"],
        error_message=stored["message"],
        traceback_text=stored["traceback"],
    )


def _loaded(text: object, field: str, sealing: Sealing, annotation: Any, run_id: str, place: str) -> Any:
    given = parts.string(text, field)
    try:
        return sealing.loads(given, annotation, run_id, place)
    except Exception as error:
        raise _unreadable(field, error) from error


def _own(known: Any, sealing: Sealing, run_id: str, place: str) -> Any:
    """Return JSON of flowcore's own. If the codec hides it, decode and parse it first."""
    return parts.parsed(_opened(known, sealing, run_id, place), place) if sealing.hides else known


def _opened(text: object, sealing: Sealing, run_id: str, place: str) -> str:
    given = parts.string(text, place)
    try:
        return sealing.open(given, run_id, place)
    except Exception as error:
        raise _unreadable(place, error) from error


def _unreadable(field: str, error: Exception) -> parts.Foreign:
    why = f"{type(error).__name__}: {safe_str(error, 200)}"
    return parts.Foreign(f"the store's codec cannot read its field {safe_repr(field)} ({why})")
