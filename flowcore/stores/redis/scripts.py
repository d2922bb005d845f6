"""The Lua scripts of the Redis stores: one per verb, each atomic, each by the server's own clock.

A run's record is a hash of the fields that encoding.py describes. It shares a hash slot with its shard's index:

| key | what |
|---|---|
| {prefix:shard}:run:sha256 of the idempotency key | the record |
| {prefix:shard}:open | sorted set: runs that are kept until somebody decides or goes on; score: microseconds at which
nobody owns them any more, infinite for those that are held |
| {prefix:shard}:ended | sorted set: runs that are over; score: microseconds at which Redis forgets them |
| {prefix:shard}:ids | hash: run id to sha256 |

A member of a sorted set is sha256, length of the run id, a colon, run id and workflow: enough to find a run's other entries
when its record is gone. Scripts touch no key that is not passed to them. What they change, they change last, and the first
change is to the index: what Redis may refuse (no memory, a foreign type), it refuses before anything has happened.

Every script that reads a record answers {word, now, field, text, ...}; `missing` for no record, `corrupt` for one that
flowcore cannot have written, which no script changes (but a forced release gives it up).
"""

from __future__ import annotations

import hashlib
from typing import Final

__all__ = [
    "CHECKPOINT",
    "CLAIM",
    "DECIDE",
    "DUE",
    "ENTER",
    "FINISH",
    "FORGET",
    "LIST",
    "LOCATE",
    "READ",
    "RELEASE",
    "RENEW",
    "WITHDRAW",
    "Script",
]


class Script:
    """A script, and the name under which a server that has seen it once knows it."""

    __slots__ = ("sha", "text")

    def __init__(self, *parts: str) -> None:
        self.text = "".join(parts)
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


_NUMBERS: Final = """
local MOST = 9007199254740991  -- 2^53 - 1: Lua counts in doubles

local function digits(number)
  return string.format('%.0f', number)
end

local function count(text)  -- a whole number that can be raised, or nil
  if type(text) == 'string' and #text <= 16 and string.find(text, '^%d+$') then
    local number = tonumber(text)
    if number < MOST then return number end
  end
end

local function clock()  -- microseconds since the epoch
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end
"""

_INDEX: Final = """
local function run_of(member)  -- run id and workflow
  local length, rest = string.match(member, '^(%d+):(.*)$', 65)
  if not length then return '', '' end
  return string.sub(rest, 1, length), string.sub(rest, length + 1)
end
"""

_RECORD: Final = """
local STATUS = {running = 'owned', incomplete = 'left', parked = 'left', success = 'over', failure = 'over',
  compensated = 'over', compensation_failed = 'over'}
local NAMES = {'schema', 'key', 'run_id', 'owner', 'workflow', 'graph', 'status', 'started', 'generation', 'fence',
  'fingerprint', 'held', 'undoing', 'decision', 'before_status', 'before_expires', 'finished', 'expires', 'carrier',
  'undone', 'failed_step', 'error'}

local function head(key)  -- its fields, and whether it is corrupt; nil if there is none
  local kind = redis.call('TYPE', key).ok
  if kind == 'none' then return nil end
  if kind ~= 'hash' then return {kind = kind}, true end
  local got, h = redis.call('HMGET', key, unpack(NAMES)), {}
  for i, name in ipairs(NAMES) do h[name] = got[i] end
  h.stage = STATUS[h.status]
  h.held = h.held == '1' or (h.held and h.held ~= '0' and 'corrupt')
  local corrupt = h.schema ~= '2' or not (h.run_id and h.owner and h.workflow and h.graph and h.stage)
    or h.held == 'corrupt' or not count(h.generation) or not count(h.fence) or not count(h.started)
    or (h.expires and not count(h.expires))
  if not corrupt then
    h.ends = h.expires and count(h.expires) or 0
  end
  return h, corrupt
end

local function told(word, now, key, h)  -- h: only the record's head, without values, steps and writes
  local answer = {word, digits(now)}
  if not h then
    for i, text in ipairs(redis.call('HGETALL', key)) do answer[i + 2] = text end
    return answer
  end
  local got = redis.call('HMGET', key, unpack(NAMES))
  for i, name in ipairs(NAMES) do
    if got[i] then
      answer[#answer + 1] = name
      answer[#answer + 1] = got[i]
    end
  end
  return answer
end

local function corrupted(now, key, h)
  if h.kind then return {'corrupt', digits(now), 'kind', h.kind} end
  return told('corrupt', now, key)
end
"""

