"""SQLiteStore among processes: killed between any two statements, many at once, and across forks."""

import collections
import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from flowcore.stores import SQLiteStore

PRELUDE = """
import json, os, signal, sqlite3, sys, threading, time
from flowcore import *
from flowcore.stores import SQLiteStore
from flowcore.stores.base import *
path = sys.argv[1]

def claim(run_id, key="k", **more):
    return Claim(key, run_id, "w", "f", "g", {"trace": "1"}, {"a": 1}, **({"lease": 30.0, "begins": ("s",)} | more))

def step(seq):
    return StepRecord(seq, StepReport(Status.SUCCESS, 1), True, seq, True)

def checkpoint(run_id, fence, seq, key="k"):
    return Checkpoint(key, run_id, fence, 30.0, {"s": step(seq)}, {"c": Write(seq, seq)}, True, "s", ValueError(seq))

def ending(run_id, fence, status, changes=None, key="k"):
    return Ending(RunRecord(key, run_id, "w", "f", "g", status=status, fence=fence), changes)
"""


def python(program: str, *arguments: object) -> subprocess.Popen[str]:
    """A process of its own, which has a few words for the verbs."""
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    """What a process printed, once it has ended well."""
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    return output


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


# -- killed ------------------------------------------------------------------------------------------------------------

# Each verb is struck down right before its n-th statement, for every n, and once more right after it answered. The file
# of before is put back each time. Forks of a process without threads, since starting Python each time would take minutes.
KILLS = """
import itertools, shutil
verb = sys.argv[2]
LARGE = {f"s{number}": step(number) for number in range(1, 600)}

def prepare(store):
    if verb == "create":
        return None
    old = store.claim(claim("old", key="old"))
    store.checkpoint(Checkpoint("old", "old", old.fence, 30.0, LARGE))
    store.finish(ending("old", old.fence, Status.FAILURE, key="old"))  # retention is over: it is eaten by the next claim
    if verb == "begin":
        return None
    if verb in {"begin again", "replay"}:
        fence = store.claim(claim("r0")).fence
        return store.finish(ending("r0", fence, Status.SUCCESS if verb == "replay" else Status.FAILURE))
    owner = store.claim(claim("r1", lease=0.0 if verb in {"take over", "hold", "resume"} else 30.0))
    return owner.fence

def do(store, fence):
    match verb:
        case "create" | "begin": store.claim(claim("r1"))
        case "begin again" | "replay" | "take over": store.claim(claim("r2"))
        case "checkpoint": store.checkpoint(checkpoint("r1", fence, 5))
        case "renew": store.renew([Lease("k", "r1", fence)] * 3, 60.0)
        case "finish": store.finish(ending("r1", fence, Status.SUCCESS, checkpoint("r1", fence, 6)))
        case "withdraw": store.withdraw(claim("r1"))
        case "release": store.release("k", force=True)
        case "gc": store.gc()
        case "hold" | "resume": getattr(store, verb)("k")

def dump():
    try:
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        found = [*db.execute("SELECT * FROM runs ORDER BY id"), *db.execute("SELECT * FROM fields")]
        db.close()
    except sqlite3.Error as error:
        return str(error)
    return found

def open_store():
    return SQLiteStore(path, durability="normal", retention=0.0 if "again" not in verb and verb != "replay" else 60.0, wall=lambda: now)

now = 1_700_000_000.0
fence = None
if verb != "create":
    store = open_store()
    fence = prepare(store)
    store.close()
    shutil.copy(path, path + ".before")
now += 1.0
states, kills = [], 0
for last in itertools.count():
    for end in ("", "-wal", "-shm"):
        if os.path.exists(path + end):
            os.unlink(path + end)
    if verb != "create":
        shutil.copy(path + ".before", path)
    child = os.fork()
    if child == 0:
        left = iter(range(last))

        def strike(statement):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        if verb == "create":
            connect = sqlite3.connect

            def traced(*args, **options):
                connection = connect(*args, **options)
                connection.set_trace_callback(strike)
                return connection

            sqlite3.connect = traced
            store = open_store()
        else:
            store = open_store()
            store._database._writer._connection.set_trace_callback(strike)
        do(store, fence)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    states.append(dump())
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0
        break
    kills += 1
    store = open_store()  # the next process can continue with any state that was left
    if verb == "create":
        assert type(store.claim(claim("r1"))).__name__ in {"Claimed", "Busy"}
    assert store.doctor(deep=True)["integrity"] == "ok"
    store.close()
changes = [state for state, then in zip(states, states[1:]) if state != then]
print(json.dumps([kills, len(changes), states[0] != states[-1]]))
"""

VERBS = (
    "begin",
    "begin again",
    "replay",
    "take over",
    "checkpoint",
    "renew",
    "finish",
    "withdraw",
    "release",
    "hold",
    "resume",
)


@pytest.mark.parametrize("verb", VERBS)
def test_kill_9_before_any_statement_of_a_verb_leaves_all_of_it_or_nothing(path: Path, verb: str) -> None:
    kills, changes, changed = json.loads(said(python(KILLS, path, verb)))
    assert kills >= 4  # BEGIN, what it asks, what it says, COMMIT
    assert (changes, changed) == ((0, False) if verb == "replay" else (1, True))


