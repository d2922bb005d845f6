"""The Lua scripts that read records and the index, and that correct the index. `lua.py` has what they share.

KEYS are parts of the index, repeated for each of several shards, unless a script says otherwise.
"""

from __future__ import annotations

from typing import Final

from .lua import INDEX, NUMBERS, PACKED, RECORD, Script

__all__ = ["COMPLETE", "COUNT", "DUE", "DUE_SHARDS", "FORGET", "INCOMPLETE", "LIST", "LOCATE", "MEMBERS", "READ"]

# The clock of scripts that change nothing: a read-only user may lack the right to call TIME.
_READ_CLOCK: Final = """
local function clock()  -- 0 if TIME is forbidden
  local time = redis.pcall('TIME')
  return time.err and 0 or time[1] * 1000000 + time[2]
end
"""

_STATUSES: Final = """
-- Splits a member of `statuses`: prefix of its group, whether held, letter, workflow, run id.
local function split(member)
  local first, letter, size = string.match(member, '^([hl-])(%l?)(%d+):')
  if not first then return member, false, '', '', '' end
  local at = #first + #letter + #size + 2
  local ends = at + tonumber(size)
  return string.sub(member, 1, ends - 1), first == 'h', letter, string.sub(member, at, ends - 1), string.sub(member, ends + 16)
end

-- Calls `visit` with each group of members that begin with `root`, and with the end of the group.
local function each_group(statuses, root, visit)
  local from, below = '[' .. root, root == '' and '(l' or '(' .. root .. '\\255'
  if root == '' then from = '-' end
  while true do
    local found = redis.call('ZRANGEBYLEX', statuses, from, below, 'LIMIT', 0, 1)
    if #found == 0 then return end
    local group, held, letter, workflow = split(found[1])
    visit(group, '(' .. group .. ':', held, letter, workflow)
    from = '[' .. group .. ':'  -- ':' is the byte after '9'
  end
end

-- Returns whether `statuses` has as many members as it must have, and the first leases that have ended are those of running
-- runs: an earlier release may have parked or held one, and then the lease is never renewed.
local function complete(open, index, statuses, now)
  if redis.call('ZCARD', open) ~= redis.call('ZLEXCOUNT', statuses, '-', '(l')
    or redis.call('ZLEXCOUNT', statuses, '[-r', '(-s') ~= redis.call('ZLEXCOUNT', statuses, '[l', '+') then return false end
  local whole, ended = true, string.format('%016.0f', now)
  each_group(statuses, 'l', function(group)
    local found = redis.call('ZRANGEBYLEX', statuses, '[' .. group, '(' .. group .. ended, 'LIMIT', 0, 10)
    for _, member in ipairs(found) do
      local _, letter = entry(redis.call('HGET', index, string.sub(member, #group + 17)))
      if letter ~= 'r' then whole = false end
    end
  end)
  return whole
end
"""

# KEYS: runs. ARGV: '1' for heads only. Returns for each what lua.py says that scripts return.
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

# KEYS: open, of each of some shards. Returns the positions in KEYS of the shards in which a run is due. In most rounds
# of recovery there is none, and then this is the only script that runs.
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
# a shard to return, how many to look at, workflows. Returns for each shard where it stopped ('' at the end), then run
# id, digest and score of each run. Only due runs are returned, the longest due first.
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

