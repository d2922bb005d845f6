"""The Lua scripts of listings and of operators' verbs. `lua.py` has what they share.

KEYS, unless a script says otherwise: run, open, ended, started, index.
"""

from __future__ import annotations

from typing import Final

from .lua import CHANGES, INDEX, NUMBERS, PACKED, RECORD, Script

__all__ = [
    "COUNT",
    "DECIDE",
    "DUE",
    "DUE_SHARDS",
    "ENTER",
    "ERASE",
    "FORGET",
    "LIST",
    "LOCATE",
    "MEMBERS",
    "READ",
    "RELEASE",
    "SEND",
]

# What scripts that change nothing use: a user who may only read may not be allowed to ask for the time.
_READ_CLOCK: Final = """
local function clock()  -- 0: not allowed to know
  local time = redis.pcall('TIME')
  return time.err and 0 or time[1] * 1000000 + time[2]
end
"""

# ARGV: '1' to force it, retention (milliseconds).
RELEASE: Final = Script(
    NUMBERS,
    PACKED,
    RECORD,
    CHANGES,
    """
local now = clock()
local run, corrupt = head(KEYS[1])
if not run then return {'missing', digits(now)} end
if corrupt then
  if ARGV[1] ~= '1' then return corrupted(now, KEYS[1], run) end
  if run.run_id then unfile(run.run_id) end
  redis.call('DEL', KEYS[1])
  return {'done', digits(now)}
end
if run.stage == 'owned' and run.ends > now and ARGV[1] ~= '1' then return reply('busy', now, KEYS[1], true) end
free(run, now, tonumber(ARGV[2]))
return {'done', digits(now)}
""",
)

# ARGV: '1' to force it, retention (milliseconds).
ERASE: Final = Script(
    NUMBERS,
    PACKED,
    RECORD,
    CHANGES,
    """
local now = clock()
local run, corrupt = head(KEYS[1])
if not run then return {'missing', digits(now)} end
if corrupt then
  if ARGV[1] ~= '1' then return corrupted(now, KEYS[1], run) end
  if run.run_id then unfile(run.run_id) end
  redis.call('DEL', KEYS[1])
  return {'done', digits(now)}
end
if run.is_held or run.stage ~= 'over' then
  if ARGV[1] ~= '1' then return reply('busy', now, KEYS[1], true) end
  free(run, now, tonumber(ARGV[2]))
end
local all, kept, left = whole(KEYS[1]), {}, redis.call('PTTL', KEYS[1])
for _, name in ipairs({'schema', 'key', 'key_text', 'run_id', 'owner', 'workflow', 'graph', 'status', 'generation', 'fence', 'seq',
  'started', 'since', 'finished'}) do kept[name] = all[name] end
pack(kept, left > 0 and left or tonumber(ARGV[2]))
return {'done', digits(now)}
""",
)

# ARGV: hold, resume, undo or cancel; '' or the reason.
DECIDE: Final = Script(
    NUMBERS,
    PACKED,
    RECORD,
    CHANGES,
    """
local now = clock()
local run, corrupt = head(KEYS[1])
if not run then return {'missing', digits(now)} end
if corrupt then return corrupted(now, KEYS[1], run) end
local decision, hold = ARGV[1], ARGV[1] == 'hold'
local stops = decision == 'undo' or decision == 'cancel'
if run.stage == 'owned' and run.ends > now then
  if not stops then return reply('busy', now, KEYS[1], true) end
  if run.undoing ~= '1' then  -- its owner hears of it with the next renewal or checkpoint
    redis.call('HSET', KEYS[1], 'decision', 'cancel', 'reason', ARGV[2])
  end
  return {'done', digits(now)}
end
if run.stage == 'over' and not run.is_held and not hold and not (decision == 'resume' and run.status == 'failure') then
  return reply('over', now, KEYS[1], true)
end

local status = run.status
if run.status == 'running' or (run.stage == 'over' and not hold) then status = 'parked' end
local all = run.packed and whole(KEYS[1])
file_open(run, status, hold, hold and '+inf' or digits(now))
redis.call('ZREM', KEYS[3], run.run_id)
redis.call('ZADD', KEYS[4], 'NX', run.started, run.run_id)
if all then
  all.stage = nil
  redis.call('DEL', KEYS[1])
  local fields = {}
  for name, text in pairs(all) do
    if type(text) == 'string' then put_in(fields, name, text) end
  end
  write(fields)
end
redis.call('PERSIST', KEYS[1])
redis.call('HSET', KEYS[1], 'held', hold and '1' or '0', 'status', status, 'reason', ARGV[2])
redis.call('HDEL', KEYS[1], 'expires', 'listed', 'before_status', 'before_expires', 'before_by', 'before_since', 'not_before',
  'delay', 'decision')
if not hold then redis.call('HSET', KEYS[1], 'decision', decision == 'cancel' and 'undo' or decision) end
if run.stage == 'owned' then  -- its owner is fenced off if it comes back
  redis.call('HSET', KEYS[1], 'fence', digits(count(run.fence) + 1))
end
return {'done', digits(now)}
""",
)

