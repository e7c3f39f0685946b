#!/bin/bash
# A whole stack from beginning to end, in a real Docker engine and as root: PostgreSQL, Redis, ChromaDB, models and logs
# are filled, backed up, destroyed, restored and compared. Every command is shown before it runs.
#   TARS_BACKUP=FILE    the program; without it, it is built
#   LAB_PREFIX=demo-    how the names of its containers, volumes and network begin
#
# The stack and its data are those of the laboratory (tests/lab), whose settings hold here too. An engine that answers is
# used; otherwise a private one is started, and stopped at the end.
#
# What could go wrong
# - A comparison that compares nothing looks like success. So each one first looks whether what it compares was there,
#   and was gone in between, and the last line comes only when all of them ran.
# - There may be a stack of these names already, perhaps one of a demonstration that was killed. It is left alone.
# - Published ports are other ones after each start of a container: they are asked for each time.

# shellcheck disable=SC2016 # `show` expands what it has shown
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."
export LC_ALL=C.UTF-8

# shellcheck source=scripts/demo-lib.sh
. scripts/demo-lib.sh

[ "$(id -u)" = 0 ] ||
  die "needs root, as the data of a stack lies in volumes that only root can read: sudo make demo STACK=1"
# shellcheck source=tests/lab/lib.sh
. tests/lab/lib.sh

# The data below is for all five services, without a password for Redis.
unset LAB_SERVICES REDIS_PASSWORD POSTGRES_PASSWORD
export LAB_PREFIX=${LAB_PREFIX:-demo-}
name=${LAB_PREFIX}tars-home
project=${LAB_PREFIX}deploy
containers=("$name"-{postgres,redis,chromadb,ollama,backend})

need python3 python3
program

work=$(mktemp -d "${TMPDIR:-/tmp}/tars-demo-XXXXXX")
engine_started=no stack_made=no
end() {
  trap '' INT TERM HUP # the stack goes in any case
  if [ $stack_made = yes ]; then "$LAB_HERE/stack.sh" down || true; fi
  if [ $engine_started = yes ]; then "$LAB_HERE/engine.sh" down || true; fi
  rm -rf "$work"
}
end_always end

step "An engine, images, and a stack in it"
show "lab=$(printf %q "$LAB_HERE")"
if ! "$LAB_HERE/engine.sh" env >/dev/null 2>&1; then
  engine_started=yes
  show '"$lab/engine.sh" up'
fi
lab_engine
echo "the engine is at $DOCKER_HOST"
show '"$lab/images.sh" all'
taken() {
  docker container inspect -f '{{.Name}}' "${containers[@]}" 2>/dev/null || true # most are not there
  docker volume ls -q --filter "label=com.docker.compose.project=$project"
}
if [ "$(taken)" ]; then
  die "there is a stack of these names: $(taken | tr '\n' ' '); take another LAB_PREFIX, or remove it: LAB_PREFIX=$LAB_PREFIX tests/lab/stack.sh down"
fi
stack_made=yes
show "export LAB_PREFIX=$LAB_PREFIX"
show '"$lab/stack.sh" up'
cd "$work"

step "Data in every part of it"
chroma() { python3 "$LAB_HERE/chroma.py" "http://$(docker port "$name-chromadb" 8000/tcp | head -n 1)" "$@"; }
show "psql() { docker exec -i $name-postgres psql -X -q -v ON_ERROR_STOP=1 -U tars \"\$@\"; }"
show 'psql -d tars_home <"$lab/odd.sql"'
show "psql -d tars_home -c 'CREATE DATABASE \"Zweite-DB é\" TEMPLATE template0 LC_COLLATE \"C\" LC_CTYPE \"C\"'"
show "psql -d 'Zweite-DB é' <\"\$lab/odd-second.sql\""
show "\"\$lab/odd-redis.sh\" $name-redis"
show 'chroma seed # by $lab/chroma.py'
# A model as Ollama keeps it: a file that is named by its digest, and a manifest that names it.
head -c 5000000 /dev/urandom >blob
digest=$(sha256sum blob | cut -d' ' -f1)
manifest="{\"schemaVersion\": 2, \"layers\": [{\"digest\": \"sha256:$digest\", \"size\": 5000000}]}"
models=/root/.ollama/models
show "docker exec -i $name-ollama sh -c 'cat >$models/blobs/sha256-$digest' <blob"
show "docker exec -i $name-ollama sh -c 'cd $models/manifests/registry.ollama.ai/library && mkdir demo && cat >demo/latest' <<<'$manifest'"
show "docker exec $name-ollama curl -s http://localhost:11434/api/tags; echo"
show "docker exec $name-backend sh -c 'mkdir /app/logs/old && seq 1000 >/app/logs/old/app.log && date >/app/logs/app.log'"

