"""The Lua scripts of an engine's verbs. Each is atomic, and uses the server's clock. `lua.py` has what they share.

KEYS, unless a script says otherwise: run, open, ended, started, index, statuses.
"""

from __future__ import annotations

from typing import Final

from .lua import CHANGES, DIGEST, LEASE, MAGIC, NUMBERS, PACKED, RECORD, Script

__all__ = ["CHECKPOINT", "CLAIM", "FINISH", "RENEW", "WITHDRAW"]

# ARGV: run id, '' or '=' fingerprint, graph, '' or '=' resumes, '' or '=' attached, lease (microseconds), '' or the fence
# of the record that the caller has seen and could read, flags (q: queued, o: once), workflow; then the other fields of a
# fresh record. The comments "decide: ..." name the cases of decide.py.
CLAIM: Final = Script(
    f"""
local id, workflow, queued = ARGV[1], ARGV[9], string.find(ARGV[8], 'q', 1, true)
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local started, expires = string.format('%016.0f', now), string.format('%016.0f', now + ARGV[6])

local function enter()  -- index a fresh run that is in `open` already
  local name, letter = #workflow .. ':' .. workflow, queued and 'q' or 'r'
  redis.call('ZADD', KEYS[4], started, id)
  redis.call('HSET', KEYS[5], id, string.sub(KEYS[1], -{DIGEST}) .. letter .. '-0:' .. workflow)
  local member = '-' .. letter .. name .. started .. id
  redis.call('ZADD', KEYS[6], 0, member, 0, queued and member or 'l' .. name .. expires .. id)
  local left = redis.call('PTTL', KEYS[5])
  if left >= 0 and left < 86400000 then  -- renewals and endings set the rest of the expiry
    redis.call('PERSIST', KEYS[4])
    redis.call('PERSIST', KEYS[5])
  end
end

local function record(generation, fence)  -- write a fresh record
  redis.call('HSET', KEYS[1], 'run_id', id, 'owner', id, 'workflow', workflow, 'graph', ARGV[3],
    'status', queued and 'queued' or 'running', 'generation', generation, 'fence', fence, 'started', started, 'since', started,
    'expires', expires, 'listed', expires, unpack(ARGV, 10, math.min(1009, #ARGV)))
  for i = 1010, #ARGV, 1000 do redis.call('HSET', KEYS[1], unpack(ARGV, i, math.min(i + 999, #ARGV))) end
  return {{'begun', started, 'generation', generation, 'fence', fence, 'started', started}}
end

local new = redis.call('EXISTS', KEYS[1]) == 0  -- decide: no record
if new and redis.call('ZADD', KEYS[2], 'NX', expires, id) == 1
  and #redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', started, 'LIMIT', 0, 1) == 0 then
  enter()
  return record('0', started)
end
""",
    NUMBERS,
    PACKED,
    CHANGES,
    """
local function begin(generation, above, old)
  replace(places(id), {})
  redis.call('ZADD', KEYS[2], expires, id)
  enter()
  if old then
    if old ~= id then unfile(old) end
    redis.call('DEL', KEYS[1])
  end
  sweep(now)
  return record(digits(generation), digits(math.max(above + 1, now)))
end

if new then return begin(0, 0) end
""",
    RECORD,
    """
local run, corrupt = head(KEYS[1])
if corrupt then return corrupted(now, KEYS[1], run) end

local function granted(word, fence, takeovers)  -- return the record as its new owner finds it, with the owner's fence
  local answer = reply(word, now, KEYS[1])
  for _, text in ipairs({'granted', fence, 'takeovers', takeovers, 'graph', ARGV[3]}) do answer[#answer + 1] = text end
  return answer
end

local function renewed()
  local delay, before = run.delay or '0', places(run.run_id)
  redis.call('ZADD', KEYS[2], digits(now + ARGV[6] + delay), run.run_id)
  replace(before, places(run.run_id))
  redis.call('HSET', KEYS[1], 'expires', expires, 'listed', expires)
end

if run.owner == ARGV[1] then  -- decide: the owner's own claim
  if run.stage ~= 'owned' then return reply('finished', now, KEYS[1]) end
  if run.status == 'queued' and not queued then
    file_open(run, 'running', false, expires)
    local fields = {'status', 'running', 'graph', ARGV[3], 'expires', expires, 'listed', expires}
    for i = 10, #ARGV, 2 do
      local name = ARGV[i]
      if name == 'seq' or name == 'carrier' or string.sub(name, 1, 2) == 's:' then put_in(fields, name, ARGV[i + 1]) end
    end
    write(fields)
  else
    renewed()
  end
  if not run.before_status then return reply('begun', now, KEYS[1], true) end
  return granted('again', run.fence, run.takeovers or '0')
end

local attached = ARGV[5] ~= '' and string.sub(ARGV[5], 2)
local released = (run.status == 'failure' or run.status == 'compensated') and not run.is_held
if attached == run.run_id and (run.is_held or run.stage == 'over') then return reply('finished', now, KEYS[1]) end
if released then  -- decide: released
  -- Later runs have replaced the run that the caller waits for, or this is its own run, which ended while the reply was
  -- lost. An outcome: the run has an error, or was erased; else it was withdrawn or released.
  local outcome = run.error and run.error ~= 'null' or not run.fingerprint
  if attached or run.run_id == ARGV[1] then return reply('finished', now, KEYS[1]) end
  if not (string.find(ARGV[8], 'o', 1, true) and outcome) then
    if ARGV[7] ~= run.fence then return reply('look', now, KEYS[1]) end
    return begin(count(run.generation) + 1, count(run.fence), run.run_id)
  end
  if not run.fingerprint then return reply('finished', now, KEYS[1]) end
end
if ARGV[2] ~= '' and (not run.fingerprint or '=' .. run.fingerprint ~= ARGV[2]) then
  return reply('mismatch', now, KEYS[1], true)
end
if run.is_held then return reply('held', now, KEYS[1], true) end
if run.status == 'success' or released then return reply('finished', now, KEYS[1]) end
if run.stage == 'over' then return corrupted(now, KEYS[1], run) end
if run.stage == 'owned' and run.ends > now then return reply('busy', now, KEYS[1], true) end
if run.status == 'waiting' and run.not_before and count(run.not_before) ~= 0 and tonumber(run.not_before) > now then
  return reply('busy', now, KEYS[1], true)
end
if run.status ~= 'queued' and run.graph ~= ARGV[3] and '=' .. run.graph ~= ARGV[4] then return reply('graph', now, KEYS[1], true) end
if ARGV[7] ~= run.fence then return reply('look', now, KEYS[1]) end

-- decide: resumed, taken over, or begun from the queue
local fence = digits(math.max(count(run.fence) + 1, now))
local takeovers = count(run.takeovers or '0') + (run.status == 'running' and 1 or 0)
local delay = takeovers > 0 and math.min(ARGV[6] * math.min(2 ^ (takeovers - 1), 64), 3153600000000000) or 0
local answer = granted('taken', fence, digits(takeovers))
file_open(run, 'running', false, digits(now + ARGV[6] + delay), digits(delay))
local before = redis.call('HMGET', KEYS[1], 'by', 'since')
redis.call('HDEL', KEYS[1], 'finished', 'not_before', 'before_expires', 'before_by', 'before_since', 'by')
local fields = {'owner', ARGV[1], 'status', 'running', 'expires', expires, 'listed', expires, 'before_status', run.status,
  'fence', fence, 'graph', ARGV[3], 'since', digits(now), 'takeovers', digits(takeovers), 'delay', digits(delay)}
put_in(fields, 'before_expires', run.expires)
put_in(fields, 'before_by', before[1])
put_in(fields, 'before_since', before[2])
for i = 10, #ARGV, 2 do
  if ARGV[i] == 'by' then put_in(fields, 'by', ARGV[i + 1]) end
end
write(fields)
return answer
""",
)

