"""Protocols that break a promise of durable runs each: what the stories of crashes must find."""

from .mutants import Mutant, m

__all__ = ["MUTANTS"]

MUTANTS: tuple[Mutant, ...] = (
    # what the store is told, and when
    m(
        "a step starts though the run failed while its store was told",
        "durable",
        "    return failure is None and not x.stopped\n",
        "    return failure is None\n",
    ),
    m(
        "what the run's failure forestalled stays in flight",
        "durable",
        "    elif x.stopped and failure is None and attempt == 1:",
        "    elif False:",
    ),
    m("a zombie does not look at its clock", "durable", "and x.settings.clock() >= x.lease_until:", "and False:"),
    m("a zombie in its stride does not look at its clock", "stride", "if now < x.lease_until and", "if True and"),
    m(
        "in its stride a run is not told of who has taken it over",
        "stride",
        "if failure is None and answer is None:",
        "if failure is None:",
    ),
    m("in its stride a run does not tell of starts", "stride", ", after.name: begins}", "}"),
    m(
        "a first step starts though the lease is over",
        "durable",
        "or x.settings.clock() >= x.lease_until:",
        "or False:",
    ),
    m("a lease is never over", "durable", "    if x.settings.clock() < x.lease_until:\n", "    if True:\n"),
    m("who has lost the run goes on", "durable", "    if isinstance(answer, Lost):\n", "    if False:\n"),
    m("undoing is not told", "durable", "undoing = x.failing and not", "undoing = False and not"),
    m("a store that does not answer is not asked again", "durable", "or left <= 0 or", "or True or"),
    m(
        "starts are not told",
        "changes",
        "        self.steps[step] = StepRecord(self.seq, StepReport(Status.RUNNING, attempt))",
        "        pass",
    ),
    m(
        "results are not told",
        "changes",
        "kept = step in results and step not in self.unstorable",
        "kept = False",
    ),
    m(
        "effects are not told",
        "changes",
        "self.seq, report, kept, result, effect, self",
        "self.seq, report, kept, result, False, self",
    ),
    m(
        "writes are not told",
        "changes",
        "for key, write in self.writes.pop(name, {}).items():",
        "for key, write in ():",
    ),
    m("deleted keys come back", "changes", "Write(self.seq, deleted=True)", "Write(self.seq, 'again')"),
    m("the number of a change does not rise", "changes", "        self.seq += 1\n        kept", "        kept"),
    m(
        "further attempts are not told",
        "steps",
        "        yield from durable.begin(x, node, number + 1)\n",
        "        pass\n",
    ),
    m(
        "dependants start before the store knows",
        "execution",
        "if self.counts[index] == 1:",
        "if self.counts[index] >= 1:",
    ),
    m(
        "an undo is not told before the next one",
        "execution",
        "return bool(self.to_undo) or self.undoing is not None",
        "return False",
    ),
    # the claim
    m(
        "the fence does not rise",
        "claim",
        "x.generation, x.fence = claimed.generation, claimed.fence",
        "x.generation, x.fence = claimed.generation, 1",
    ),
    m(
        "step keys change with each owner",
        "claim",
        "x.generation, x.fence = claimed.generation, claimed.fence",
        "x.generation, x.fence = claimed.fence, claimed.fence",
    ),
    m(
        "a claim without an answer is not withdrawn",
        "claim",
        'yield from durable.ask(x, "withdraw", wanted)  # should',
        "pass  # should",
    ),
    m(
        "who has lost the run takes one that goes on for ended",
        "claim",
        "record.finished is not None and record.status not in TO_GO_ON",
        "record is not None",
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
        "what has not landed stays in flight",
        "takeover",
        "                x.not_begun(node)\n",
        "                pass\n",
    ),
    m(
        "what may have happened is asked whether it is wanted",
        "steps",
        "if node.when is not None and node.name not in x.was_in_doubt and end is None:",
        "if node.when is not None and end is None:",
    ),
    m("verify= is not asked", "takeover", "        if node.step.verify is not None:\n", "        if False:\n"),
    m("on_crash=hold is ignored", "takeover", 'node.step.on_crash == "hold"', 'node.step.on_crash == "never"'),
    m("on_crash=undo is ignored", "takeover", 'node.step.on_crash == "undo"', 'node.step.on_crash == "never"'),
    m("undoing turns round", "takeover", "undoing = record.undoing or", "undoing = False or"),
    m("an operator's undo is ignored", "takeover", 'record.decision == "undo"', "False"),
    m("an operator is asked again", "takeover", "decided = record.decision is not None", "decided = False"),
    m(
        "what is undone is undone again",
        "takeover",
        "node.name not in undone and node.name not in failed",
        "node.name not in failed",
    ),
    m("the context is lost", "takeover", "    x.values.update(record.values)\n", ""),
    m(
        "results are lost",
        "takeover",
        "for name, result in record.results.items() if name in over)",
        "for name, result in ())",
    ),
    m("what is to be undone is lost", "takeover", "for name in record.effects if name in over)", "for name in ())"),
    m("a verify= that raises is taken for no", "takeover", "    if unclear is not None:\n", "    if False:\n"),
    m(
        "what is in doubt and not begun again is left standing",
        "takeover",
        "        x.in_doubt = {",
        "        _ = {",
    ),
    m("the numbers start again", "takeover", "        x.changes.seq = record.seq\n", ""),
    m(
        "undone in the order of completion",
        "takeover",
        "due = [known[name] for name in record.effects if",
        "due = [known[name] for name in reversed(record.effects) if",
    ),
    m("the pivot is forgotten", "execution", "self.past_pivot = any(", "self.past_pivot = False and any("),
    m(
        "dependencies are forgotten",
        "execution",
        "self.counts = [sum(nodes[i].name not in over for i in node.predecessors) for node in nodes]",
        "self.counts = [0 for node in nodes]",
    ),
    m("what failed the run is forgotten", "takeover", "record.error if record.error is not None else", "None or"),
)
