#!/bin/bash
# One backup from beginning to end, in a temporary directory and as any user: a sample home is backed up while its
# database is written to, unpacked again, and compared. Every command is shown before it runs.
#   TARS_BACKUP=FILE    the program; without it, it is built
#   STACK=1             a whole stack in Docker instead: scripts/demo-stack.sh
#
# What could go wrong: a comparison that compares nothing looks like success. So each one first looks whether what it
# compares is there, and the last line comes only when all of them ran.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."
export LC_ALL=C.UTF-8

# shellcheck source=scripts/demo-lib.sh
. scripts/demo-lib.sh

case ${STACK:-} in
  1) exec scripts/demo-stack.sh ;;
  '' | 0) ;;
  *) die "STACK=$STACK is none of 0 and 1" ;;
esac

need sqlite3 sqlite3
program

work=$(mktemp -d "${TMPDIR:-/tmp}/tars-demo-XXXXXX")
writer=
end() {
  rm -f "$work/writing"
  if [ -n "$writer" ]; then wait "$writer" || true; fi
  chmod -R u+rwx "$work" 2>/dev/null || true
  rm -rf "$work"
}
end_always end
cd "$work"

step "A home with files of every sort, in $work"
mkdir -p home/documents/{empty,'deep/a/b/c',private}
(
  cd home/documents
  printf 'plain\n' >plain.txt
  printf 'blank\n' >'with  blanks '
  printf 'break\n' >$'line\nbreak'
  printf 'dash\n' >./-rf
  printf 'quotes\n' >$'q\'u"o`t$e\\s'
  printf 'umlaut\n' >'Übung – 文書.txt'
  printf 'bytes\n' >$'not-utf8-\xff\xfe'
  printf 'hidden\n' >.hidden
  printf 'long\n' >"$(printf 'n%.0s' {1..250})"
  printf '#!/bin/sh\necho runs\n' >deep/a/b/c/script && chmod 750 deep/a/b/c/script
  : >nothing
  head -c 3000000 /dev/urandom >random.bin
  head -c 2000000 /dev/zero | tr '\0' 'x' >compressible.txt
  truncate -s 5M sparse.img && printf 'end' >>sparse.img
  ln plain.txt deep/second-name
  ln -s ../plain.txt deep/link
  ln -s /nowhere/at/all dangling
  mkfifo pipe
  chmod 600 private && chmod 700 private
  touch -d '1999-12-31 23:59:59.123456789' plain.txt
  touch -d '2001-02-03 04:05:06.7' empty
)

cat >home/tars-home.env <<'ENV'
# The environment of the sample stack
POSTGRES_USER=tars
POSTGRES_PASSWORD=demo-pg-8fK2mQ7xLw
DATABASE_URL=postgresql://tars:demo-pg-8fK2mQ7xLw@postgres:5432/tars_home
REDIS_PASSWORD="demo redis 5hTn9 pass"
API_TOKEN=demo-token-c0ffee1234567890abcdef
LOG_LEVEL=info
ENV
cat >home/docker-compose.home.yml <<'YML'
services:
  postgres:
    image: postgres:15-alpine
    environment:
      POSTGRES_USER: tars
      POSTGRES_PASSWORD: demo-pg-8fK2mQ7xLw
  backend:
    image: tars-backend:1
    environment:
      - SECRET_KEY=demo-secret-Zk3vB8nR1sYq
      - HF_TOKEN=demo-hf-QmW4eR6tY8uI
    ports: ["8000:8000"]
YML
secrets=(demo-pg-8fK2mQ7xLw 'demo redis 5hTn9 pass' demo-token-c0ffee1234567890abcdef
  demo-secret-Zk3vB8nR1sYq demo-hf-QmW4eR6tY8uI)

sqlite3 home/notes.sqlite3 >/dev/null <<'SQL'
PRAGMA journal_mode = WAL;
CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT NOT NULL);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
INSERT INTO notes (body) SELECT printf('note %d of the sample home', i) FROM n;
SQL

cat >config.toml <<TOML
[agent]
state_dir = "$work/state"
runtime_dir = "$work/run"

[sources.documents]
type = "directory"
path = "$work/home/documents"

[sources.notes]
type = "sqlite"
path = "$work/home/notes.sqlite3"

[sources.configuration]
type = "config_files"
files = ["$work/home/tars-home.env", "$work/home/docker-compose.home.yml"]

[stores.nas]
type = "fs"
path = "$work/nas"

