"""What the Lua scripts of the Redis stores have in common: keys, records and the index.

All keys of one shard share a hash slot of a cluster:

| key | what |
|---|---|
| {prefix:shard}:run: + digest | a record; digest: SHA-256 of the idempotency key in URL-safe base64 |
| {prefix:shard}:open | sorted set of run ids that are not over; score: when recovery may resume the run, infinite for a held one |
| {prefix:shard}:ended | sorted set of run ids that are over; score: when Redis forgets the record |
| {prefix:shard}:started | sorted set of all run ids; score: when the run started |
| {prefix:shard}:index | hash: run id to digest, letter of the status, h or -, delay, a colon, and workflow |
| {prefix:shard}:statuses | sorted set with one score, of the runs in `open` by status and workflow; counts and listings read it |

The members of `statuses` are derived from the other parts of the index, and are sorted by their bytes. Each run has one
member: h if it is held, else -, the letter of its status, the length of its workflow's name, a colon, that name, when
it started (16 digits), and its run id. A running run has a second one: l, the length, a colon, the name, the end of its
lease as `open` has it, and its id. Releases up to 0.1.0 do not write `statuses`: where its number of members is not
that of the runs in `open`, it is completed.

All times are microseconds since the epoch by the server's clock. The record of a run that is not over is a hash of the
fields that encoding.py describes, and `listed`: the end of the lease as `open` has it, which may lag behind by up to a
quarter of a lease, because few checkpoints change `open`. The record of a run that is over is one string, which takes a
third of the memory: a first line, then a list of names and texts in MessagePack.

A shard's index expires a day or two after its last record. It does not expire while it has a run that
is renewed or kept for recovery.

Scripts use only the keys that are passed to them. They make all changes at their end, and the first of them to the
index: so what Redis may refuse (no memory, a wrong type), it refuses before anything is changed.

Every script that reads a record returns {word, now, field, text, ...}. The word is `missing` if there is no record, and
`corrupt` for a record that flowcore cannot have written. No script changes such a record; a forced release or erase
deletes it. A packed record is returned as one field, `packed`.
"""

from __future__ import annotations

import hashlib
from typing import Final

__all__ = ["CHANGES", "DIGEST", "INDEX", "LEASE", "LETTERS", "MAGIC", "NUMBERS", "PACKED", "RECORD", "Script"]

DIGEST: Final = 43
"""the length of a digest in characters"""
MAGIC: Final = "flowcore 2\n"
"""the first line of a packed record"""
LETTERS: Final = {
    "queued": "q",
    "running": "r",
    "waiting": "w",
    "incomplete": "i",
    "parked": "p",
    "success": "s",
    "failure": "f",
    "compensated": "c",
    "compensation_failed": "x",
}
"""status -> its letter in the index"""


class Script:
    """A Lua script and its SHA-1, by which a server that has run the script before knows it."""

    __slots__ = ("sha", "text")

    def __init__(self, *parts: str) -> None:
        self.text = "".join(parts)
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


NUMBERS: Final = """
local function digits(number)
  return string.format('%.0f', number)
end

local function count(text)  -- return the text as a whole number that can be raised, or nil
  if type(text) == 'string' and #text <= 16 and string.find(text, '^%d+$') then
    local number = tonumber(text)
    if number < 9007199254740991 then return number end  -- 2^53 - 1: Lua counts in doubles
  end
end

local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end
"""

LEASE: Final = """
local function lease(workflow, ends, id)  -- return the member of `statuses` that sorts a running run by the end of its lease
  return 'l' .. #workflow .. ':' .. workflow .. string.format('%016.0f', ends) .. id
end

local function move_lease(statuses, workflow, old, new, id)
  old = tonumber(old)
  if old then redis.call('ZREM', statuses, lease(workflow, old, id)) end
  redis.call('ZADD', statuses, 0, lease(workflow, new, id))
end
"""

INDEX: Final = f"""{LEASE}
local function entry(text)  -- split an entry of the index: digest, letter, whether held, delay, workflow
  local letter, held, delay, workflow = string.match(text or '', '^(%l)([h-])(%d+):(.*)$', {DIGEST + 1})
  return string.sub(text or '', 1, {DIGEST}), letter or '', held == 'h', tonumber(delay or 0), workflow or ''
end

-- Returns the members of `statuses` that a run has, computed from the other parts of the index.
local function members(id, text, started, due)
  if not due then return {{}} end
  local _, letter, held, delay, workflow = entry(text)
  local found = {{(held and 'h' or '-') .. letter .. #workflow .. ':' .. workflow .. string.format('%016.0f', started or 0) .. id}}
  if letter == 'r' and not held then found[2] = lease(workflow, due - delay, id) end
  return found
end
"""

