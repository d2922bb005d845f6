"""The rules of the store contract. `flowcore/stores/base.py` defines the requests and the replies; these rules say
which reply is right. Every failure of the suite names the rule that the store breaks.

The rules of `claim` apply in the order in which they stand here: the first that fits decides.
"""

from __future__ import annotations

from typing import Final

__all__ = ["RULES", "broken"]

RULES: Final[dict[str, str]] = {
    # -- claim: whose run is it? ---------------------------------------------------------------------------------------
    "claim-begins": "A key without a record is free: the claim begins a run of generation 0 and is Claimed, without a "
    "record.",
    "claim-is-recorded": "A claim that begins a run records run id, workflow, fingerprint, graph, carrier, values, and "
    "its lease; and each step of `begins` as RUNNING in its first attempt, with seq 1, 2, and so on.",
    "claim-again": "The same claim again, from whom it made the owner, gets the same answer (generation, fence, and the "
    "record it went on with, its status and decision as they were before), and the lease is renewed: the first answer may "
    "have been lost.",
    "claim-again-after-the-end": "The same claim again, once the run is not running any more, is Finished with the record, "
    "by whichever owner it ended: a late copy begins nothing.",
    "claim-queued": "A claim with `queued` that begins a run records it as QUEUED, without steps. The same run's claim "
    "without it is Claimed with the same generation and fence, and the run is RUNNING, with the graph, carrier and steps of "
    "that claim. A queued run with an expired lease is taken over.",
    "claim-attached": "A claim that waits for a run (`attached`) that is over or held is Finished with its record, whatever "
    "came of it; one that is parked or incomplete is resumed.",
    "claim-attached-to-an-older-run": "A claim that waits for a run that later runs have replaced begins no run of its own: after "
    "FAILURE or COMPENSATED of theirs he is Finished with that.",
    "claim-after-release": "After FAILURE or COMPENSATED, unless held, the key is free: the generation rises by 1, the fence "
    "rises, and nothing of the old run is left, its fingerprint neither.",
    "claim-mismatch": "A claim with another fingerprint than the record's is a Mismatch, whatever the run's state; None "
    "fits every record.",
    "claim-held": "A key that is held is Held, whatever the status.",
    "claim-success": "After SUCCESS the answer is Finished with the record.",
    "claim-takeover": "A run that is INCOMPLETE, PARKED, or running with an expired lease is taken over: Claimed with the same "
    "generation, a higher fence, and the record as it was before, run id and all; from then on it is running, not finished, "
    "and leased to the new owner.",
    "claim-other-graph": "A run that began with another graph is not taken over: OtherGraph names the recorded graph, "
    "and nothing changes.",
    "claim-busy": "A run with a live lease is Busy, with its run id and carrier, and in lease_left the seconds that its lease "
    "has left.",
    "claim-once": "A claim with `once` is Finished where a run with the key has failed; it begins anew where no run has ended: after a "
    "withdrawal or a release.",
    "claim-by-many": "Of many claims at once, by threads or processes, exactly one is Claimed.",
    # -- at all times --------------------------------------------------------------------------------------------------
    "fence-rises": "The fence of a key rises with each owner, and never falls; on a durable store not even after its record "
    "was forgotten.",
    "nothing-is-written": "What is answered with Lost, False, Finished, Busy, Mismatch, Held or an error changes nothing in "
    "the record.",
    "late-copies": "A copy of a verb that comes late, after whatever came since, is answered by what holds now, and changes "
    "nothing (but a lease, for its present owner).",
    "time-passes": "A lease that is not renewed runs out, by the store's own clock.",
    "ages": "`age` is the seconds since the run began, over all its owners.",
    "model": "Whatever is asked, and in whatever order, and however late its copies come, the store answers as the small "
    "model of this contract does (model.py).",
    # -- checkpoint, renew, finish, withdraw ---------------------------------------------------------------------------
    "lost": "checkpoint and finish answer Lost where another run or another fence stands in the record, and Lost(gone=True) "
    "where there is none.",
    "late-after-the-end": "checkpoint and finish with the fence of a run that is not running any more answer None: it is a "
    "late copy, and nothing is written.",
    "highest-seq-wins": "Of each step and of each key of the context, what has the highest seq stays; each has a number of its "
    "own, and an equal one changes nothing.",
    "checkpoint-renews": "A checkpoint renews the lease, also one that has run out, as long as the run was not taken over.",
    "undoing-stays": "`undoing` never goes back; failed_step and error stay as they were recorded until others are.",
    "decision-is-heard": "The next owner gets an operator's decision, and so does the one after, until an owner's first "
    "checkpoint or its ending shows that it was heard.",
    "renew": "renew answers for each lease, in order, whether record, run id and fence are still the same and the run is "
    "running; those are leased from now on, also where the lease had run out.",
    "finish": "finish applies its changes, then status, held, undone, failed_step and error; the run is finished now, and has "
    "no lease.",
    "takeovers": "`takeovers` counts how often a running run was taken over since a step or an undo of it last ended; a checkpoint "
    "or an ending that records such an end sets it to 0.",
    "finish-late": "A run whose lease has run out may still be finished by its owner until it is taken over.",
    "withdraw-begun": "withdraw of a claim that began its run releases the key: FAILURE, and the fence rises.",
    "withdraw-takeover": "withdraw of a claim that took a run over ends its lease, so that others may; the decision stays.",
    "withdraw-other": "withdraw changes nothing where the run is not running, or has another owner.",
    # -- waits ---------------------------------------------------------------------------------------------------------
    "send": "send of a value to a wait of the recorded graph is True, and the record has the value, host, process and time, the "
    "sender's `id` and carrier; `received` counts the values, also in a head.",
    "send-first": "The first value that is sent to a wait counts, for ever: any other is False, and changes nothing. The same `id` "
    "again is True.",
    "send-refused": "send raises RunNotFound for an unknown key, and SendRefused where the graph has no such wait, its step has "
    "ended, or the run is over or being undone.",
    "send-is-heard": "renew answers SENT for a run to which more values were sent than its owner knows, each time; CANCEL comes "
    "first.",
    "waits": "A run that is finished as WAITING has no lease and is not finished; it says for what it waits, and in `not_before` "
    "until when, infinite without a limit; a claim is Busy until then, and says so.",
    "wakes": "A run that waits is due at once when a value is sent for which it waits, and else at its `not_before`; then it is "
    "taken over as it was, which counts as no takeover.",
    "arrived": "finish as WAITING is Arrived, and writes nothing, where more values were sent than the owner knows, or the run "
    "is to be cancelled or undone.",
    # -- contents of records -------------------------------------------------------------------------------------------
    "results": "`results` are those of the steps that have one, in the order of seq.",
    "steps": "`steps` has the report of every step that was recorded.",
    "effects": "`effects` are the ended steps with an effect in the order of seq, then all that are running.",
    "values": "`values` are the claim's, with the latest write or deletion of each key.",
    "carriers": "The carriers of run and steps come back as they were given; a run keeps that of its first owner.",
    "seq": "`seq` of a record is the highest of its steps and writes.",
    "errors": "An error comes back as it was, or as a RunFailed with the run, the step, and the error's type and message.",
    "values-round-trip": "JSON values come back as they were, numbers to the last digit, empty lists as lists.",
    "not-serializable": "A value that the store cannot keep is refused with NotSerializable, naming the step or the key, "
    "before anything is written.",
    "keys-are-literal": "Keys are taken literally: two that differ in anything are two, and what the store cannot keep as a key "
    "is refused with a FlowcoreError.",
    "records-are-copies": "Records of a run that goes on are the asker's own: what comes later does not change them.",
    # -- finding records -----------------------------------------------------------------------------------------------
    "find": "find answers the record under a key, or None.",
    "get-run": "get_run answers the record of a run id, and raises RunNotFound where there is none, or another run has its "
    "key by now.",
    "list-resumable": "list_resumable lists the runs of these workflows that recovery may resume now, the oldest due first: "
    "not held, and INCOMPLETE, PARKED, or QUEUED or RUNNING with an expired lease.",
    "list-runs": 'list_runs filters by status ("held" and "expired" are words for it too), by workflow, and by the seconds '
    "since the run began.",
    "retention": "A run that has ended, not held, and not resumable, is forgotten after the retention; all others "
    "never are.",
    "about-itself": "A store says its name in one word, whether it is durable and whether it blocks; doctor returns texts and "
    "numbers, gc a number.",
    # -- operators -----------------------------------------------------------------------------------------------------
    "not-found": "release, erase, hold, resume and undo raise RunNotFound for a key without a record.",
    "not-while-running": "release and erase (unless forced), hold and resume raise StoreError for a run with a live lease.",
    "release": "release leaves FAILURE, not held, finished now, with a higher fence: the next claim begins afresh, and the old "
    "owner, if there is one, is Lost.",
    "erase": "erase leaves of a run that is over its key, run id, workflow, graph, status, numbers and times: no values, results, "
    "steps, errors, carriers and fingerprint. A key that was used up stays so: another claim is a Mismatch until release. A run "
    "that is not over, or is held, is erased by force only, and given up first.",
    "hold": "hold refuses every claim of the key until release, resume or undo.",
    "order": "undo and cancel of a run with a live lease are in its record, and its owner hears of them with each renewal and checkpoint, "
    "until a checkpoint that undoes, or its ending.",
    "decide": "resume, undo and cancel are for runs that are held, parked, incomplete or expired: not held any more, to be taken over, "
    "with the decision in the record; StoreError for all others.",
    "operators-fence": "hold, resume and undo of a run whose lease has run out shut its owner out: it is Lost, and its claim "
    "again is not Claimed.",
}
"""the rules by name"""


def broken(rule: str, detail: object = "") -> str:
    """Return the message of a failed assertion: the rule, where it is written, and what was seen."""
    return f"[{rule}] {RULES[rule]}\n(flowcore/testing/conformance/rules.py) Here: {detail}"