_CHANGES: Final = """
local function member(key, h)
  return string.sub(key, -64) .. #h.run_id .. ':' .. h.run_id .. h.workflow
end

local function put(key, from)  -- ARGV from there on: field, text, ...
  for i = from, #ARGV, 1000 do
    redis.call('HSET', key, unpack(ARGV, i, math.min(i + 999, #ARGV)))
  end
end

local function sweep(now)  -- a few of those whose records Redis has forgotten
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', digits(now), 'LIMIT', 0, 4)) do
    redis.call('ZREM', KEYS[3], gone)
    redis.call('HDEL', KEYS[4], (run_of(gone)))
  end
end

local function file_open(h, score)  -- in the index, under those that are kept
  local name = member(KEYS[1], h)
  redis.call('ZADD', KEYS[2], score, name)
  redis.call('HSET', KEYS[4], h.run_id, string.sub(KEYS[1], -64))
  redis.call('PERSIST', KEYS[4])
  redis.call('ZREM', KEYS[3], name)
end

local function file_ended(h, now, retention)  -- in the index, under those that will be forgotten; milliseconds
  local name, spare = member(KEYS[1], h), 3600000
  redis.call('ZADD', KEYS[3], digits(now + retention * 1000), name)
  redis.call('HSET', KEYS[4], h.run_id, string.sub(KEYS[1], -64))
  redis.call('ZREM', KEYS[2], name)
  if redis.call('PTTL', KEYS[3]) < retention then redis.call('PEXPIRE', KEYS[3], digits(retention + spare)) end
  if redis.call('EXISTS', KEYS[2]) == 0 and redis.call('PTTL', KEYS[4]) < retention then
    redis.call('PEXPIRE', KEYS[4], digits(retention + spare))
  end
  redis.call('PEXPIRE', KEYS[1], digits(retention))
end

local function free(h, now, retention)  -- the next claim begins afresh
  file_ended(h, now, retention)
  redis.call('HSET', KEYS[1], 'status', 'failure', 'held', '0', 'finished', digits(now),
    'fence', digits(count(h.fence) + 1))
  redis.call('HDEL', KEYS[1], 'expires', 'decision', 'before_status', 'before_expires')
end
"""