# ARGV: run id, name of the step, text. Returns `other` where another run has the key, `known` where the step has a value or is no
# more waiting, with both texts.
SEND: Final = Script(
    NUMBERS,
    PACKED,
    RECORD,
    CHANGES,
    """
local now = clock()
local run, corrupt = head(KEYS[1])
if not run then return {'missing', digits(now)} end
if corrupt then return corrupted(now, KEYS[1], run) end
if run.run_id ~= ARGV[1] then return {'other', digits(now)} end
local names = {'m:' .. ARGV[2], 's:' .. ARGV[2], 'waiting_for', 'received'}
local known = opened(KEYS[1], names)
local status = known[names[2]] and string.match(known[names[2]], '^%d+ {"status":"(%l+)"')
if known[names[1]] or run.stage == 'over' or run.undoing == '1'
  or (known[names[2]] and status ~= 'pending' and status ~= 'waiting') then
  return {'known', digits(now), 'sent', known[names[1]] or '', 'step', known[names[2]] or ''}
end
local fields = {names[1], ARGV[3], 'received', digits((count(known.received or '0') or 0) + 1)}
local awaited, waits = pcall(cjson.decode, known.waiting_for or '[]')
for _, name in ipairs(run.status == 'waiting' and awaited and waits or {}) do
  if name == ARGV[2] then
    if not run.is_held then redis.call('ZADD', KEYS[2], digits(now), run.run_id) end
    put_in(fields, 'not_before', digits(now))
    break
  end
end
write(fields)
return {'done', digits(now)}
""",
)

# KEYS: runs. ARGV: '1' for heads only. Returns one of the usual answers for each.
READ: Final = Script(
    NUMBERS,
    _READ_CLOCK,
    PACKED,
    RECORD,
    """
local now, answers = clock(), {}
for i, key in ipairs(KEYS) do
  local run = opened(key, {'run_id'})
  if not run then
    answers[i] = {'missing', digits(now)}
  elseif run.kind then
    answers[i] = {'corrupt', digits(now), 'kind', run.kind}
  else
    answers[i] = reply('found', now, key, ARGV[1] == '1')
  end
end
return answers
""",
)

# KEYS: open, of each of some shards. Returns the places in KEYS of those in which a run is due: in most rounds of recovery
# there is none, and this is all that is asked.
DUE_SHARDS: Final = Script(
    NUMBERS,
    _READ_CLOCK,
    """
local now, answer = digits(clock()), {}
for i, key in ipairs(KEYS) do
  if #redis.call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, 1) > 0 then answer[#answer + 1] = i end
end
return answer
""",
)

