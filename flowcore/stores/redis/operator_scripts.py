"""The Lua scripts of operators' verbs. `lua.py` has what they share.

KEYS, unless a script says otherwise: run, open, ended, started, index, statuses.
"""

from __future__ import annotations

from typing import Final

from .lua import CHANGES, NUMBERS, PACKED, RECORD, Script

__all__ = ["DECIDE", "ENTER", "ERASE", "RELEASE", "SEND"]

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
  if run.undoing ~= '1' then  -- its owner learns of it with the next renewal or checkpoint
    redis.call('HSET', KEYS[1], 'decision', decision, 'reason', ARGV[2])
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
redis.call('HDEL', KEYS[1], 'expires', 'listed', 'before_status', 'before_expires', 'not_before', 'delay',
  'decision')
if not hold then redis.call('HSET', KEYS[1], 'decision', decision) end
if run.stage == 'owned' then  -- its owner is fenced off if it comes back
  redis.call('HSET', KEYS[1], 'fence', digits(count(run.fence) + 1))
end
return {'done', digits(now)}
""",
)

# ARGV: run id, name of the step, text. Returns `other` if another run has the key. Returns `known`, with the texts of
# the value and of the step, if a value was sent before or the step no longer waits.
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

# KEYS: shards, secret. ARGV: the number of shards of this store, '1' to set up a new prefix with it, and '' or the
# secret of a codec that hides keys. Returns the number of shards that the prefix was set up with before and its secret,
# each '' if none.
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