# KEYS: run, open, ended, ids. ARGV: run id, '' or '=' fingerprint, graph, '' or '=' attached, lease (microseconds),
# '' or the fence of the record that the caller has seen and could read; then the fields of a fresh record.
CLAIM: Final = Script(
    _NUMBERS,
    _INDEX,
    _RECORD,
    _CHANGES,
    """
local now = clock()
local h, corrupt = head(KEYS[1])
if corrupt then return corrupted(now, KEYS[1], h) end
local expires = digits(now + ARGV[5])

local function begin(generation, above)
  local fence = digits(math.max(above + 1, now))
  local fresh = {run_id = ARGV[1]}
  for i = 7, #ARGV, 2 do
    if ARGV[i] == 'workflow' then fresh.workflow = ARGV[i + 1] end
  end
  file_open(fresh, expires)
  if h then
    local old = member(KEYS[1], h)
    redis.call('ZREM', KEYS[2], old)
    redis.call('ZREM', KEYS[3], old)
    redis.call('HDEL', KEYS[4], h.run_id)
    redis.call('DEL', KEYS[1])
  end
  sweep(now)
  redis.call('HSET', KEYS[1], 'generation', digits(generation), 'fence', fence, 'started', digits(now), 'expires', expires)
  put(KEYS[1], 7)
  return {'begun', digits(now), 'generation', digits(generation), 'fence', fence, 'started', digits(now)}
end

local function granted(word, fence)  -- the record, and the fence of its owner
  local answer = told(word, now, KEYS[1])
  answer[#answer + 1] = 'granted'
  answer[#answer + 1] = fence
  return answer
end

if not h then return begin(0, 0) end

if h.owner == ARGV[1] then  -- the same claim again
  if h.stage ~= 'owned' then return told('finished', now, KEYS[1]) end
  redis.call('ZADD', KEYS[2], expires, member(KEYS[1], h))
  redis.call('HSET', KEYS[1], 'expires', expires)
  if not h.before_status then return told('begun', now, KEYS[1], h) end
  return granted('again', h.fence)
end

local attached = ARGV[4] ~= '' and string.sub(ARGV[4], 2)
local released = (h.status == 'failure' or h.status == 'compensated') and not h.held
if attached == h.run_id and (h.held or h.stage == 'over') then return told('finished', now, KEYS[1]) end
if released then
  -- Others have come after the run that it waits for, or have ended its own, of which it never heard.
  if attached or h.run_id == ARGV[1] then return told('finished', now, KEYS[1]) end
  if ARGV[6] ~= h.fence then return told('look', now, KEYS[1]) end
  return begin(count(h.generation) + 1, count(h.fence))
end
if ARGV[2] ~= '' and (not h.fingerprint or '=' .. h.fingerprint ~= ARGV[2]) then
  return told('mismatch', now, KEYS[1], h)
end
if h.held then return told('held', now, KEYS[1], h) end
if h.status == 'success' then return told('finished', now, KEYS[1]) end
if h.stage == 'over' then return corrupted(now, KEYS[1], h) end
if h.stage == 'owned' and h.ends > now then return told('busy', now, KEYS[1], h) end

-- Nobody goes on with it.
if h.graph ~= ARGV[3] then return told('graph', now, KEYS[1], h) end
if ARGV[6] ~= h.fence then return told('look', now, KEYS[1]) end
local fence = digits(math.max(count(h.fence) + 1, now))
local answer = granted('taken', fence)
file_open(h, expires)
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'status', 'running', 'expires', expires, 'before_status', h.status,
  'fence', fence)
if h.expires then
  redis.call('HSET', KEYS[1], 'before_expires', h.expires)
  redis.call('HDEL', KEYS[1], 'finished')
else
  redis.call('HDEL', KEYS[1], 'before_expires', 'finished')
end
return answer
""",
)

# What a verb of an owner begins with. ARGV: run id, fence.
_OWNED: Final = """
local now = clock()
local h, corrupt = head(KEYS[1])
if not h then return {'missing', digits(now)} end
if corrupt then return corrupted(now, KEYS[1], h) end
if h.run_id ~= ARGV[1] then return {'lost', digits(now)} end

local function changed(from)  -- of ARGV's fields and texts those to be written; nil if the record is corrupt
  local fields, names = {}, {}
  for i = from, #ARGV, 2 do
    if string.find(ARGV[i], '^[sw]:') then names[#names + 1] = ARGV[i] end
  end
  local stored = {}
  for i = 1, #names, 1000 do
    local last = math.min(i + 999, #names)
    for j, text in ipairs(redis.call('HMGET', KEYS[1], unpack(names, i, last))) do
      if text then
        stored[names[i + j - 1]] = count(string.match(text, '^(%d+) '))
        if not stored[names[i + j - 1]] then return nil end
      end
    end
  end
  for i = from, #ARGV, 2 do
    local old = stored[ARGV[i]]
    if not old or old < count(string.match(ARGV[i + 1], '^(%d+) ')) then
      fields[#fields + 1] = ARGV[i]
      fields[#fields + 1] = ARGV[i + 1]
    end
  end
  return fields
end

local function write(fields)
  for i = 1, #fields, 1000 do
    redis.call('HSET', KEYS[1], unpack(fields, i, math.min(i + 999, #fields)))
  end
end
"""