PACKED: Final = f"""
local function unpacked(text)  -- return the fields of a packed record; nil for another string
  if string.sub(text, 1, {len(MAGIC)}) ~= {MAGIC!r} then return nil end
  local whole, list = pcall(cmsgpack.unpack, string.sub(text, {len(MAGIC) + 1}))
  if not whole or type(list) ~= 'table' then return nil end
  local fields = {{}}
  for i = 1, #list, 2 do fields[list[i]] = list[i + 1] end
  fields.owner = fields.owner or fields.run_id
  return fields
end
"""

RECORD: Final = """
local function checked(run)  -- whether flowcore can have written the head of this record
  local stages = {queued = 'owned', running = 'owned', incomplete = 'left', parked = 'left', waiting = 'left',
    success = 'over', failure = 'over', compensated = 'over', compensation_failed = 'over'}
  run.stage = stages[run.status]
  run.is_held = run.held == '1'
  run.ends = run.expires and count(run.expires) or 0
  return run.schema == '2' and run.run_id and run.owner and run.workflow and run.graph and run.stage
    and (not run.held or run.held == '0' or run.is_held) and count(run.generation) and count(run.fence)
    and count(run.started) and (not run.expires or count(run.expires))
    and (not run.takeovers or count(run.takeovers)) and (not run.delay or count(run.delay))
end

-- Returns the record under a key that is not a hash: the packed record, or only the `kind` of the key.
local function other(key)
  local kind = redis.call('TYPE', key).ok
  local run = kind == 'string' and unpacked(redis.call('GET', key))
  if not run then return {kind = kind} end
  run.packed = true
  return run
end

local function opened(key, names)  -- return these fields of a record; nil if there is none
  local got = redis.pcall('HMGET', key, unpack(names))
  if got.err then
    if not string.find(got.err, 'WRONGTYPE', 1, true) then redis.call('HMGET', key, unpack(names)) end
    return other(key)
  end
  local run = {}
  for i, name in ipairs(names) do run[name] = got[i] or nil end
  if not run.run_id and redis.call('EXISTS', key) == 0 then return nil end
  return run
end

-- Returns the fields that scripts read, and whether the record is corrupt; nil if there is none.
local function head(key)
  local run = opened(key, {'schema', 'run_id', 'owner', 'workflow', 'graph', 'status', 'held', 'started', 'generation',
    'fence', 'expires', 'fingerprint', 'takeovers', 'delay', 'before_status', 'undoing', 'not_before', 'error'})
  if not run then return nil end
  return run, not (not run.kind and checked(run))
end

local function whole(key)  -- return all fields of a record; nil if there is none
  local all = redis.pcall('HGETALL', key)
  if all.err then
    if not string.find(all.err, 'WRONGTYPE', 1, true) then redis.call('HGETALL', key) end
    return other(key)
  end
  if #all == 0 then return nil end
  local run = {}
  for i = 1, #all, 2 do run[all[i]] = all[i + 1] end
  return run
end

local function reply(word, now, key, only)  -- return a reply with the record; `only`: without its values, steps and writes
  local answer = {word, digits(now)}
  if only then
    local names = {'schema', 'key', 'key_text', 'run_id', 'owner', 'workflow', 'graph', 'status', 'started', 'generation', 'fence', 'seq',
      'fingerprint', 'held', 'undoing', 'decision', 'reason', 'by', 'since', 'before_status', 'before_expires', 'before_by',
      'before_since', 'takeovers', 'retries', 'delay', 'not_before', 'deadline', 'finished', 'expires', 'carrier', 'undone',
      'failed_step', 'error', 'received', 'waiting_for'}
    local run = opened(key, names)
    for _, name in ipairs(names) do
      if run[name] then answer[#answer + 1], answer[#answer + 2] = name, run[name] end
    end
    return answer
  end
  if redis.call('TYPE', key).ok == 'string' then
    answer[3], answer[4] = 'packed', redis.call('GET', key)
    return answer
  end
  for i, text in ipairs(redis.call('HGETALL', key)) do answer[i + 2] = text end
  return answer
end

local function corrupted(now, key, run)
  if run.kind then return {'corrupt', digits(now), 'kind', run.kind} end
  return reply('corrupt', now, key)
end
"""

