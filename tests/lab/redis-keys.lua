-- One line per key of a database, without names that a terminal would not bear: digest of the name, type, digest of the
-- value, time of its end.

-- In a hash table the order is up to chance, and so is the serialised form.
local function digest(k, type)
  if redis.call('OBJECT', 'ENCODING', k) ~= 'hashtable' then return redis.sha1hex(redis.call('DUMP', k)) end
  local all, parts = redis.call(type == 'hash' and 'HGETALL' or 'SMEMBERS', k), {}
  local step = type == 'hash' and 2 or 1
  for i = 1, #all, step do
    parts[#parts + 1] = redis.sha1hex(all[i]) .. (step == 2 and redis.sha1hex(all[i + 1]) or '')
  end
  table.sort(parts)
  return redis.sha1hex(table.concat(parts))
end

local out, cursor = {}, '0'
repeat
  local answer = redis.call('SCAN', cursor, 'COUNT', 1000)
  cursor = answer[1]
  for _, k in ipairs(answer[2]) do
    local type = redis.call('TYPE', k).ok
    out[#out + 1] = redis.sha1hex(k) .. ' ' .. type .. ' ' .. digest(k, type) .. ' ' .. redis.call('PEXPIRETIME', k)
  end
until cursor == '0'
table.sort(out)
return out