# KEYS: run, open. ARGV: run id, fence, lease (microseconds); then fields.
CHECKPOINT: Final = Script(
    _NUMBERS,
    _RECORD,
    _CHANGES,
    _OWNED,
    """
if h.fence ~= ARGV[2] then return {'lost', digits(now)} end
if h.stage ~= 'owned' then return {'done', digits(now)} end  -- a late copy
local fields = changed(4)
if not fields then return corrupted(now, KEYS[1], h) end
local expires = digits(now + ARGV[3])
fields[#fields + 1] = 'expires'
fields[#fields + 1] = expires
redis.call('ZADD', KEYS[2], expires, member(KEYS[1], h))
write(fields)
if h.decision then redis.call('HDEL', KEYS[1], 'decision') end
return {'done', digits(now)}
""",
)

# KEYS: run, open, ended, ids. ARGV: run id, fence (0: that of the claim which began the run), retention (milliseconds; ''
# for a run that is kept), 1 if it is held; then fields.
FINISH: Final = Script(
    _NUMBERS,
    _INDEX,
    _RECORD,
    _CHANGES,
    _OWNED,
    """
local first = ARGV[2] == '0' and h.owner == ARGV[1] and not h.before_status
if h.fence ~= ARGV[2] and not first then return {'lost', digits(now)} end
if h.stage ~= 'owned' then return {'done', digits(now)} end  -- a late copy
local fields = changed(5)
if not fields then return corrupted(now, KEYS[1], h) end
fields[#fields + 1] = 'finished'
fields[#fields + 1] = digits(now)
if ARGV[3] == '' then
  file_open(h, ARGV[4] == '1' and '+inf' or digits(now))
else
  file_ended(h, now, tonumber(ARGV[3]))
end
write(fields)
redis.call('HDEL', KEYS[1], 'expires', 'decision', 'before_status', 'before_expires')
sweep(now)
return {'done', digits(now)}
""",
)

# KEYS: open, runs. ARGV: lease (microseconds), then run id and fence of each run. Answers 1 or 0 for each.
RENEW: Final = Script(
    _NUMBERS,
    """
-- It makes nothing larger. After this first change Redis lets the others pass even where memory is full: a lease must not
-- be lost for that.
redis.call('PERSIST', KEYS[1])
local expires, answer = digits(clock() + ARGV[1]), {}
for i = 2, #KEYS do
  answer[i - 1] = 0
  if redis.call('TYPE', KEYS[i]).ok == 'hash' then
    local got = redis.call('HMGET', KEYS[i], 'run_id', 'fence', 'status', 'workflow')
    if got[1] == ARGV[2 * i - 2] and got[2] == ARGV[2 * i - 1] and got[3] == 'running' and got[4] then
      redis.call('ZADD', KEYS[1], expires, string.sub(KEYS[i], -64) .. #got[1] .. ':' .. got[1] .. got[4])
      redis.call('HSET', KEYS[i], 'expires', expires)
      answer[i - 1] = 1
    end
  end
end
return answer
""",
)

# KEYS: run, open, ended, ids. ARGV: run id of the claim, retention (milliseconds).
WITHDRAW: Final = Script(
    _NUMBERS,
    _INDEX,
    _RECORD,
    _CHANGES,
    """
local now = clock()
local h, corrupt = head(KEYS[1])
if not h then return {'missing', digits(now)} end
if corrupt then return corrupted(now, KEYS[1], h) end
if h.owner ~= ARGV[1] or h.stage ~= 'owned' then return {'lost', digits(now)} end
if h.before_status then
  redis.call('ZADD', KEYS[2], digits(now), member(KEYS[1], h))
  redis.call('HSET', KEYS[1], 'expires', digits(now))
else
  free(h, now, tonumber(ARGV[2]))
end
return {'done', digits(now)}
""",
)

# KEYS: run, open, ended, ids. ARGV: '1' to force it, retention (milliseconds).
RELEASE: Final = Script(
    _NUMBERS,
    _INDEX,
    _RECORD,
    _CHANGES,
    """
local now = clock()
local h, corrupt = head(KEYS[1])
if not h then return {'missing', digits(now)} end
if corrupt then
  if ARGV[1] ~= '1' then return corrupted(now, KEYS[1], h) end
  redis.call('DEL', KEYS[1])
  return {'done', digits(now)}
end
if h.stage == 'owned' and h.ends > now and ARGV[1] ~= '1' then return told('busy', now, KEYS[1], h) end
free(h, now, tonumber(ARGV[2]))
return {'done', digits(now)}
""",
)