# KEYS: run, and if the lease is renewed: open, index, statuses. ARGV: run id, fence, '' or the number that the record must
# have reached, lease (microseconds; '' to leave it as it is), flags (p: a step has ended, u: the run is being undone, l:
# not all numbers are above the one that the record must have reached); then fields. Returns 1, or {word, ...}. This
# script is on the hot path: as a rule, it reads seven small fields, writes the new ones, and does nothing else.
CHECKPOINT: Final = Script(
    """
local got = redis.pcall('HMGET', KEYS[1], 'run_id', 'fence', 'status', 'seq', 'decision', 'takeovers', 'retries')
if got[1] ~= ARGV[1] or got[2] ~= ARGV[2] or (got[3] ~= 'running' and got[3] ~= 'queued') then
  return {'else'}  -- not the usual case: the caller reads the record
end
local base, flags, decision = ARGV[3], ARGV[5], got[5]
local counted = (got[6] and got[6] ~= '0') or (got[7] and got[7] ~= '0')
if got[4] == base and ARGV[4] == '' and (flags == 'p' or flags == '') and not decision and not counted and #ARGV < 1000 then
  if ARGV[6] then redis.call('HSET', KEYS[1], unpack(ARGV, 6)) end
  return 1
end

local seq = tonumber(got[4] or 0)
if not seq then return {'else'} end
if base ~= '' and seq < tonumber(base) then return {'behind', got[4] or '0'} end
local progress = counted and string.find(flags, 'p', 1, true)
if progress and ARGV[4] == '' then return {'index'} end  -- the caller passes the other keys too
local fields, from = ARGV, 6
if seq ~= tonumber(base) or string.find(flags, 'l', 1, true) then  -- a late or a second copy: the higher number wins
  fields, from = {}, 1
  for i = 6, #ARGV, 2 do
    local number = string.find(ARGV[i], '^[sw]:') and tonumber(string.match(ARGV[i + 1], '^%d+'))
    if ARGV[i] == 'seq' then number = tonumber(ARGV[i + 1]) end
    local old = number and redis.call('HGET', KEYS[1], ARGV[i])
    if old then
      old = tonumber(string.match(old, ARGV[i] == 'seq' and '^%d+$' or '^(%d+) '))
      if not old or old >= 9007199254740991 then return {'else'} end
    end
    if not old or old < number then
      fields[#fields + 1] = ARGV[i]
      fields[#fields + 1] = ARGV[i + 1]
    end
  end
end

if ARGV[4] ~= '' then
""",
    LEASE,
    """
  local listed, delay, workflow = unpack(redis.call('HMGET', KEYS[1], 'listed', 'delay', 'workflow'))
  if not workflow then return {'else'} end
  local time = redis.call('TIME')
  local expires = string.format('%.0f', time[1] * 1000000 + time[2] + ARGV[4])
  local lag = listed and expires - listed
  if progress then  -- no crash loop
    local entry = redis.call('HGET', KEYS[3], ARGV[1])
    if entry then redis.call('HSET', KEYS[3], ARGV[1], (string.gsub(entry, '^(' .. string.rep('.', 45) .. ')%d+:', '%10:'))) end
    redis.call('HDEL', KEYS[1], 'takeovers', 'retries', 'delay')
    lag, delay = nil, 0
  end
  if not lag or lag > ARGV[4] / 4 or lag < 0 then
    redis.call('ZADD', KEYS[2], string.format('%.0f', expires + (tonumber(delay or 0) or 0)), ARGV[1])
    redis.call('HSET', KEYS[1], 'listed', expires)
    if got[3] == 'running' then move_lease(KEYS[4], workflow, listed, expires, ARGV[1]) end
  end
  redis.call('HSET', KEYS[1], 'expires', expires)
end
for i = from, #fields, 1000 do redis.call('HSET', KEYS[1], unpack(fields, i, math.min(i + 999, #fields))) end
if (decision == 'cancel' or decision == 'undo') and not string.find(flags, 'u', 1, true) then return {decision} end
if decision then redis.call('HDEL', KEYS[1], 'decision') end
return 1
""",
)