# KEYS: open, index, of each of some shards. ARGV: '' or the score and the run id after which to begin, how many runs of
# a shard to return, how many to look at, workflows. Returns of each shard where it stopped ('' at the end), then run id,
# digest and score of each run. Only due runs are returned, the longest due first.
DUE: Final = Script(
    NUMBERS,
    _READ_CLOCK,
    INDEX,
    """
local wanted, now, answers = {}, clock(), {}
for i = 5, #ARGV do wanted[ARGV[i]] = true end
local most, window = tonumber(ARGV[3]), tonumber(ARGV[4])
for k = 1, #KEYS, 2 do
  local answer, from = {''}, ARGV[1] == '' and '-inf' or ARGV[1]
  local at, size, more = 0, most + 1, true
  while more and answer[1] == '' do
    local found = redis.call('ZRANGEBYSCORE', KEYS[k], from, digits(now), 'WITHSCORES', 'LIMIT', at, size)
    local ids = {}
    for i = 1, #found, 2 do ids[#ids + 1] = found[i] end
    at, more = at + #ids, #ids == size
    local entries = #ids > 0 and redis.call('HMGET', KEYS[k + 1], unpack(ids)) or {}
    for i, id in ipairs(ids) do
      local score = found[2 * i]
      if ARGV[1] == '' or tonumber(score) > tonumber(ARGV[1]) or id > ARGV[2] then
        local digest, _, held, _, workflow = entry(entries[i])
        if wanted[workflow] and not held then
          for _, text in ipairs({id, digest, score}) do answer[#answer + 1] = text end
        end
      end
      if (#answer > 3 * most and (more or i < #ids)) or (more and i == #ids and at >= window) then
        answer[1] = score .. ' ' .. id
        break
      end
    end
    size = math.min(2 * size, window - at)
  end
  answers[#answers + 1] = answer
end
return answers
""",
)

# KEYS: started, open, index, of each of some shards. ARGV: '' or the score and the run id after which to begin, how many
# runs of a shard to return, how many to look at, the least age (microseconds), letters of statuses ('' for all), h for held
# ones only, e for those with an expired lease only, '' or '=' workflow. Returns of each shard where it stopped ('' at the
# end), then run id, index entry and score of each run; the newest first.
LIST: Final = Script(
    NUMBERS,
    _READ_CLOCK,
    INDEX,
    """
local now, answers = clock(), {}
local most, window = tonumber(ARGV[3]), tonumber(ARGV[4])
local latest = tonumber(ARGV[5]) > 0 and now - ARGV[5] or math.huge
local letters, only, workflow = ARGV[6], ARGV[7], ARGV[8]

local function wanted(text, due)
  local _, letter, held, delay, name = entry(text)
  if letters ~= '' and not string.find(letters, letter, 1, true) then return false end
  if only == 'h' and not held or only == 'e' and due - delay > now then return false end
  return workflow == '' or workflow == '=' .. name
end

local function newest(started, open, at, size)  -- run ids, their scores and dues, and whether there may be more
  local ids, scores, dues = {}, {}, {}
  if only == '' and letters == '' or string.find(letters, '[sfcx]') then
    local from = ARGV[1] == '' and '+inf' or ARGV[1]
    local found = redis.call('ZREVRANGEBYSCORE', started, from, '-inf', 'WITHSCORES', 'LIMIT', at, size)
    for i = 1, #found, 2 do ids[#ids + 1], scores[found[i]] = found[i], found[i + 1] end
    return ids, scores, dues, #ids == size
  end
  local found = redis.call('ZRANGE', open, 0, -1, 'WITHSCORES')  -- few are not over
  for i = 1, #found, 2 do
    local score = redis.call('ZSCORE', started, found[i])
    if score then ids[#ids + 1], scores[found[i]], dues[found[i]] = found[i], score, tonumber(found[i + 1]) end
  end
  table.sort(ids, function(a, b)
    if scores[a] == scores[b] then return a > b end
    return tonumber(scores[a]) > tonumber(scores[b])
  end)
  return ids, scores, dues, false
end

for k = 1, #KEYS, 3 do
  local answer = {''}
  local at, size, more = 0, most + 1, true
  while more and answer[1] == '' do
    local ids, scores, dues
    ids, scores, dues, more = newest(KEYS[k], KEYS[k + 1], at, size)
    at = at + #ids
    for i, id in ipairs(ids) do
      local score = scores[id]
      local number = tonumber(score)
      if number <= latest
        and (ARGV[1] == '' or number < tonumber(ARGV[1]) or (number == tonumber(ARGV[1]) and id < ARGV[2])) then
        local text = redis.call('HGET', KEYS[k + 2], id)
        if wanted(text, dues[id] or 0) then
          for _, part in ipairs({id, text or '', score}) do answer[#answer + 1] = part end
        end
      end
      if (#answer > 3 * most and (more or i < #ids)) or (more and i == #ids and at >= window) then
        answer[1] = score .. ' ' .. id
        break
      end
    end
    size = math.min(2 * size, window - at)
  end
  answers[#answers + 1] = answer
end
return answers
""",
)