[tiers.hot]
stores = ["nas"]
path = "daily"
TOML
show "cat config.toml"
show "ls -A home/documents"

step "Make the store ours"
show "tars-backup --config config.toml config check"
show "tars-backup --config config.toml store init nas"

step "Back up, while a writer adds rows to the database"
count() { sqlite3 -readonly -cmd '.timeout 10000' "$1" 'SELECT count(*) FROM notes'; }
: >writing
{
  echo '.timeout 10000'
  while [ -e writing ]; do
    echo "INSERT INTO notes (body) VALUES ('written during the backup');"
    sleep 0.002
  done
} | sqlite3 home/notes.sqlite3 &
writer=$!
before=$(count home/notes.sqlite3)
# The backup begins when the writer is seen to write.
for ((i = 0; i < 500 && $(count home/notes.sqlite3) == before; i++)); do sleep 0.02; done
before=$(count home/notes.sqlite3)
show "tars-backup --config config.toml backup"
after=$(count home/notes.sqlite3)
rm writing
wait "$writer" || die "the writer failed"
writer=
echo "rows before: $before, after: $after"
[ "$after" -gt "$before" ] || die "the writer did not write during the backup"

step "Look at it"
show "tars-backup --config config.toml list"
show "tars-backup --config config.toml show --latest"
show "tars-backup --config config.toml verify --latest --deep"
show "tars-backup --config config.toml extract --latest --to out"

step "Compare the files, with stock tools"
show "tar -dzf out/documents.tar.gz -C home/documents"
show "mkdir files && tar -xpzf out/documents.tar.gz -C files"
# Name, kind, mode, owner, links, time to the nanosecond, target of every entry; size and digest of every file.
facts() {
  (
    cd "$1"
    find . -printf '%P|%y|%m|%U|%G|%T@|%l|' \( -type d -printf '\0' -o -printf '%n|%s\0' \) | sort -z
    find . -type f -print0 | sort -z | xargs -0 sha256sum -z
  ) | tr '\0' '\n'
}
facts home/documents >facts.before
facts files >facts.after
show "wc -l <facts.before"
[ "$(wc -l <facts.before)" -ge 40 ] || die "the sample home is smaller than it was made"
show "diff facts.before facts.after"
show "diff -r --no-dereference --exclude=pipe home/documents files"
[ files/plain.txt -ef files/deep/second-name ] || die "the two names of one file are two files now"

step "Compare the database"
show "gunzip -c out/notes.sqlite3.gz >notes.sqlite3"
show "sqlite3 -readonly notes.sqlite3 'PRAGMA integrity_check'"
[ "$(sqlite3 -readonly notes.sqlite3 'PRAGMA integrity_check')" = ok ] || die "the database is damaged"
rows=$(count notes.sqlite3)
echo "rows: $rows, which must lie between $before and $after"
if [ "$rows" -lt "$before" ] || [ "$rows" -gt "$after" ]; then die "the database is not of that time"; fi

step "Destroy it, and bring it back"
show "rm -rf home/documents home/notes.sqlite3*"
show "tars-backup --config config.toml restore --latest --component documents,notes --dry-run"
show "tars-backup --config config.toml restore --latest --component documents,notes --yes"
facts home/documents >facts.restored
show "diff facts.before facts.restored"
[ "$(count home/notes.sqlite3)" = "$rows" ] || die "the restored database has other rows"
if [ "$(find home -name '*tars-restore*')" ]; then die "something was left beside the data"; fi

step "Look for the secrets of the sample in everything that was stored"
show "tar -xzf nas/daily/*.tar.gz -C out && gunzip -c nas/daily/*.tar.gz >out/whole-archive && cp nas/daily/*.json out/"
show "find out -path '*/config/*' -type f"
grep -rqF 'LOG_LEVEL=info' out/config || die "what is harmless should be readable, and is not"
grep -rqF '<REDACTED>' out/config || die "nothing was redacted"
for secret in "${secrets[@]}"; do
  grep -qF -- "$secret" home/tars-home.env home/docker-compose.home.yml || die "the sample has no $secret"
  printf '$ grep -rlF %q out\n' "$secret"
  if grep -rlF -- "$secret" out; then die "a secret stands in the backup: $secret"; fi
done
if [ "$(find state/staging -mindepth 1 2>/dev/null)" ]; then die "something was left in staging"; fi

printf '\ndemo: all equal\n'
