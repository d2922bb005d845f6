"""The rules of the store contract. `flowcore/stores/base.py` defines the requests and the replies; these rules say
which reply is right. Every failure of the suite names the rule that the store breaks.

The rules of `claim` apply in the order in which they stand here: the first that fits decides.
"""

from __future__ import annotations

from typing import Final

__all__ = ["RULES", "broken"]

RULES: Final[dict[str, str]] = {
    # -- claim: whose run is it? ---------------------------------------------------------------------------------------
    "claim-begins": (
        "A key without a record is free: the claim begins a run of generation 0 and is Claimed, without a record."
    ),
    "claim-is-recorded": (
        "A claim that begins a run records its run id, workflow, fingerprint, graph, carrier, values and lease. Each "
        "step in `begins` is recorded as RUNNING in its first attempt, with seq 1, 2, and so on."
    ),
    "claim-again": (
        "If an owner sends its claim again, it gets the same reply, because the first one may have been lost: the "
        "same generation, fence and record, with the status and decision that the record had before the claim. The "
        "lease is renewed."
    ),
    "claim-again-after-the-end": (
        "If a claim is sent again when its run is no longer running, it is Finished with the record, whichever owner "
        "ended the run. A late copy begins nothing."
    ),
    "claim-queued": (
        "A claim with `queued` that begins a run records it as QUEUED, without steps. The same claim without `queued`"
        " is Claimed with the same generation and fence; the run is then RUNNING, with the graph, carrier and steps "
        "of that claim. A queued run with an expired lease is taken over."
    ),
    "claim-attached": (
        "A claim that waits for a run (`attached`) is Finished with the record if the run is over or held, whatever "
        "its outcome. If the run is parked or incomplete, the claim takes it over."
    ),
    "claim-attached-to-an-older-run": (
        "A claim that waits for a run that later runs have replaced begins no run. If the latest run ended as FAILURE"
        " or COMPENSATED, the claim is Finished with the record of that run."
    ),
    "claim-after-release": (
        "After FAILURE or COMPENSATED, unless held, the key is free: the generation rises by 1, the fence rises, and "
        "nothing of the old run is kept, not even its fingerprint."
    ),
    "claim-mismatch": (
        "A claim whose fingerprint is not that of the record is a Mismatch, whatever the state of the run. The "
        "fingerprint None fits every record."
    ),
    "claim-held": "A claim of a held key is Held, whatever the status of the run.",
    "claim-success": "After SUCCESS a claim is Finished with the record.",
    "claim-takeover": (
        "A run that is INCOMPLETE, PARKED, or RUNNING with an expired lease is taken over. The claim is Claimed with "
        "the same generation, a higher fence, and the record as it was before, including the run id. From then on the"
        " run is running, not finished, and leased to the new owner."
    ),
    "claim-other-graph": (
        "A run with another recorded graph is not taken over: OtherGraph has the recorded graph, and nothing changes."
    ),
    "claim-busy": (
        "A claim of a run with a live lease is Busy, with the run id and carrier of that run; `lease_left` is the "
        "seconds that its lease has left."
    ),
    "claim-once": (
        "A claim with `once` is Finished if a run with the key has failed, and Mismatch if it had another fingerprint. It "
        "begins a run if none has ended: after a withdrawal or a release."
    ),
    "claim-by-many": "If many threads or processes send claims at the same time, exactly one is Claimed.",
    # -- at all times --------------------------------------------------------------------------------------------------
    "fence-rises": (
        "The fence of a key rises with each owner and never falls; on a durable store, not even after the record was "
        "deleted."
    ),
    "nothing-is-written": (
        "A call to which the store replies Lost, False, Finished, Busy, Mismatch, Held or an error changes nothing in"
        " the record."
    ),
    "late-copies": (
        "A late copy of a call gets the reply that is right for the present state, and changes nothing, except that "
        "it may renew the lease of the present owner."
    ),
    "time-passes": "A lease that is not renewed expires, by the clock of the store.",
    "ages": "`age` is the seconds since the run began, over all its owners.",
    "model": (
        "For any calls in any order, with any late copies, the replies of the store are those of the model of this "
        "contract (model.py)."
    ),
    # -- checkpoint, renew, finish, withdraw ---------------------------------------------------------------------------
    "lost": (
        "checkpoint and finish return Lost if the record has another run or another fence, and Lost(gone=True) if "
        "there is no record."
    ),
    "late-after-the-end": (
        "checkpoint and finish with the fence of a run that is no longer running return None and write nothing: they "
        "are late copies."
    ),
    "highest-seq-wins": (
        "Of each step and of each key of the context, the version with the highest seq is kept. Each of them has its "
        "own seq; an equal seq changes nothing."
    ),
    "checkpoint-renews": "A checkpoint renews the lease, even an expired one, as long as the run was not taken over.",
    "unrenewed": (
        "A checkpoint with renews=False may leave the lease as it is. It changes the record as any other checkpoint "
        "does, and gets the same reply."
    ),
    "undoing-stays": (
        "`undoing` becomes false again only when the run ends as failed, with nothing undone, so that an operator may resume "
        "it. failed_step and error stay as recorded until others are recorded."
    ),
    "decision-is-heard": (
        "Each new owner gets the decision of an operator, until the first checkpoint or the ending of an owner shows "
        "that it has the decision."
    ),
    "renew": (
        "renew returns for each lease, in order, whether the record, run id and fence are still the same and the run "
        "is running. If so, the lease is renewed, even if it had expired."
    ),
    "finish": (
        "finish applies its changes, and then its status, held, undone, failed_step and error. The run is then "
        "finished and has no lease."
    ),
    "takeovers": (
        "`takeovers` counts how often the running run was taken over since a step or an undo of it last ended. A "
        "checkpoint or an ending that records such an end sets it to 0; the start of a wait is not an end."
    ),
    "previous-owner": (
        "The record names the owner before the present one, from the claim of the present owner until another one "
        "resumes the run, also when the run has ended."
    ),
    "finish-late": "The owner of a run with an expired lease may still finish it, until the run is taken over.",
    "withdraw-begun": (
        "withdraw of a claim that began its run releases the key: the status is FAILURE, and the fence rises."
    ),
    "withdraw-takeover": (
        "withdraw of a claim that took a run over gives the run its status from before, and other owners may resume "
        "it at once. No takeover is counted, and the decision stays."
    ),
    "withdraw-other": "withdraw changes nothing if the run is not running or has another owner.",
    # -- waits ---------------------------------------------------------------------------------------------------------
    "send": (
        "send of a value to a wait of the recorded graph returns True. The record has the value, host, process and "
        "time, and the `id` and carrier of the sender. `received` counts the values, also in a head."
    ),
    "send-first": (
        "The first value that is sent to a wait counts for ever. For any other value, send returns False and changes "
        "nothing; for a value with the same `id`, it returns True."
    ),
    "send-refused": (
        "send raises RunNotFound for an unknown key. It raises SendRefused if the graph has no such wait, the wait "
        "has ended, or the run is over or being undone."
    ),
    "send-is-heard": (
        "renew returns SENT, each time, for a run to which more values were sent than its owner knows. CANCEL has "
        "priority."
    ),
    "waits": (
        "A run that finishes as WAITING has no lease and no time of its end. It has the waits that it waits for, and "
        "in `not_before` the time until which it waits, infinite without a limit. Until then a claim is Busy with "
        "that time."
    ),
    "wakes": (
        "A waiting run is due as soon as a value is sent to a wait that it waits for, and otherwise at its "
        "`not_before`. It is then claimed as it was, which does not count as a takeover."
    ),
    "arrived": (
        "finish as WAITING returns Arrived and writes nothing if more values were sent than the owner knows, or if "
        "the run is to be cancelled or undone."
    ),
    # -- contents of records -------------------------------------------------------------------------------------------
    "results": "`results` has the results of all steps that have one, in the order of seq.",
    "steps": "`steps` has the report of every recorded step.",
    "effects": "`effects` has the ended steps with an effect, in the order of seq, and then all running steps.",
    "values": "`values` has the values of the claim, with the latest write or deletion of each key.",
    "carriers": (
        "The carriers of a run and of its steps come back as they were given. A run keeps the carrier of its first "
        "owner."
    ),
    "seq": "`seq` of a record is the highest seq of its steps and writes.",
    "errors": (
        "An error comes back as it was, or as a RunFailed with the run, the step, and the type and message of the "
        "error."
    ),
    "values-round-trip": "JSON values come back as they were: numbers to the last digit, empty lists as lists.",
    "not-serializable": (
        "A value that the store cannot keep is refused with NotSerializable, which names the step or the key, before "
        "anything is written."
    ),
    "keys-are-literal": (
        "Keys are taken literally: keys that differ in any way are different keys. A key that the store cannot keep "
        "is refused with a FlowcoreError."
    ),
    "records-are-copies": (
        "Returned records of a run in progress are copies: later changes of the run do not change them."
    ),
    # -- finding records -----------------------------------------------------------------------------------------------
    "find": "find returns the record under a key, or None.",
    "get-run": (
        "get_run returns the record of a run id. It raises RunNotFound if there is none or another run has the key now."
    ),
    "list-resumable": (
        "list_resumable returns the runs of these workflows that recovery may resume now, the oldest first: those "
        "that are not held and are INCOMPLETE, PARKED, or QUEUED or RUNNING with an expired lease."
    ),
    "list-runs": (
        'list_runs filters by status (or "held" or "expired"), by workflow, and by the seconds since the run began.'
    ),
    "counts": (
        "counts returns by (workflow, status) how many runs are held or not over. Each counts once: as held, else as "
        "expired, else by its status."
    ),
    "retention": (
        "A run that has ended, is not held and cannot be resumed is deleted after the retention. No other run is ever"
        " deleted."
    ),
    "about-itself": (
        "A store has a name of one word, and says whether it is durable and whether it blocks. doctor returns texts "
        "and numbers, gc returns a number."
    ),
    # -- operators -----------------------------------------------------------------------------------------------------
    "not-found": "release, erase, hold, resume and undo raise RunNotFound for a key without a record.",
    "not-while-running": (
        "For a run with a live lease, hold and resume raise StoreError, and so do release and erase unless forced."
    ),
    "release": (
        "release leaves the run as FAILURE, not held, finished now, with a higher fence. The next claim begins a new "
        "run, and the old owner, if there is one, is Lost."
    ),
    "erase": (
        "erase keeps of a run that is over its key, run id, workflow, graph, status, numbers and times. It deletes "
        "the values, results, steps, errors, carriers and fingerprint. A used key stays used: another claim is a "
        "Mismatch until release. A run that is held or not over is erased only if forced, and is released first."
    ),
    "hold": "After hold, every claim of the key is refused until release, resume or undo.",
    "order": (
        "undo and cancel of a run with a live lease are recorded. Its owner gets them with each renewal and "
        "checkpoint, until a checkpoint with `undoing` or its ending."
    ),
    "decide": (
        "resume, undo and cancel apply to runs that are held, parked, incomplete or expired: these are then not held,"
        " can be taken over, and have the decision in the record. For all other runs they raise StoreError."
    ),
    "operators-fence": (
        "hold, resume and undo of a run with an expired lease fence its owner off: the owner is Lost, and if it sends"
        " its claim again, it is not Claimed."
    ),
}
"""the rules by name"""


def broken(rule: str, detail: object = "") -> str:
    """Return the message of a failed assertion: the rule, where it is written, and what was seen."""
    return f"[{rule}] {RULES[rule]}\n(flowcore/testing/conformance/rules.py) Here: {detail}"