# ARGV: run id, fence (0: that of the claim which began the run), '' or the number that the record must have reached,
# flags as for CHECKPOINT, status, retention (milliseconds; '' for a run that is kept); for a run that is kept: 1 if it is
# held, microseconds until recovery may resume it or 'never', and if it only waits from now on how many of the values sent
# to it its owner knows, else ''; then fields. For a run that is not kept, these have `held`, `retries`, `reason`,
# `undone`, `failed_step` and `error` only if they are not empty. Returns 1, or {word, ...}.
FINISH: Final = Script(
    f"""
local base, flags, status, retention = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local got = redis.pcall('HMGET', KEYS[1], 'run_id', 'fence', 'status', 'seq', 'schema', 'owner', 'workflow', 'started', 'listed')
local id, workflow = got[1], got[7]
if retention ~= '' and id == ARGV[1] and got[2] == ARGV[2] and got[3] == 'running' and got[4] == base and flags == 'p'
  and got[5] == '2' and got[6] and workflow and got[8] and #got[8] == 16 and got[9] and #got[9] == 16 then
  -- The usual case, in as few steps as it takes; what is below does the same for all cases.
  local name, time, day = #workflow .. ':' .. workflow, redis.call('TIME'), 86400000
  local now = time[1] * 1000000 + time[2]
  redis.call('ZADD', KEYS[3], string.format('%.0f', now + retention * 1000), id)
  if redis.call('ZREM', KEYS[6], '-r' .. name .. got[8] .. id, 'l' .. name .. got[9] .. id) == 2 then
    local left, n = redis.call('PTTL', KEYS[5]), 0
    local all, drop = redis.call('HGETALL', KEYS[1]), {{status = true, finished = true, expires = true, listed = true,
      decision = true, before_status = true, before_expires = true, not_before = true, delay = true, takeovers = true, held = true,
      retries = true, reason = true, undone = true, failed_step = true, error = true, waiting_for = true, owner = got[6] == id}}
    for i = 7, #ARGV, 2 do drop[ARGV[i]] = true end
    for i = 1, #all, 2 do
      if not drop[all[i]] then
        all[n + 1], all[n + 2] = all[i], all[i + 1]
        n = n + 2
      end
    end
    all[n + 1], all[n + 2], all[n + 3], all[n + 4] = 'status', status, 'finished', string.format('%.0f', now)
    for i = 7, #ARGV do all[n + i - 2] = ARGV[i] end
    for i = #all, n + #ARGV - 1, -1 do all[i] = nil end
    redis.call('HSET', KEYS[5], id, string.sub(KEYS[1], -{DIGEST}) .. (status == 'compensation_failed' and 'x' or string.sub(status, 1, 1))
      .. '-0:' .. workflow)
    redis.call('ZREM', KEYS[2], id)
    redis.call('SET', KEYS[1], {MAGIC!r} .. cmsgpack.pack(all), 'PX', retention)
    if left < retention + day then
      local expiry = string.format('%.0f', retention + 2 * day)
      redis.call('PEXPIRE', KEYS[3], expiry)
      if redis.call('EXISTS', KEYS[2]) == 0 then
        redis.call('PEXPIRE', KEYS[4], expiry)
        redis.call('PEXPIRE', KEYS[5], expiry)
      end
    end
    return 1
  end
end
""",
    NUMBERS,
    PACKED,
    RECORD,
    CHANGES,
    """
local now = clock()
local all = whole(KEYS[1])
if not all then return {'missing', digits(now)} end
if all.kind or not checked(all) then return corrupted(now, KEYS[1], all) end
local first = ARGV[2] == '0' and all.owner == ARGV[1] and not all.before_status
if all.run_id ~= ARGV[1] or (all.fence ~= ARGV[2] and not first) then return {'lost', digits(now)} end
if all.stage ~= 'owned' then return 1 end  -- a late copy
local seq = count(all.seq or '0')
if not seq then return corrupted(now, KEYS[1], all) end
if base ~= '' and seq < tonumber(base) then return {'behind', digits(now), 'seq', digits(seq)} end
local kept = retention == ''
local held, due, received = kept and ARGV[7] == '1', kept and ARGV[8], kept and ARGV[9] or ''
if received ~= '' and ((count(all.received or '0') or 0) > tonumber(received) or all.decision == 'cancel' or all.decision == 'undo') then
  return {'arrived', digits(now)}
end

local fields, progress = {'status', status}, string.find(flags, 'p', 1, true)
for i = kept and 10 or 7, #ARGV, 2 do
  local name, text = ARGV[i], ARGV[i + 1]
  local old = all[name]
  if old and (name == 'seq' or string.find(name, '^[sw]:')) then
    local number = count(string.match(old, name == 'seq' and '^(%d+)$' or '^(%d+) '))
    if not number then return corrupted(now, KEYS[1], all) end
    if number >= tonumber(string.match(text, '^%d+')) then name = nil end
  end
  if name then put_in(fields, name, text) end
end

if not kept then
  for _, name in ipairs({'held', 'retries', 'reason', 'undone', 'failed_step', 'error'}) do all[name] = nil end
  for i = 1, #fields, 2 do all[fields[i]] = fields[i + 1] end
  if progress then all.takeovers = nil end
  file_ended(all, status, now, tonumber(retention))
  all.finished = digits(now)
  pack(all, retention)
  return 1
end
local later = due == 'never' and '9007199254740991' or digits(now + due)
file_open(all, status, held, (held or due == 'never') and '+inf' or later)
if received == '' then put_in(fields, 'finished', digits(now)) end
if due == 'never' or tonumber(due) ~= 0 then put_in(fields, 'not_before', later) end
write(fields)
redis.call('HDEL', KEYS[1], 'expires', 'listed', 'decision', 'delay', 'before_status', 'before_expires',
  progress and 'takeovers' or 'delay')
return 1
""",
)