# KEYS: run, open, ended, ids. ARGV: hold, resume or undo.
DECIDE: Final = Script(
    _NUMBERS,
    _INDEX,
    _RECORD,
    _CHANGES,
    """
local now = clock()
local h, corrupt = head(KEYS[1])
if not h then return {'missing', digits(now)} end
if corrupt then return corrupted(now, KEYS[1], h) end
if h.stage == 'owned' and h.ends > now then return told('busy', now, KEYS[1], h) end
local hold = ARGV[1] == 'hold'
if not hold and h.stage == 'over' and not h.held then return told('over', now, KEYS[1], h) end
file_open(h, hold and '+inf' or digits(now))
redis.call('PERSIST', KEYS[1])
redis.call('HSET', KEYS[1], 'held', hold and '1' or '0')
if not hold then redis.call('HSET', KEYS[1], 'decision', ARGV[1]) end
if h.stage == 'owned' then  -- its owner, should it come back, finds itself shut out
  redis.call('HSET', KEYS[1], 'status', 'parked', 'fence', digits(count(h.fence) + 1))
elseif not hold and h.stage == 'over' then
  redis.call('HSET', KEYS[1], 'status', 'parked')
end
redis.call('HDEL', KEYS[1], 'expires', 'before_status', 'before_expires', hold and 'decision' or 'expires')
return {'done', digits(now)}
""",
)

# KEYS: runs. ARGV: '1' for heads only. Answers one of the usual answers for each.
READ: Final = Script(
    _NUMBERS,
    _RECORD,
    """
local now, answers = clock(), {}
for i, key in ipairs(KEYS) do
  local kind = redis.call('TYPE', key).ok
  if kind == 'none' then
    answers[i] = {'missing', digits(now)}
  elseif kind ~= 'hash' then
    answers[i] = {'corrupt', digits(now), 'kind', kind}
  else
    answers[i] = told('found', now, key, ARGV[1] == '1')
  end
end
return answers
""",
)

# KEYS: open. ARGV: rank to begin at, how many to look at, workflows. Answers the rank to go on with or '', then members.
DUE: Final = Script(
    _NUMBERS,
    _INDEX,
    """
local wanted, most = {}, tonumber(ARGV[2])
for i = 3, #ARGV do wanted[ARGV[i]] = true end
local seen = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', digits(clock()), 'LIMIT', ARGV[1], most)
local answer = {#seen == most and digits(ARGV[1] + most) or ''}
for _, name in ipairs(seen) do
  local _, workflow = run_of(name)
  if wanted[workflow] then answer[#answer + 1] = name end
end
return answer
""",
)

# KEYS: open or ended. ARGV: rank to begin at, and to end at. Answers members.
LIST: Final = Script("return redis.call('ZRANGE', KEYS[1], ARGV[1], ARGV[2])")

# KEYS: ids. ARGV: run id. Answers the sha256 of its key, or nothing.
LOCATE: Final = Script("return {redis.call('HGET', KEYS[1], ARGV[1]) or nil}")

# KEYS: open, ended, ids, runs. ARGV: their members. Takes those out of the index that have no such record any more.
FORGET: Final = Script(
    _INDEX,
    """
local gone = 0
for i, name in ipairs(ARGV) do
  local key = KEYS[i + 3]
  local id = run_of(name)
  local kind = redis.call('TYPE', key).ok
  if kind == 'none' or (kind == 'hash' and redis.call('HGET', key, 'run_id') ~= id) then
    redis.call('ZREM', KEYS[1], name)
    redis.call('ZREM', KEYS[2], name)
    redis.call('HDEL', KEYS[3], id)
    gone = gone + 1
  end
end
return {gone}
""",
)

# KEYS: shards. ARGV: how many shards this store has. Answers how many those that came before it have.
ENTER: Final = Script("""
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('SET', KEYS[1], ARGV[1]) end
return {redis.call('GET', KEYS[1])}
""")
