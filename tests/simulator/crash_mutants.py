"""Protocols that break a promise of durable runs each: what the stories of crashes must find."""

from .mutants import Mutant, m

__all__ = ["MUTANTS"]

MUTANTS: tuple[Mutant, ...] = (
    # what the store is told, and when
    m(
        "a step starts though the run failed while its store was told",
        "ledger",
        "            self.withdrawn(run, node, errors)\n        return failure is None and not run.stopped\n",
        "            self.withdrawn(run, node, errors)\n        return failure is None\n",
    ),
    m(
        "what the run's failure forestalled stays in flight",
        "ledger",
        "        elif run.stopped and failure is None:",
        "        elif False:",
    ),
    m(
        "a zombie does not look at its clock",
        "checkpoints",
        "and run.settings.clock() >= ledger.lease_until:",
        "and False:",
    ),
    m("a zombie in its stride does not look at its clock", "fast_checkpoints", "if at < until and", "if True and"),
    m(
        "in its stride a run is not told of who has taken it over",
        "fast_checkpoints",
        "if failure is None and answer is None:",
        "if failure is None:",
    ),
    m("in its stride a run does not tell of starts", "fast_checkpoints", ", after.name: begins}", "}"),
    m(
        "in its stride a run does not tell of its last step",
        "fast_checkpoints",
        "ledger.steps[name] = done",
        "pass",
    ),
    m(
        "a first step starts though the lease is over",
        "ledger",
        "            or run.settings.clock() >= self.lease_until\n",
        "            or False\n",
    ),
    m(
        "a lease is never over",
        "ledger",
        "        if run.settings.clock() < self.lease_until:\n",
        "        if True:\n",
    ),
    m("who has lost the run goes on", "checkpoints", "    if isinstance(answer, Lost):\n", "    if False:\n"),
    m("undoing is not told", "checkpoints", "undoing = run.failing and not", "undoing = False and not"),
    m("a store that does not answer is not asked again", "checkpoints", "or left <= 0 or", "or True or"),
    m(
        "starts are not told",
        "unsaved",
        "        self.steps[step] = StepRecord(self.seq, report)\n\n    def note_wait",
        "        self.steps.pop(step, None)\n\n    def note_wait",
    ),
    m(
        "results are not told",
        "unsaved",
        "kept = step in results and step not in self.unstorable",
        "kept = False",
    ),
    m(
        "effects are not told",
        "unsaved",
        "self.seq, report, kept, result, effect, self",
        "self.seq, report, kept, result, False, self",
    ),
    m(
        "writes are not told",
        "unsaved",
        "for key, write in self.writes.pop(name, {}).items():",
        "for key, write in ():",
    ),
    m("deleted keys come back", "unsaved", "Write(self.seq, deleted=True)", "Write(self.seq, 'again')"),
    m("the number of a change does not rise", "unsaved", "        self.seq += 1\n        kept", "        kept"),
    m(
        "further attempts are not told",
        "attempts",
        "            yield from run.ledger.began(run, node, self.number + 1, self.errors)\n",
        "            pass\n",
    ),
    m(
        "dependants start before the store knows",
        "ledger",
        "if run.counts[index] == 1:",
        "if run.counts[index] >= 1:",
    ),
    m(
        "an undo is not told before the next one",
        "ledger",
        "more = bool(run.to_undo) or run.undoing is not None",
        "more = False",
    ),
    # the claim
    m(
        "the fence does not rise",
        "claim",
        "run.generation, run.fence = claimed.generation, claimed.fence",
        "run.generation, run.fence = claimed.generation, 1",
    ),
    m(
        "step keys change with each owner",
        "claim",
        "run.generation, run.fence = claimed.generation, claimed.fence",
        "run.generation, run.fence = claimed.fence, claimed.fence",
    ),
    m(
        "a claim without an answer is not withdrawn",
        "claim",
        'yield from checkpoints.ask(run, "withdraw", wanted)  # in',
        "pass  # in",
    ),
    m(
        "who has lost the run takes one that goes on for ended",
        "waiting",
        "failure is None and head.finished is not None and head.status not in RESUMABLE",
        "failure is None",
    ),
    # the takeover
    m(
        "what is done is done again",
        "takeover",
        "_OVER: Final = frozenset({Status.SUCCESS, Status.SKIPPED})",
        "_OVER: Final = frozenset({Status.SKIPPED})",
    ),
    m(
        "what was skipped is asked again",
        "takeover",
        "_OVER: Final = frozenset({Status.SUCCESS, Status.SKIPPED})",
        "_OVER: Final = frozenset({Status.SUCCESS})",
    ),
    m(
        "what was in flight is in no doubt",
        "takeover",
        "frozenset({Status.RUNNING, Status.UNKNOWN,",
        "frozenset({Status.UNKNOWN,",
    ),
    m("what has landed is done again", "takeover", "        if isinstance(answer, Landed):\n", "        if False:\n"),
    m("what has not landed is undone", "takeover", "            lacking.append(node)\n", "            pass\n"),
    m(
        "what may have happened is asked whether it is wanted",
        "steps",
        "if node.when is not None and not asked and end is None:",
        "if node.when is not None and end is None:",
    ),
    m("verify= is not asked", "takeover", "        if node.step.verify is not None:\n", "        if False:\n"),
    m("on_crash=hold is ignored", "takeover", 'node.step.on_crash == "hold"', 'node.step.on_crash == "never"'),
    m("on_crash=undo is ignored", "takeover", 'node.step.on_crash == "undo"', 'node.step.on_crash == "never"'),
    m("undoing turns round", "takeover", "record.undoing or record.decision in", "False or record.decision in"),
    m("an operator's undo is ignored", "takeover", 'record.decision in {"undo", "cancel"} or', "False or"),
    m("an operator is asked again", "takeover", "decided = record.decision is not None", "decided = False"),
    m(
        "what is undone is undone again",
        "takeover",
        "node.name not in undone and node.name not in failed",
        "node.name not in failed",
    ),
    m("the context is lost", "takeover", "    run.values.update(record.values)\n", ""),
    m(
        "results are lost",
        "takeover",
        "for name, result in record.results.items() if name in over)",
        "for name, result in ())",
    ),
    m(
        "what is to be undone is lost",
        "takeover",
        "for name in effects if name in over and",
        "for name in () if name in over and",
    ),
    m("a verify= that raises is taken for no", "takeover", "    if unclear is not None:\n", "    if False:\n"),
    m(
        "what is in doubt and not begun again is left standing",
        "takeover",
        "        ledger.in_doubt = {",
        "        in_doubt = {",
    ),
    m(
        "the numbers start again",
        "takeover",
        "        ledger.found(record)\n",
        "        pass\n",
    ),
    m(
        "undone in the order of completion",
        "takeover",
        "due = [known[name] for name in dict.fromkeys((*record.effects, *given_up)) if",
        "due = [known[name] for name in reversed(dict.fromkeys((*record.effects, *given_up))) if",
    ),
    m(
        "the pivot is forgotten",
        "takeover",
        'run.past_pivot = run.workflow.undo == "never" or any(',
        "run.past_pivot = False and any(",
    ),
    m(
        "dependencies are forgotten",
        "takeover",
        "run.counts = [sum(nodes[i].name not in over for i in node.predecessors) for node in nodes]",
        "run.counts = [0 for node in nodes]",
    ),
    m(
        "what failed the run is forgotten",
        "takeover",
        "own_error(run.workflow, error) if error is not None else",
        "None or",
    ),
)
