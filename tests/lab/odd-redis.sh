#!/bin/bash
# Odd data for Redis 7: every type in every encoding, binary values, two databases,
# expiry times, a stream with pending entries, a function library.
#   odd-redis.sh CONTAINER [PASSWORD]        (or the password in REDIS_PASSWORD)
# Keys begin with odd: and are written anew, so a second call gives the same data.
# The last line: db0=<keys> db0_expires=<n> db5=<keys> db5_expires=<n>, by INFO keyspace.
#
# What could go wrong
# - A password in an argument list is visible to everybody: it goes by REDISCLI_AUTH.
# - redis-cli ends with 0 although the server answered with an error: the answers
#   are looked at.
# - Values with NUL and CRLF do not survive a shell; a script inside the server makes
#   them.
set -euo pipefail
# shellcheck source=tests/lab/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

container=${1:-}
[ -n "$container" ] || lab_die "usage: odd-redis.sh CONTAINER [PASSWORD]"
export REDISCLI_AUTH=${2:-${REDIS_PASSWORD:-}}
# An empty one would be sent too, and a server without a password rejects it.
[ -n "$REDISCLI_AUTH" ] || unset REDISCLI_AUTH
lab_engine

cli() { docker exec -i -e REDISCLI_AUTH "$container" redis-cli --no-auth-warning "$@"; }

expect() { # expect WANTED COMMAND...: the answer must be this one
  local wanted=$1 got; shift
  got=$("$@" 2>&1) || true
  [ "$got" = "$wanted" ] || lab_die "$container answered: ${got:0:400}"
}

library() {
  cat <<'LUA'
#!lua name=oddlib
-- A library is no key, but is part of the RDB.
redis.register_function('odd_double', function(keys, args) return args[1] * 2 end)
redis.register_function{function_name='odd_ro', callback=function() return 'é' end, flags={'no-writes'}}
LUA
}

data() {
  cat <<'LUA'
local call = redis.call
local function key(name) call('DEL', 'odd:' .. name); return 'odd:' .. name end
local function noise(n)          -- the same incompressible bytes at each call
  local x, t = 42, {}
  for i = 1, n do x = (x * 1103515245 + 12345) % 2147483648; t[i] = string.char(math.floor(x / 65536) % 256) end
  return table.concat(t)
end
local all = {}
for i = 0, 255 do all[#all + 1] = string.char(i) end
all = table.concat(all)

call('SELECT', 0)
-- strings
call('SET', key('bytes'), all)
call('SET', key('nul crlf'), 'a\0b\r\nc\n\0')
call('SET', key('empty'), '')
call('SET', key('megabyte'), string.rep('0123456789abcdef', 65536))
call('SET', key('noise'), noise(200000))
for _, n in ipairs{'0', '-1', '127', '32768', '2147483648', '9223372036854775807', '-9223372036854775808', '007', '3.0'} do
  call('SET', key('int:' .. n), n)
end
call('SET', key('ünïcode 表 😀 "q"'), 'wert é')
call('SET', key(all), 'a key of all bytes')
call('SET', key('resp'), '*1\r\n$8\r\nFLUSHALL\r\n')
-- lists: one packed node; many nodes; nodes of their own for large elements
call('RPUSH', key('list:small'), 'a', '', '1', '-5', all)
local k = key('list:large')
for i = 1, 5000 do call('RPUSH', k, 'element ' .. i .. string.rep('x', i % 90)) end
call('RPUSH', key('list:plain'), noise(20000), 'small', string.rep('y', 70000))
-- sets: integers, packed, hash table
call('SADD', key('set:int16'), 1, -2, 300)
call('SADD', key('set:int64'), 1, 9223372036854775807)
call('SADD', key('set:packed'), 'a', 'b', '', all)
k = key('set:large')
for i = 1, 3000 do call('SADD', k, 'member:' .. i) end
-- hashes
call('HSET', key('hash:small'), 'f', 'v', '', '', 'é', 'a\0\r\n', 'n', '12')
k = key('hash:large')
for i = 1, 2000 do call('HSET', k, 'field ' .. i, string.rep('v', i % 100)) end
call('HSET', key('hash:wide'), 'f', string.rep('w', 5000), all, all)
-- sorted sets
call('ZADD', key('zset:small'), '-inf', 'low', '+inf', 'high', '0', 'zero', '-0', 'minus zero', '1.5', '', '3.141592653589793', 'pi', '1e-300', 'tiny', '1.7e308', 'huge')
k = key('zset:large')
for i = 1, 2000 do call('ZADD', k, i / 7, 'm' .. i) end
call('ZADD', k, '-inf', 'low', '+inf', 'high')
-- streams
k = key('stream')
for i = 1, 300 do call('XADD', k, i .. '-' .. (i % 3), 'n', i, 'v', 'é\0\r\n', 'f' .. (i % 2), string.rep('s', i % 50)) end
call('XDEL', k, '10-1', '300-0')
call('XGROUP', 'CREATE', k, 'group', '0')
call('XGROUP', 'CREATE', k, 'gruppe é', '$')
call('XGROUP', 'CREATECONSUMER', k, 'group', 'idle')
call('XREADGROUP', 'GROUP', 'group', 'one', 'COUNT', 20, 'STREAMS', k, '>')
call('XREADGROUP', 'GROUP', 'group', 'two "2"', 'COUNT', 5, 'STREAMS', k, '>')
call('XACK', k, 'group', '1-1', '2-2')
k = key('stream:empty')
call('XADD', k, '5-5', 'a', 'b')
call('XDEL', k, '5-5')
-- what is a string or sorted set underneath
k = key('hll:sparse')
for i = 1, 10 do call('PFADD', k, i) end
k = key('hll:dense')
for i = 1, 5000 do call('PFADD', k, 'v' .. i) end
call('GEOADD', key('geo'), '13.361389', '38.115556', 'Palermo', '-179.9', '-85', 'edge', '15.087269', '37.502669', 'Catania é')
call('SETBIT', key('bitmap'), 100000, 1)
call('SETBIT', 'odd:bitmap', 7, 1)
-- expiry: long, so that no test run sees one end; and at a fixed time
for i = 1, 20 do call('SET', key('ttl:' .. i), i, 'EX', 86400 + i) end
call('PEXPIREAT', 'odd:ttl:20', 4102444800123)
k = key('ttl:hash')
call('HSET', k, 'a', 'b')
call('EXPIRE', k, 864000)

call('SELECT', 5)
call('SET', key('same name'), 'in db 5')
for i = 1, 100 do call('SET', key('five:' .. i), string.rep('5', i)) end
for i = 1, 7 do call('SET', key('five:ttl:' .. i), i, 'EX', 172800) end
call('SADD', key('five:set'), 1, 2, 3)
call('SELECT', 0)
return 'done'
LUA
}

# The answer of FUNCTION LOAD is the name of the library.
expect oddlib cli -x FUNCTION LOAD REPLACE < <(library)
expect 'done' cli --eval /dev/stdin < <(data)

count() { # count DB FIELD of INFO keyspace
  printf '%s\n' "$keyspace" | tr -d '\r' | sed -n "s/^db$1:\(.*,\)\{0,1\}$2=\([0-9]*\).*/\2/p"
}
keyspace=$(cli INFO keyspace)
printf 'db0=%s db0_expires=%s db5=%s db5_expires=%s\n' "$(count 0 keys)" "$(count 0 expires)" "$(count 5 keys)" "$(count 5 expires)"