step "A configuration"
cat >tars-home.env <<'ENV'
# The environment of the sample stack
POSTGRES_USER=tars
POSTGRES_PASSWORD=demo-pg-8fK2mQ7xLw
LOG_LEVEL=info
ENV
cat >config.toml <<TOML
[agent]
state_dir = "$work/state"
runtime_dir = "$work/run"

[docker]
project = "$project"

[sources.postgres]
type = "postgres"
container = "$name-postgres"

[sources.redis]
type = "redis"
container = "$name-redis"

[sources.chromadb]
type = "chromadb"
container = "$name-chromadb"

[sources.ollama]
type = "ollama"
container = "$name-ollama"

[sources.backend_logs]
type = "volume"
volume = "backend_logs"
consistency = "live"

[sources.configuration]
type = "config_files"
files = ["$work/tars-home.env"]

[stores.nas]
type = "fs"
path = "$work/nas"

[tiers.hot]
stores = ["nas"]
path = "daily"
TOML
show "cat config.toml"
show "tars-backup --config config.toml config check"
show "tars-backup --config config.toml store init nas"

step "Back up"
show "tars-backup --config config.toml backup --include-models"
show "tars-backup --config config.toml list"

databases() { psql -A -t -d postgres -c 'SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1'; }

# Rows and a digest of the content of every table.
tables() {
  local database
  databases | while IFS= read -r database; do
    psql -A -t -d "$database" <<'SQL' | sed "s/^/$database|/"
SELECT format('%I.%I', n.nspname, c.relname), (xpath('/row/n/text()', x))[1], (xpath('/row/d/text()', x))[1]
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, LATERAL query_to_xml(format(
  'SELECT count(*) AS n, md5(string_agg(t::text, E''\n'' ORDER BY t::text)) AS d FROM ONLY %I.%I t', n.nspname, c.relname),
  true, true, '') x
WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY 1
SQL
  done
}

# All of the server as SQL, without the marks that are new in each dump. The order of settings, and of the roles of a
# policy, follows internal numbers, which are new after a restore.
dump() {
  docker exec "$name-postgres" pg_dumpall -U tars >dumped
  grep -E '^ALTER (DATABASE|ROLE) ' dumped | sort
  grep -vE '^ALTER (DATABASE|ROLE) |^\\(un)?restrict ' dumped | awk '
    !/^CREATE POLICY / { print; next }
    {
      n = split($0, w, /[ ,]+/)
      for (i = 2; i <= n; i++) for (j = i; j > 1 && w[j - 1] > w[j]; j--) { s = w[j]; w[j] = w[j - 1]; w[j - 1] = s }
      for (i = 1; i <= n; i++) printf "%s ", w[i]
      print ""
    }'
  rm dumped
}

# What a key holds and when it ends, for each key of each database; and the functions.
keys() {
  local db
  for db in 0 5; do
    docker exec -i "$name-redis" redis-cli -n "$db" --eval /dev/stdin <"$LAB_HERE/redis-keys.lua" | sed '/^$/d'
  done
}
functions() { docker exec "$name-redis" redis-cli FUNCTION LIST WITHCODE | sed '/^$/d' | sort; }

digests() { # digests CONTAINER DIRECTORY: of all files but the log that the backend writes into all the time
  docker exec "$name-$1" sh -c "cd $2 && find . -type f ! -name backend.log -exec sha256sum {} + | sort -k 2"
}

states() { docker container inspect -f '{{.Name}} {{.Id}} {{.State.Status}}' "${containers[@]}"; }

