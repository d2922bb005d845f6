"""From the texts that a durable store keeps back to a record. `encoding.py` says what is in them.

Whatever is not of that form was not written by flowcore: the record is refused as a whole, and nothing of it is used.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final, cast

from ..errors import CorruptRecord, RunFailed, hashed_key, safe_repr, safe_str
from ..run import Sent, StepReport
from ..status import Status
from .base import Owner, RunRecord, StepRecord, Write
from .codec import json_value
from .sealing import Sealing

__all__ = [
    "ENDINGS",
    "INITIAL",
    "LARGEST",
    "NEVER",
    "SCHEMA",
    "SENT",
    "STEP",
    "WRITE",
    "decode",
    "number",
    "refusing",
    "sent_id",
    "step_status",
]

SCHEMA: Final = 2
STEP: Final = "s:"
WRITE: Final = "w:"
INITIAL: Final = "v:"
"""before the key of an initial value, where its place is named"""
SENT: Final = "m:"
LARGEST: Final = 2**53 - 1
"""of all numbers: more, a double such as Lua's cannot distinguish"""
NEVER: Final = LARGEST
"""as `not_before`: recovery does not resume the run"""

ENDINGS: Final = frozenset(
    {"success", "failure", "compensated", "compensation_failed", "incomplete", "parked", "waiting"},
)
"""what a run's owner may leave it as"""

_LONGEST_RUN_ID: Final = 128
_DIGITS: Final = len(str(LARGEST))
_LIVE: Final = frozenset({"running", "queued"})
_RUN: Final = ENDINGS | _LIVE
_STEP: Final = frozenset(
    {"pending", "running", "success", "failure", "timeout", "cancelled", "skipped", "unknown", "waiting"},
)
_UNDO: Final = frozenset({"running", "success", "failure", "timeout"})
_LANDING: Final = frozenset({"success", "failure"})
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
_TIMES: Final = ("waited", "ran", "backed_off", "started", "retry_at", "until")
_IN_A_STEP: Final = frozenset(
    {
        *("status", "attempts", "failed", "errors", "result", "effect", "carrier", *_TIMES),
        *("error", "undo", "undo_error", "completed_late"),
    }
)

Fields = Mapping[str, Any]
Types = Mapping[str, Any]
"""annotations by field name"""


class _Foreign(ValueError):
    """Why something in a record cannot be flowcore's."""


def decode(key: str, fields: Fields, sealing: Sealing, types: Types) -> RunRecord:
    """The record in these fields; without those of its steps and writes, its head. Numbers may be ints already.

    `key`: the key, or what it is found under. Raises CorruptRecord, naming the key, for anything that flowcore has not written.
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
    """Raises CorruptRecord, naming the key, for what is found not to be flowcore's."""
    try:
        yield
    except _Foreign as error:
        raise CorruptRecord(
            f"the record of key {hashed_key(key)} is not as flowcore wrote it: {error}. It was left as it is: put it right by "
            "hand, or give the key up with store.release(error.key, force=True).",
            key=key,
        ) from error


def _refuse_bytes(fields: Fields) -> None:
    """What was no UTF-8 comes as halves of surrogate pairs; what flowcore writes has none, since JSON escapes them."""
    for field, text in fields.items():
        if not isinstance(cast("object", field), str):
            raise _Foreign(f"it has a field {safe_repr(field)}")
        if isinstance(text, str) and not (field.isascii() and text.isascii()):
            try:
                field.encode()
                text.encode()
            except UnicodeEncodeError:
                raise _Foreign(f"its field {safe_repr(field)} is not UTF-8") from None


def _with_key(key: str, fields: Fields, sealing: Sealing) -> tuple[str, Fields]:
    """The key of the record, and the fields with it in its place."""
    if not sealing.hides:
        if "key_text" in fields:
            raise _Foreign("its key was written with a codec= that this store does not have")
        return key, fields
    opened = _opened(_parsed(_text(fields, "key_text"), "key_text"), sealing, _run_id(fields), "key")
    if sealing.lookup(opened) != _text(fields, "key"):
        raise _Foreign("its key is another one than it is found under")
    return (opened if key == fields["key"] else key), {**fields, "key": opened}