# KEYS: open, started, index, statuses, runs. ARGV: lease (microseconds), then for each run its id, its fence, and how
# many of the values that were sent to it its owner knows. Returns 0 (lost), 1 (renewed), 2 (renewed, and to be
# cancelled), 3 (renewed, and there are more values) or 4 (renewed, and to be undone) for each.
RENEW: Final = Script(
    NUMBERS,
    LEASE,
    """
-- PERSIST needs no memory, and after one write Redis admits a script's other writes even when its memory is full. A full
-- memory must not cost a lease.
for i = 1, 3 do redis.call('PERSIST', KEYS[i]) end
local expires, answer = digits(clock() + ARGV[1]), {}
for i = 5, #KEYS do
  answer[i - 4] = 0
  local got = redis.pcall('HMGET', KEYS[i], 'run_id', 'fence', 'status', 'delay', 'decision', 'received', 'listed', 'workflow')
  local own = 3 * i - 13
  if not got.err and got[1] == ARGV[own] and got[2] == ARGV[own + 1] and (got[3] == 'running' or got[3] == 'queued')
  then
    redis.call('ZADD', KEYS[1], digits(expires + (count(got[4]) or 0)), got[1])
    redis.call('HSET', KEYS[i], 'expires', expires, 'listed', expires)
    if got[3] == 'running' and got[8] then move_lease(KEYS[4], got[8], got[7], expires, got[1]) end
    local more = got[6] and (count(got[6]) or 0) > tonumber(ARGV[own + 2])
    answer[i - 4] = got[5] == 'cancel' and 2 or got[5] == 'undo' and 4 or more and 3 or 1
  end
end
return answer
""",
)