# note DIRECTORY: writes down there what the stack holds, and tells how much that is.
note() {
  mkdir "$1"
  tables >"$1/tables"
  dump >"$1/dump.sql"
  keys >"$1/keys"
  functions >"$1/functions"
  chroma dump >"$1/chroma.json"
  chroma nearest >"$1/nearest.json"
  digests ollama /root/.ollama >"$1/models"
  digests backend /app/logs >"$1/logs"
  states >"$1/containers"
  amounts "$1" | tee "$1/amounts"
}
amounts() {
  awk -F'|' '{ n += $(NF - 1) } END { printf "PostgreSQL: %d tables, %d rows", NR, n }' "$1/tables"
  echo ", $(grep '^CREATE ROLE ' "$1/dump.sql" | grep -cvx 'CREATE ROLE tars;' || true) roles beside tars"
  echo "Redis: $(wc -l <"$1/keys") keys, $(grep -c '^library_name$' "$1/functions" || true) function libraries"
  python3 - "$1/chroma.json" <<'PY'
import json, sys
found = [c for place in json.load(open(sys.argv[1])) for c in place["collections"]]
print(f"ChromaDB: {len(found)} collections, {sum(len(c['records']) for c in found)} records")
PY
  echo "Models: $(wc -l <"$1/models") files"
  echo "Logs: $(wc -l <"$1/logs") files"
}

step "Note what is there: counts and digests of everything"
show "note before"
show "sha256sum before/*"

step "Destroy it"
databases | grep -vx postgres | while IFS= read -r database; do
  show "psql -d postgres -c 'DROP DATABASE \"$database\" WITH (FORCE)' </dev/null"
done
others="FROM pg_roles WHERE rolname !~ '^pg_' AND rolname <> 'tars'"
show "psql -A -t -d postgres -c \"SELECT format('DROP ROLE %I;', rolname) $others\" </dev/null | psql -d postgres"
show "docker exec $name-redis redis-cli FLUSHALL"
show "docker exec $name-redis redis-cli FUNCTION FLUSH"
show "chroma clear # deletes every collection"
show "docker exec $name-ollama find /root/.ollama -mindepth 1 -delete"
show "docker exec $name-backend find /app/logs -mindepth 1 -delete"

step "All of it is gone"
show "note gone"
diff - gone/amounts <<'NOTHING' || die "something survived, so that its restore would prove nothing"
PostgreSQL: 0 tables, 0 rows, 0 roles beside tars
Redis: 0 keys, 0 function libraries
ChromaDB: 0 collections, 0 records
Models: 0 files
Logs: 0 files
NOTHING

step "Bring it back"
start=${EPOCHREALTIME/[.,]/}
show "tars-backup --config config.toml restore --latest --yes"
took=$((${EPOCHREALTIME/[.,]/} - start))

step "Every container runs, and is the one that it was"
[ "$(grep -c ' running$' before/containers)" = ${#containers[@]} ] || die "not all containers ran before"
show "states | diff before/containers -"
show '"$lab/stack.sh" up # waits until every server answers'

step "Compare"
show "note after"
# compare FILE LEAST COMMAND: FILE had at least LEAST lines, was another one when all was gone, and is now what it was.
compare() {
  [ "$(wc -l <"before/$1")" -ge "$2" ] || die "$1 had less than was made"
  if cmp -s "before/$1" "gone/$1"; then die "$1 was the same when all was gone"; fi
  show "$3"
}
compare amounts 5 "diff before/amounts after/amounts"
compare tables 26 "diff before/tables after/tables"
compare dump.sql 30000 "cmp before/dump.sql after/dump.sql"
compare keys 165 "diff before/keys after/keys"
compare functions 10 "diff before/functions after/functions"
compare chroma.json 1 'python3 "$lab/chroma.py" - compare before/chroma.json after/chroma.json'
compare nearest.json 1 "cmp before/nearest.json after/nearest.json"
compare models 6 "diff before/models after/models"
compare logs 2 "diff before/logs after/logs"
show "diff before/containers after/containers"
show "docker exec $name-ollama curl -s http://localhost:11434/api/tags | grep -oF demo:latest"
if [ -e state/run.journal ]; then die "the restore left its journal"; fi

printf '\nthe restore took %d.%d s\n' $((took / 1000000)) $((took / 100000 % 10))
printf 'demo: all equal\n'