def _head(key: str, fields: Fields, sealing: Sealing) -> RunRecord:
    schema = number(fields, "schema")
    if schema > SCHEMA:
        raise _Foreign(f"its schema is {schema}, and this version of flowcore knows {SCHEMA}, so take a newer one")
    if schema != SCHEMA:
        raise _Foreign(f"its schema is {schema}, written by an older version of flowcore, and this one knows {SCHEMA}")
    if _text(fields, "key") != key:
        raise _Foreign("its key is another one than it is found under")
    _text(fields, "owner")
    record = RunRecord(
        key,
        _run_id(fields),
        _text(fields, "workflow"),
        _text(fields, "fingerprint") if "fingerprint" in fields else None,
        _text(fields, "graph"),
        status=_status(_RUN, fields.get("status"), "status"),
        held=_flag(fields, "held"),
        undoing=_flag(fields, "undoing"),
        decision=_one_of(_DECISION, fields["decision"], "decision") if "decision" in fields else None,
        owner=_owner(fields, "by", "since"),
        takeovers=_count(fields, "takeovers"),
        retries=_count(fields, "retries"),
        deadline=_time(fields, "deadline"),
        generation=number(fields, "generation"),
        fence=number(fields, "fence"),
        seq=_count(fields, "seq"),
        received=_count(fields, "received"),
        started=number(fields, "started") / 1e6,
        finished=_time(fields, "finished"),
        expires=_time(fields, "expires"),
    )
    if "carrier" in fields:
        known = _own(_parsed(_text(fields, "carrier"), "carrier"), sealing, record.run_id, "carrier")
        record.carrier = _strings(known, "carrier")
    # What was so the last time that the run was parked or held says nothing of a run that is running.
    reason, not_before, delay = _optional(fields, "reason"), _time(fields, "not_before"), _count(fields, "delay") / 1e6
    if record.status not in _LIVE:
        record.not_before = math.inf if not_before == NEVER / 1e6 else not_before
    elif delay and record.expires is not None:
        record.not_before = record.expires + delay
    if record.status == Status.WAITING:
        names = _list(_json(fields, "waiting_for", []), "waiting_for")
        record.waiting_for = tuple(_string(name, "waiting_for") for name in names)
    if reason and sealing.hides:
        reason = _opened(_parsed(reason, "reason"), sealing, sealing.lookup(key), "reason")
    if reason and (record.status not in _LIVE or record.decision == "cancel"):
        record.reason = reason
    if "before_status" in fields:
        _status(_RUN, fields["before_status"], "before_status")
    _time(fields, "before_expires")
    _owner(fields, "before_by", "before_since")
    if (step := _json(fields, "failed_step", None)) is not None:
        record.failed_step = _string(step, "failed_step")
    if (error := _json(fields, "error", None)) is not None:
        where = "" if step is None else f" at step {safe_repr(step)}"
        error = _own(error, sealing, record.run_id, "error")
        record.error = _failure(error, record, record.failed_step, f"failed{where}")
    if (undone := _json(fields, "undone", None)) is not None:
        record.undone = tuple(_string(name, "undone") for name in _list(undone, "undone"))
    return record