def test_kill_9_while_the_file_is_made_leaves_one_that_the_next_process_can_use(path: Path) -> None:
    kills, _, _ = json.loads(said(python(KILLS, path, "create")))
    assert kills > 15


def test_kill_9_in_the_middle_of_gc_leaves_whole_bites(path: Path) -> None:
    kills, changes, changed = json.loads(said(python(KILLS, path, "gc")))
    assert kills > 6
    assert (changes, changed) == (2, True)  # a claim has eaten 256 of the 602 fields before


# -- at once -----------------------------------------------------------------------------------------------------------

OPENS = """
for turn in range(10):
    begins, begin = os.pipe()
    children = []
    for child in range(8):
        children.append(os.fork())
        if children[-1] == 0:
            os.close(begin)
            os.read(begins, 1)  # it ends when all of them are there
            store = SQLiteStore(f"{path}{turn}")
            answer = store.claim(claim(f"r{child}"))
            os._exit(7 if isinstance(answer, Claimed) else 0 if isinstance(answer, Busy) else 1)
    os.close(begin)
    print(*sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
    os.close(begins)
"""


def test_many_processes_may_make_the_file_at_once(path: Path) -> None:
    assert said(python(OPENS, path)).splitlines() == ["0 0 0 0 0 0 0 7"] * 10


RACES = """
store = SQLiteStore(path, durability="normal")
me, lost = sys.argv[2], 0
for turn in range(60):
    key, run_id = f"k{turn % 5}", f"{me}-{turn}"
    answer = store.claim(claim(run_id, key=key, lease=0.0 if turn % 7 == 0 else 30.0))
    if not isinstance(answer, Claimed):
        continue
    run = answer.record.run_id if answer.record is not None else run_id
    seq = 2 if answer.record is None else answer.record.seq + 1
    print(key, answer.generation, answer.fence, flush=True)
    for _ in range(3):
        if store.checkpoint(checkpoint(run, answer.fence, seq, key=key)) is not None:
            break
        seq += 1
    else:
        status = (Status.FAILURE, Status.COMPENSATED, Status.PARKED)[turn % 3]
        store.finish(ending(run, answer.fence, status, key=key))
"""


def test_every_owner_has_a_fence_of_its_own_however_many_processes_there_are(path: Path) -> None:
    processes = [python(RACES, path, number) for number in range(4)]
    owners = [tuple(line.split()) for process in processes for line in said(process).splitlines()]
    assert len(owners) > 50
    assert [owner for owner, count in collections.Counter(owners).items() if count > 1] == []
    for key in {key for key, _, _ in owners}:
        fences = sorted((int(fence), int(generation)) for each, generation, fence in owners if each == key)
        generations = [generation for _, generation in fences]
        assert generations == sorted(generations)
    with closing(SQLiteStore(path)) as store:
        assert store.doctor(deep=True)["integrity"] == "ok"
        assert {record.key for record in store.list_runs()} == {f"k{number}" for number in range(5)}


# -- forks -------------------------------------------------------------------------------------------------------------

FORKS = """
store = SQLiteStore(path, durability="normal")
owner, stop = store.claim(claim("r1", begins=())), threading.Event()
written = 0

def write():  # the forks come in the middle of its transactions
    global written
    while not stop.is_set():
        written += 1
        assert store.checkpoint(Checkpoint("k", "r1", owner.fence, 30.0, {f"s{written}": step(written)})) is None

thread = threading.Thread(target=write)
thread.start()
children = []
for number in range(20):
    child = os.fork()
    if child == 0:
        assert store._database._writer._connection is None
        assert isinstance(store.claim(claim(f"c{number}", key=f"c{number}")), Claimed)
        if os.fork() == 0:  # and so on
            assert isinstance(store.claim(claim(f"g{number}", key=f"g{number}")), Claimed)
            assert store.find(f"c{number}").run_id == f"c{number}"
            os._exit(0)
        _, status = os.wait()
        os._exit(os.waitstatus_to_exitcode(status))
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
stop.set()
thread.join()
print(json.dumps([codes, written == len(store.find("k").steps), store.doctor(deep=True)["integrity"], len(store.list_runs())]))
"""


def test_a_fork_in_the_middle_of_transactions_harms_neither_parent_nor_child(path: Path) -> None:
    assert json.loads(said(python("import warnings; warnings.simplefilter('ignore')\n" + FORKS, path))) == [
        [0] * 20,
        True,
        "ok",
        41,
    ]


UNTOLD = """
import ctypes
store = SQLiteStore(path, durability="normal")
owner = store.claim(claim("r1"))
child = ctypes.CDLL(None).fork()
if child == 0:
    try:
        store.find("k")
    except StoreError as error:
        print(error, flush=True)
    store.close()
    os._exit(0)
os.waitpid(child, 0)
assert store.checkpoint(checkpoint("r1", owner.fence, 5)) is None
"""


def test_a_child_whose_fork_python_does_not_know_of_is_refused(path: Path) -> None:
    assert "then forked in a way that Python did not notice: make the store in the process that uses it" in said(
        python(UNTOLD, path)
    )