# KEYS: open, index, of each of some shards. Returns of each workflow and status of what is not over: name, letter (h: held,
# e: the lease has expired), number.
COUNT: Final = Script(
    NUMBERS,
    _READ_CLOCK,
    INDEX,
    """
local now, numbers, answer = clock(), {}, {}
for k = 1, #KEYS, 2 do
  local found = redis.call('ZRANGE', KEYS[k], 0, -1, 'WITHSCORES')
  for i = 1, #found, 2 do
    local _, letter, held, delay, workflow = entry(redis.call('HGET', KEYS[k + 1], found[i]))
    if held then
      letter = 'h'
    elseif letter == 'r' and found[i + 1] - delay <= now then
      letter = 'e'
    end
    if letter ~= '' then numbers[letter .. workflow] = (numbers[letter .. workflow] or 0) + 1 end
  end
end
for name, number in pairs(numbers) do
  for _, part in ipairs({string.sub(name, 2), string.sub(name, 1, 1), number}) do answer[#answer + 1] = part end
end
return answer
""",
)

# KEYS: index, of each of some shards. ARGV: run id. Returns the entry of each, or ''.
LOCATE: Final = Script("""
local answer = {}
for i, key in ipairs(KEYS) do answer[i] = redis.call('HGET', key, ARGV[1]) or '' end
return answer
""")

# KEYS: open, ended, started, index. ARGV: '' or what the last call returned first. Returns where to continue, then run id
# and index entry of some members.
MEMBERS: Final = Script("""
local ids, seen = {}, {}
local function add(id)
  if not seen[id] then ids[#ids + 1], seen[id] = id, true end
end
if ARGV[1] == '0' then
  for _, name in ipairs({KEYS[1], KEYS[2]}) do
    for _, id in ipairs(redis.call('ZRANGE', name, 0, -1)) do
      if not redis.call('ZSCORE', KEYS[3], id) then add(id) end
    end
  end
end
local first = tonumber(ARGV[1])
local page = redis.call('ZRANGE', KEYS[3], first, first + 199)
for _, id in ipairs(page) do add(id) end
local answer = {#page == 200 and tostring(first + 200) or ''}
for _, id in ipairs(ids) do
  answer[#answer + 1] = id
  answer[#answer + 1] = redis.call('HGET', KEYS[4], id) or ''
end
return answer
""")

# KEYS: open, ended, started, index, runs. ARGV: run ids. Takes those out of the index that have no record any more.
FORGET: Final = Script(
    PACKED,
    """
local gone = 0
for i, id in ipairs(ARGV) do
  local got = redis.pcall('HGET', KEYS[i + 4], 'run_id')
  if type(got) == 'table' and got.err then
    local run = redis.call('TYPE', KEYS[i + 4]).ok == 'string' and unpacked(redis.call('GET', KEYS[i + 4]))
    got = run and run.run_id or id  -- one of another type is not missing
  end
  if got ~= id then
    for k = 1, 3 do redis.call('ZREM', KEYS[k], id) end
    redis.call('HDEL', KEYS[4], id)
    gone = gone + 1
  end
end
return {gone}
""",
)

# KEYS: shards, secret. ARGV: how many shards this store has, '1' to write it down, '' or the secret of a codec that hides.
# Returns how many the prefix was set up with and its secret, or ''.
ENTER: Final = Script("""
local known, secret = redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2])
if not known and ARGV[2] == '1' then
  redis.call('SET', KEYS[1], ARGV[1])
  if ARGV[3] ~= '' and not secret then
    redis.call('SET', KEYS[2], ARGV[3])
    secret = ARGV[3]
  end
end
return {known or '', secret or ''}
""")