def _owner(fields: Fields, by: str, since: str) -> Owner | None:
    at = _count(fields, since) / 1e6
    if by not in fields:
        return None
    known = _dict(_json(fields, by, {}), by)
    if known.keys() != {"host", "pid"}:
        raise _Foreign(f"its field {safe_repr(by)} has not just host and pid")
    return Owner(_string(known["host"], by), number(known, "pid"), at)


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
    initial = _strings(_json(fields, "values", {}), "values")
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
    seq, known = _numbered(text, field)
    name, attempts, effect = field[2:], known.get("attempts"), known.get("effect", False)
    if not _IN_A_STEP.issuperset(known) or type(effect) is not bool:
        raise _Foreign(f"its field {safe_repr(field)} has something in it that is not known of steps")
    if type(attempts) is not int or not 0 <= attempts <= LARGEST:
        raise _Foreign(f"its field {safe_repr(field)} says {safe_repr(attempts)} attempts")
    report = StepReport(_status(_STEP, known.get("status"), field), attempts)
    report.failed = _count(known, "failed")
    if "errors" in known:
        errors = _own(known["errors"], sealing, record.run_id, f"s.errors:{name}")
        report.errors = tuple(_pair(error, field) for error in _list(errors, field))
    for time in _TIMES:
        if time in known:
            setattr(report, time, _seconds(known[time], field))
    if "error" in known:
        error = _own(known["error"], sealing, record.run_id, f"s.error:{name}")
        report.error = _failure(error, record, name, f"failed at step {safe_repr(name)}")
    if "undo" in known:
        report.undo = _status(_UNDO, known["undo"], field)
    if "undo_error" in known:
        error = _own(known["undo_error"], sealing, record.run_id, f"s.undo_error:{name}")
        report.undo_error = _failure(error, record, name, f"could not undo step {safe_repr(name)}")
    if "completed_late" in known:
        report.completed_late = _status(_LANDING, known["completed_late"], field)
    carrier: dict[str, str] = {}
    if "carrier" in known:
        carrier = _strings(_own(known["carrier"], sealing, record.run_id, f"s.carrier:{name}"), field)
    if "result" not in known:
        return StepRecord(seq, report, effect=effect, carrier=carrier)
    result = _loaded(known["result"], field, sealing, types.get(field, Any), record.run_id, field)
    return StepRecord(seq, report, True, result, effect, carrier)


def _write(field: str, text: object, record: RunRecord, sealing: Sealing, types: Types) -> Write:
    if not field.startswith(WRITE):
        raise _Foreign(f"it has a field {safe_repr(field)}")
    seq, known = _numbered(text, field)
    if not known:
        return Write(seq, deleted=True)
    if known.keys() != {"value"}:
        raise _Foreign(f"its field {safe_repr(field)} has something in it that is not known of writes")
    return Write(seq, _loaded(known["value"], field, sealing, types.get(field, Any), record.run_id, field))


def _sent(field: str, text: object, record: RunRecord, sealing: Sealing) -> Sent:
    known, name = _dict(_parsed(_string(text, field), field), field), field[2:]
    if known.keys() != {"value", "at", "host", "pid", "id", "carrier"}:
        raise _Foreign(f"its field {safe_repr(field)} has something in it that is not known of values that were sent")
    return Sent(
        _loaded(known["value"], field, sealing, Any, record.run_id, field),
        number(known, "at") / 1e6,
        _string(known["host"], field),
        number(known, "pid"),
        sent_id(text, name, sealing, record.run_id),
        _strings(_own(known["carrier"], sealing, record.run_id, f"m.carrier:{name}"), field),
    )


def sent_id(text: object, name: str, sealing: Sealing, run_id: str) -> str | None:
    """What the sender of a value, as stores keep it, called it. Raises ValueError for what flowcore has not written."""
    field = SENT + name
    known = _dict(_parsed(_string(text, field), field), field).get("id")
    return None if known is None else _string(_own(known, sealing, run_id, f"m.id:{name}"), field)


def step_status(text: object) -> Status:
    """The status of a step, as stores keep it. Raises ValueError for what flowcore has not written."""
    return _status(_STEP, _numbered(text, STEP)[1].get("status"), STEP)


def _failure(known: object, record: RunRecord, step: str | None, what: str) -> RunFailed:
    stored = _strings(known, "error")
    if stored.keys() != {"type", "message", "traceback"}:
        raise _Foreign("an error in it has not just type, message and traceback")
    return RunFailed(
        f"run {record.run_id} of {safe_repr(record.workflow)} {what}: {stored['type']}: {stored['message']}",
        run=record.run_id,
        step=step,
        error_type=stored["type"],
        error_message=stored["message"],
        traceback_text=stored["traceback"],
    )


def _loaded(text: object, field: str, sealing: Sealing, annotation: Any, run_id: str, place: str) -> Any:
    given = _string(text, field)
    try:
        return sealing.loads(given, annotation, run_id, place)
    except Exception as error:
        raise _unreadable(field, error) from error


