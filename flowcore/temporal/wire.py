"""The messages between a caller, the Temporal workflow of its run, and the activities of its steps. They are JSON, and
nothing is pickled.

A run is sent as the flat mapping of texts that durable stores keep (see flowcore.stores.encoding). Results and values
stay the codec's texts until the code of a caller or a step needs them: the workflow, which is replayed, never decodes
one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final, NotRequired, TypedDict

from .._wire import pack_error, unpack_error
from ..errors import DefinitionError
from ..run import Sent, StepReport
from ..status import Status
from ..stores.base import Checkpoint, Claim, Ending, RunRecord, StepRecord
from ..stores.codec import Codec
from ..stores.encoding import Encoding
from .sizes import ERRORS, LARGEST, brief, size_of

__all__ = [
    "TEXTS",
    "Outcome",
    "Request",
    "SentValue",
    "StepInput",
    "StepOutput",
    "Tried",
    "decode_outcome",
    "encode_outcome",
    "fields_of",
    "pack_sent",
    "plain_encoding",
    "times_of",
]

Packed = dict[str, Any]
"""an error as plain data: see flowcore._wire"""
_UNTYPED: Final[Mapping[str, Any]] = MappingProxyType({})
_ENDINGS: Final = frozenset(
    {
        *(Status.SUCCESS, Status.FAILURE, Status.COMPENSATED, Status.COMPENSATION_FAILED),
        *(Status.INCOMPLETE, Status.PARKED, Status.WAITING),
    }
)


class _Texts:
    """The codec for records in the Temporal workflow, where all results and values are texts already."""

    plain = True

    def dumps(self, value: Any, type: Any, /) -> str:  # noqa: A002 - a codec's word
        text: str = value
        return text

    def loads(self, text: str, type: Any, /) -> Any:  # noqa: A002 - see above
        return text


TEXTS: Final = Encoding(_Texts())
"""the encoding of records whose results and values are already the codec's texts"""


class SentValue(TypedDict):
    """A value that was sent to a wait: see flowcore.run.Sent. `value`: the codec's text of it."""

    value: str
    at: float
    host: str
    pid: int
    id: str | None
    carrier: dict[str, str]


def pack_sent(sent: Sent) -> SentValue:
    """A value that was sent to a wait, as plain data."""
    return {
        "value": sent.value,
        "at": sent.at,
        "host": sent.host,
        "pid": sent.pid,
        "id": sent.id,
        "carrier": dict(sent.carrier),
    }


class Request(TypedDict):
    """The argument of the Temporal workflow. `fields`: the run's record; at first that of its claim. `lease`, `grace`:
    seconds. `wall`: when the caller started the run, in seconds since the epoch. `errors`: the errors of the record, as
    plain data. `raised`: the error that the caller gets. `sent`: the values that were sent to waits. `resumed`: whether
    the record comes from an earlier execution, which left the run waiting for a decision. `park_after`: seconds of a
    backoff that an activity waits for at most; missing or None: any. `counted`: as in Outcome, of the earlier
    execution."""

    fields: dict[str, str]
    lease: float
    grace: float
    wall: float
    parallel: int
    namespace: str
    max_takeovers: int
    fence: int
    errors: dict[str, Packed]
    raised: Packed | None
    sent: dict[str, SentValue]
    resumed: bool
    retry_in: float | None
    park_after: NotRequired[float | None]
    counted: NotRequired[list[str]]


class Tried(TypedDict):
    """The attempts of a step that have failed in earlier activities. `errors`, `times`: error, start and end of each, or
    of the first and last of many. `started`: when the first one began, in seconds since the epoch. `failed`: how many
    there were. `times` and `failed` are missing from runs of earlier releases."""

    errors: list[tuple[str, str]]
    started: float | None
    times: NotRequired[list[tuple[float, float]]]
    failed: NotRequired[int]


class StepInput(TypedDict):
    """The argument of an activity: all that one step or undo, or one call of `when=` or `verify=`, needs from its run.

    `kind`: do, undo, when or verify. `values`, `results`: the codec's texts; `more`: steps whose results the activity
    may fetch; `fetch`: those that it must fetch first, because the input has no room for them; `fetch_values`: the same
    for the values. `reports`: statuses of steps without a result. `timeout`: seconds for `verify=`. `deadline`, `ready_at`,
    `wall`: seconds since the epoch. `order`: the place of an undo in the order of undos, from 1. `error`: the error
    that failed the run. `park_after`: seconds; a longer backoff is left to the workflow. `tried`: missing before the
    first attempt.
    """

    workflow: str
    step: str
    kind: str
    run_id: str
    key: str
    generation: int
    namespace: str
    fence: int
    values: dict[str, str]
    results: dict[str, str]
    more: list[str]
    reports: dict[str, str]
    deadline: float | None
    ready_at: float
    wall: float
    grace: float
    max_takeovers: int
    timeout: float | None
    error: Packed | None
    failed_step: str | None
    order: int
    carrier: dict[str, str]
    carriers: dict[str, dict[str, str]]
    park_after: NotRequired[float]
    tried: NotRequired[Tried]
    fetch: NotRequired[list[str]]
    fetch_values: NotRequired[bool]