# ARGV: run id of the claim, retention (milliseconds).
WITHDRAW: Final = Script(
    NUMBERS,
    PACKED,
    RECORD,
    CHANGES,
    """
local now = clock()
local run, corrupt = head(KEYS[1])
if not run then return {'missing', digits(now)} end
if corrupt then return corrupted(now, KEYS[1], run) end
if run.owner ~= ARGV[1] or run.stage ~= 'owned' then return {'lost', digits(now)} end
if run.before_status then
  local status = run.before_status
  -- The withdrawn takeover does not count.
  local takeovers = count(run.takeovers or '0') - (status == 'running' and 1 or 0)
  file_open(run, status, false, digits(now))
  redis.call('HSET', KEYS[1], 'status', status, 'takeovers', digits(math.max(takeovers, 0)))
  redis.call('HDEL', KEYS[1], 'delay')
  if status == 'running' or status == 'queued' then
    redis.call('HSET', KEYS[1], 'expires', digits(now), 'listed', digits(now))
  else
    redis.call('HDEL', KEYS[1], 'expires', 'listed')
    if status ~= 'waiting' then redis.call('HSET', KEYS[1], 'finished', digits(now)) end
  end
else
  free(run, now, tonumber(ARGV[2]))
end
return {'done', digits(now)}
""",
)