def _own(known: Any, sealing: Sealing, run_id: str, place: str) -> Any:
    """JSON of flowcore's own; in a store whose codec hides, from the codec's text."""
    return _parsed(_opened(known, sealing, run_id, place), place) if sealing.hides else known


def _opened(text: object, sealing: Sealing, run_id: str, place: str) -> str:
    given = _string(text, place)
    try:
        return sealing.open(given, run_id, place)
    except Exception as error:
        raise _unreadable(place, error) from error


def _unreadable(field: str, error: Exception) -> _Foreign:
    why = f"{type(error).__name__}: {safe_str(error, 200)}"
    return _Foreign(f"the store's codec cannot read what is in its field {safe_repr(field)} ({why})")


# -- the smallest parts: each as it must be, or _Foreign ---------------------------------------------------------------


def number(fields: Fields, name: str) -> int:
    """The whole number from 0 up in a field; raises ValueError, saying what is there instead."""
    value = fields.get(name)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _DIGITS:
        value = int(value)
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise _Foreign(f"its {name} is {'missing' if value is None else safe_repr(value)}")
    return value


def _count(fields: Fields, name: str) -> int:
    return number(fields, name) if name in fields else 0


def _time(fields: Fields, name: str) -> float | None:
    return number(fields, name) / 1e6 if name in fields else None


def _parsed(text: str, field: str) -> Any:
    try:
        return json_value(text)
    except (ValueError, RecursionError) as error:
        raise _Foreign(f"its field {safe_repr(field)} is not JSON ({safe_str(error, 200)})") from error


def _json(fields: Fields, name: str, default: object) -> Any:
    return _parsed(_text(fields, name), name) if name in fields else default


def _numbered(text: object, field: str) -> tuple[int, dict[str, Any]]:
    seq, _, known = _string(text, field).partition(" ")
    return number({field: seq}, field), _dict(_parsed(known, field), field)


def _text(fields: Fields, name: str) -> str:
    return _string(fields.get(name), name)


def _run_id(fields: Fields) -> str:
    """Messages quote it, so that one of many characters or lines is refused: flowcore writes 32 digits."""
    run_id = _text(fields, "run_id")
    if len(run_id) > _LONGEST_RUN_ID or not run_id.isprintable():
        raise _Foreign(f"its run id is {safe_repr(run_id)}")
    return run_id


def _string(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise _Foreign(f"its field {safe_repr(field)} is {'missing' if value is None else safe_repr(value)}")
    return value


def _optional(fields: Fields, name: str) -> str | None:
    return _text(fields, name) if name in fields else None


def _pair(value: object, field: str) -> tuple[str, str]:
    pair = _list(value, field)
    if len(pair) != 2:
        raise _Foreign(f"its field {safe_repr(field)} has {safe_repr(value)} in it")
    return _string(pair[0], field), _string(pair[1], field)


def _dict(value: object, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Foreign(f"its field {safe_repr(field)} has {safe_repr(value)} in it")
    return cast("dict[str, Any]", value)


def _list(value: object, field: str) -> list[object]:
    if not isinstance(value, list):
        raise _Foreign(f"its field {safe_repr(field)} has {safe_repr(value)} in it")
    return cast("list[object]", value)


def _strings(value: object, field: str) -> dict[str, str]:
    return {key: _string(text, field) for key, text in _dict(value, field).items()}


def _flag(fields: Fields, name: str) -> bool:
    value = number(fields, name) if name in fields else 0
    if value > 1:
        raise _Foreign(f"its {name} is {value}")
    return bool(value)


def _one_of(known: frozenset[str], value: object, field: str) -> str:
    if not isinstance(value, str) or value not in known:
        raise _Foreign(f"its field {safe_repr(field)} says {safe_repr(value)}, which means nothing")
    return value


def _status(known: frozenset[str], value: object, field: str) -> Status:
    return Status(_one_of(known, value, field))


def _seconds(value: object, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LARGEST:
        raise _Foreign(f"its field {safe_repr(field)} says {safe_repr(value)} seconds")
    return float(value)