# KEYS: started, open, index, statuses, of each of some shards. ARGV: '' or the score and the run id after which to
# begin, how many runs of a shard to return, how many to look at, the least age (microseconds), letters of statuses (''
# for all), h for held ones only, e for those with an expired lease only, '' or '=' workflow. Returns for each shard
# where it stopped ('' at the end), then run id, index entry and score of each run; the newest first.
LIST: Final = Script(
    NUMBERS,
    _READ_CLOCK,
    INDEX,
    _STATUSES,
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

-- Returns the newest `number` wanted runs of each workflow and status that are not over.
local function newest_open(started, statuses, number)
  local ids, scores, more = {}, {}, false
  local above = latest < math.huge and string.format('%016.0f', latest + 1) or ':'
  if ARGV[1] ~= '' then
    local past = string.format('%016.0f', ARGV[1]) .. ARGV[2]
    if past < above then above = past end
  end
  for _, root in ipairs(only == 'h' and {'h'} or {'-' .. letters, only == '' and 'h' .. letters or nil}) do
    each_group(statuses, root, function(group, _, _, _, name)
      if workflow == '' or workflow == '=' .. name then
        local found = redis.call('ZREVRANGEBYLEX', statuses, '(' .. group .. above, '[' .. group, 'LIMIT', 0, number)
        more = more or #found == number
        for _, member in ipairs(found) do
          local id = string.sub(member, #group + 17)
          local score = redis.call('ZSCORE', started, id)
          if score then ids[#ids + 1], scores[id] = id, score end
        end
      end
    end)
  end
  return ids, scores, more
end

-- Returns run ids, their scores and dues, and whether there may be more.
local function newest(started, open, index, statuses, at, size)
  local ids, scores, dues, more = {}, {}, {}, false
  if only == '' and letters == '' or string.find(letters, '[sfcx]') then
    local from = ARGV[1] == '' and '+inf' or ARGV[1]
    local found = redis.call('ZREVRANGEBYSCORE', started, from, '-inf', 'WITHSCORES', 'LIMIT', at, size)
    for i = 1, #found, 2 do ids[#ids + 1], scores[found[i]] = found[i], found[i + 1] end
    return ids, scores, dues, #ids == size
  end
  if complete(open, index, statuses, now) then
    ids, scores, more = newest_open(started, statuses, at + size)
  else
    for _, id in ipairs(redis.call('ZRANGE', open, 0, -1)) do
      local score = redis.call('ZSCORE', started, id)
      if score then ids[#ids + 1], scores[id] = id, score end
    end
  end
  table.sort(ids, function(a, b)
    if scores[a] == scores[b] then return a > b end
    return tonumber(scores[a]) > tonumber(scores[b])
  end)
  local page = {}
  for i = at + 1, math.min(#ids, at + size) do
    page[#page + 1], dues[ids[i]] = ids[i], tonumber(redis.call('ZSCORE', open, ids[i]) or 0)
  end
  return page, scores, dues, more or #ids > at + size
end

for k = 1, #KEYS, 4 do
  local answer = {''}
  local at, size, more = 0, most + 1, true
  while more and answer[1] == '' do
    local ids, scores, dues
    ids, scores, dues, more = newest(KEYS[k], KEYS[k + 1], KEYS[k + 2], KEYS[k + 3], at, size)
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

# KEYS: open, index, statuses, of each of some shards. Returns for each workflow and status of runs that are not over:
# the workflow, the letter (h: held, e: the lease has expired), and the number of runs. It reads every run only if
# `statuses` is not complete, which is so only if the user may not complete it.
COUNT: Final = Script(
    NUMBERS,
    _READ_CLOCK,
    INDEX,
    _STATUSES,
    """
local now, numbers, answer = clock(), {}, {}
local function add(letter, workflow, number)
  if letter ~= '' and number > 0 then numbers[letter .. workflow] = (numbers[letter .. workflow] or 0) + number end
end

for k = 1, #KEYS, 3 do
  local open, index, statuses = KEYS[k], KEYS[k + 1], KEYS[k + 2]
  if complete(open, index, statuses, now) then
    each_group(statuses, '', function(group, ends, held, letter, workflow)
      local number = redis.call('ZLEXCOUNT', statuses, '[' .. group, ends)
      if letter == 'r' and not held then
        local expired = redis.call('ZLEXCOUNT', statuses, '(' .. lease(workflow, 0, ''), '(' .. lease(workflow, now + 1, ''))
        add('e', workflow, expired)
        number = number - expired
      end
      add(held and letter ~= '' and 'h' or letter, workflow, number)
    end)
  else
    local found = redis.call('ZRANGE', open, 0, -1, 'WITHSCORES')
    for i = 1, #found, 2 do
      local _, letter, held, delay, workflow = entry(redis.call('HGET', index, found[i]))
      local expired = letter == 'r' and found[i + 1] - delay <= now
      add(held and 'h' or expired and 'e' or letter, workflow, 1)
    end
  end
end
for name, number in pairs(numbers) do
  for _, part in ipairs({string.sub(name, 2), string.sub(name, 1, 1), number}) do answer[#answer + 1] = part end
end
return answer
""",
)

# KEYS: open, index, statuses, of each of some shards. Returns the positions, from 0, of incomplete shards.
INCOMPLETE: Final = Script(
    NUMBERS,
    _READ_CLOCK,
    INDEX,
    _STATUSES,
    """
local now, answer = clock(), {}
for k = 1, #KEYS, 3 do
  if not complete(KEYS[k], KEYS[k + 1], KEYS[k + 2], now) then answer[#answer + 1] = (k - 1) / 3 end
end
return answer
""",
)

# KEYS: open, started, index, statuses. ARGV: 'open' to add the members that are missing, 'statuses' to remove those that are
# wrong; where to continue. Returns where to continue next, or -1 at the end.
COMPLETE: Final = Script(
    INDEX,
    _STATUSES,
    """
local first, gone = tonumber(ARGV[2]), 0
local function right(id)
  return members(id, redis.call('HGET', KEYS[3], id), redis.call('ZSCORE', KEYS[2], id), redis.call('ZSCORE', KEYS[1], id))
end

local page = redis.call('ZRANGE', ARGV[1] == 'open' and KEYS[1] or KEYS[4], first, first + 199)
for _, one in ipairs(page) do
  if ARGV[1] == 'open' then
    for _, member in ipairs(right(one)) do redis.call('ZADD', KEYS[4], 0, member) end
  else
    local _, _, _, _, id = split(one)
    local known = right(id)
    if one ~= known[1] and one ~= known[2] then gone = gone + redis.call('ZREM', KEYS[4], one) end
  end
end
return #page == 200 and first + 200 - gone or -1
""",
)

# KEYS: index, of each of some shards. ARGV: run id. Returns the entry of each, or ''.
LOCATE: Final = Script("""
local answer = {}
for i, key in ipairs(KEYS) do answer[i] = redis.call('HGET', key, ARGV[1]) or '' end
return answer
""")

# KEYS: open, ended, started, index. ARGV: the place in `started` from which to read a page, or -1 for the runs that
# `started` lacks. Returns 1 if there may be more runs, else '', then run id and index entry of each run.
MEMBERS: Final = Script("""
local first, ids, seen = tonumber(ARGV[1]), {}, {}
if first >= 0 then
  ids = redis.call('ZRANGE', KEYS[3], first, first + 199)
else
  for _, name in ipairs({KEYS[1], KEYS[2]}) do
    for _, id in ipairs(redis.call('ZRANGE', name, 0, -1)) do
      if not seen[id] and not redis.call('ZSCORE', KEYS[3], id) then ids[#ids + 1], seen[id] = id, true end
    end
  end
end
local answer = {(first < 0 or #ids == 200) and '1' or ''}
for _, id in ipairs(ids) do
  answer[#answer + 1] = id
  answer[#answer + 1] = redis.call('HGET', KEYS[4], id) or ''
end
return answer
""")

# KEYS: open, ended, started, index, statuses, runs. ARGV: run ids. Removes from the index the runs whose record is
# gone. Returns how many it removed.
FORGET: Final = Script(
    PACKED,
    INDEX,
    """
local gone = 0
for i, id in ipairs(ARGV) do
  local got = redis.pcall('HGET', KEYS[i + 5], 'run_id')
  if type(got) == 'table' and got.err then
    local run = redis.call('TYPE', KEYS[i + 5]).ok == 'string' and unpacked(redis.call('GET', KEYS[i + 5]))
    got = run and run.run_id or id  -- a key of another type counts as present
  end
  if got ~= id then
    local text, due = redis.call('HGET', KEYS[4], id), redis.call('ZSCORE', KEYS[1], id)
    for _, member in ipairs(members(id, text, redis.call('ZSCORE', KEYS[3], id), due)) do redis.call('ZREM', KEYS[5], member) end
    for k = 1, 3 do redis.call('ZREM', KEYS[k], id) end
    redis.call('HDEL', KEYS[4], id)
    gone = gone + 1
  end
end
return {gone}
""",
)