# Functions that change records and the index. KEYS: run, open, ended, started, index, statuses.
CHANGES: Final = f"""{INDEX}
local function put_in(fields, name, text)
  if text then fields[#fields + 1], fields[#fields + 2] = name, text end
end

local function write(fields)  -- write these fields: names and texts in turn
  for i = 1, #fields, 1000 do redis.call('HSET', KEYS[1], unpack(fields, i, math.min(i + 999, #fields))) end
end

local function file(run, status, held, delay)  -- write the run's entry of the index, and return it
  local letters = {{{", ".join(f"{status} = '{letter}'" for status, letter in LETTERS.items())}}}
  local text = string.sub(KEYS[1], -{DIGEST}) .. letters[status] .. (held and 'h' or '-') .. (delay or '0') .. ':' .. run.workflow
  redis.call('HSET', KEYS[5], run.run_id, text)
  return text
end

local function places(id)  -- return the members of `statuses` of a run
  local due = redis.call('ZSCORE', KEYS[2], id)
  return due and members(id, redis.call('HGET', KEYS[5], id), redis.call('ZSCORE', KEYS[4], id), due) or {{}}
end

local function replace(before, after)  -- replace members of `statuses`
  if #before > 0 then redis.call('ZREM', KEYS[6], unpack(before)) end
  if #after == 1 then redis.call('ZADD', KEYS[6], 0, after[1]) end
  if #after == 2 then redis.call('ZADD', KEYS[6], 0, after[1], 0, after[2]) end
end

local function file_open(run, status, held, score, delay)  -- index a run as not over
  local before = places(run.run_id)
  redis.call('ZADD', KEYS[2], score, run.run_id)
  redis.call('ZADD', KEYS[4], 'NX', run.started, run.run_id)
  replace(before, members(run.run_id, file(run, status, held, delay), run.started, score))
  redis.call('PERSIST', KEYS[4])
  redis.call('PERSIST', KEYS[5])
end

local function file_ended(run, status, now, retention)  -- index a run as ended; `retention` in milliseconds
  local before = places(run.run_id)
  redis.call('ZADD', KEYS[3], digits(now + retention * 1000), run.run_id)
  file(run, status, false)
  redis.call('ZREM', KEYS[2], run.run_id)
  replace(before, {{}})
  local left, day = redis.call('PTTL', KEYS[5]), 86400000
  if left < retention + day then
    redis.call('PEXPIRE', KEYS[3], digits(retention + 2 * day))
    if redis.call('EXISTS', KEYS[2]) == 0 then
      redis.call('PEXPIRE', KEYS[4], digits(retention + 2 * day))
      redis.call('PEXPIRE', KEYS[5], digits(retention + 2 * day))
    end
  end
end

local function unfile(id)  -- remove a run from the index
  replace(places(id), {{}})
  redis.call('ZREM', KEYS[2], id)
  redis.call('ZREM', KEYS[3], id)
  redis.call('ZREM', KEYS[4], id)
  redis.call('HDEL', KEYS[5], id)
end

local function sweep(now)  -- remove a few runs whose records have expired from the index
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', digits(now), 'LIMIT', 0, 4)) do unfile(id) end
end

local function pack(run, retention)  -- write the packed record of a run that is over; `retention` in milliseconds
  local dropped = {{expires = true, listed = true, decision = true, before_status = true, before_expires = true,
    not_before = true, delay = true, held = '0', undone = '[]', failed_step = 'null',
    error = 'null', reason = '', waiting_for = true, retries = '0', takeovers = '0', owner = run.run_id, stage = true, ends = true,
    is_held = true, packed = true}}
  local fields, n = {{}}, 0
  for name, text in pairs(run) do
    local drop = dropped[name]
    if drop == nil or (drop ~= true and drop ~= text) then
      fields[n + 1], fields[n + 2] = name, text
      n = n + 2
    end
  end
  redis.call('SET', KEYS[1], {MAGIC!r} .. cmsgpack.pack(fields), 'PX', digits(retention))
end

local function free(run, now, retention)  -- end a run so that the next claim of its key begins a new one
  local all = whole(KEYS[1])
  file_ended(run, 'failure', now, retention)
  all.status, all.held, all.finished, all.fence = 'failure', '0', digits(now), digits(count(run.fence) + 1)
  pack(all, retention)
end
"""