class StepOutput(TypedDict):
    """How an activity ended.

    `value`: the codec's text of the result. `writes`: texts by key, None for a key that was deleted. `times`: when the
    step started, in seconds since the epoch, and how many seconds it waited, ran and backed off. `attempt_times`: start
    and end of each attempt, if there may be several. `late`, `late_at`: how an abandoned attempt completed in the end,
    and when, in seconds since the epoch. `in_doubt`: whether the step may have had its effect, whatever `status` says.
    `decision`: what `on_crash=` decided on a step whose worker died: undo, or hold, with the reason in `reason`.
    `retry_at`: when the next attempt is due, in seconds since the epoch, if the backoff is left to the workflow; all
    else is then that of the latest attempt. `answer`: what `when=` returned, or what `verify=` returned: landed (with
    `value`), not landed, or None.
    """

    status: str
    attempts: int
    errors: NotRequired[list[tuple[str, str]]]
    failed: NotRequired[int]
    value: NotRequired[str]
    error: NotRequired[Packed]
    writes: NotRequired[dict[str, str | None]]
    times: NotRequired[tuple[float, float, float, float]]
    attempt_times: NotRequired[list[tuple[float, float]]]
    late: NotRequired[str]
    late_at: NotRequired[float]
    in_doubt: NotRequired[bool]
    decision: NotRequired[str]
    reason: NotRequired[str]
    retry_at: NotRequired[float]
    carrier: NotRequired[dict[str, str]]
    fence: NotRequired[int]
    answer: NotRequired[bool | str | None]


class Outcome(TypedDict):
    """The record of a run, ended or not, with its errors as plain data. `errors`: the errors of steps by name; the
    error of the run itself is under "", and that of an undo under "undo:" with the step's name. `raised`: the error
    that the caller gets. `counted`: classes of the hooks of a worker that have counted the end of the run."""

    fields: dict[str, str]
    errors: dict[str, Packed]
    raised: Packed | None
    counted: NotRequired[list[str]]


def plain_encoding(codec: Codec | None) -> Encoding:
    """The encoding for a codec that leaves keys and errors as they are. Raises DefinitionError for a codec that hides
    them."""
    encoding = Encoding(codec)
    if encoding.sealing.hides:
        raise DefinitionError(
            "codec= must have the attribute plain = True here. To encrypt, give Temporal's client a payload codec, which sees "
            "all that is sent."
        )
    return encoding


def fields_of(encoding: Encoding, record: RunRecord, types: Mapping[str, Any] = _UNTYPED) -> dict[str, str]:
    """Encode a whole record as texts."""
    claim = Claim(
        record.key,
        record.run_id,
        record.workflow,
        record.fingerprint,
        record.graph,
        record.carrier,
        record.values,
        deadline=record.deadline,
        types=types,
    )
    names = dict.fromkeys((*record.results, *record.effects, *record.steps))
    steps = {
        name: StepRecord(
            seq,
            record.steps.get(name, StepReport(Status.SUCCESS, 1)),
            name in record.results,
            record.results.get(name),
            name in record.effects,
            record.carriers.get(name, {}),
        )
        for seq, name in enumerate(names, 1)
    }
    fields = encoding.encode_claim(claim)
    changes = Checkpoint(record.key, record.run_id, record.fence, 0.0, steps, types=types)
    if record.status in _ENDINGS:
        fields |= encoding.encode_ending(Ending(record, changes))
    else:
        fields |= encoding.encode_checkpoint(changes)
        fields["status"] = str(record.status)
        fields["reason"] = encoding.encode_reason(record.key, record.reason)
    if record.undoing:
        fields["undoing"] = "1"
    if record.decision is not None:
        fields["decision"] = record.decision
    return fields | times_of(record.started, record.finished, record.fence)


def times_of(started: float, finished: float | None = None, fence: int = 1) -> dict[str, str]:
    """The fields of a record that a store itself counts. `started`, `finished`: seconds since the epoch."""
    fields = {"generation": "0", "fence": str(fence), "started": str(round(started * 1e6))}
    if finished is not None:
        fields["finished"] = str(round(finished * 1e6))
    return fields


def encode_outcome(record: RunRecord, raised: BaseException | None = None) -> Outcome:
    """Encode a record whose values are texts already, and the error that its caller gets."""
    outcome = _encoded(record, raised, _ErrorPacker())
    if size_of(outcome) > LARGEST:  # hundreds of undos have failed
        bare = copy.copy(record)
        bare.steps = {name: replace(step, error=None, undo_error=None) for name, step in record.steps.items()}
        outcome = _encoded(record, raised, lambda error: brief(pack_error(error), shortest=True))
        outcome["fields"] = fields_of(TEXTS, bare)
    return outcome


def _encoded(record: RunRecord, raised: BaseException | None, pack: Callable[[BaseException], Packed]) -> Outcome:
    packed = None if raised is None else pack(raised)
    errors: dict[str, Packed] = {}
    if record.error is not None:
        errors[""] = pack(record.error)
    for name, report in record.steps.items():
        if report.error is not None:
            errors[name] = pack(report.error)
        if report.undo_error is not None:
            errors[f"undo:{name}"] = pack(report.undo_error)
    return {"fields": fields_of(TEXTS, record), "errors": errors, "raised": packed}


class _ErrorPacker:
    """Packs the errors of one record: the later ones briefly, if those before take much room."""

    def __init__(self) -> None:
        self._left = ERRORS

    def __call__(self, error: BaseException) -> Packed:
        packed = pack_error(error)
        size = size_of(packed)
        if size > self._left:
            packed = brief(packed)
            size = size_of(packed)
        self._left -= size
        return packed


def decode_outcome(
    fields: Mapping[str, str], errors: Mapping[str, Packed], encoding: Encoding, types: Mapping[str, Any] = _UNTYPED
) -> RunRecord:
    """Decode a record, with its errors as they were raised, if that is possible. Raises CorruptRecord."""
    record = encoding.decode(fields["key"], fields, types)
    if "" in errors:
        record.error = unpack_error(errors[""], record.run_id, record.failed_step)
    for name, report in record.steps.items():
        if name in errors:
            report.error = unpack_error(errors[name], record.run_id, name)
        if f"undo:{name}" in errors:
            report.undo_error = unpack_error(errors[f"undo:{name}"], record.run_id, name)
    return record
