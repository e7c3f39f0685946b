#!/bin/bash
# All tests, on Debian 12 as root: installs the packages that they call, starts the laboratory (tests/lab), builds the
# package, runs `cargo test`, and says in its last line how many passed and failed.
#   TARS_BACKUP_TEST_ARGS   further arguments for cargo test, such as "--test cli"
#
# What could go wrong: a run that tests nothing looks like success; so no test at all, and a test program that died
# without saying its result, are failures.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=tests/lab/lib.sh
. tests/lab/lib.sh

# What the tests and the scripts call. The engine and debootstrap are installed by the laboratory itself.
packages=(
  ca-certificates gcc libc6-dev make git # to build
  util-linux procps findutils diffutils tar gzip zstd xz-utils # stock tools that must open what we write
  busybox # another writer of tars that must come back
  sqlite3 attr acl
  postgresql-client redis-tools # psql, redis-check-rdb
  strace # kills a program at a given system call
  python3 python3-venv # tests/lab/chroma.py, moto
  age openssh-client openssh-server openssl curl # what is sealed, servers of stores and what asks them
  lintian apt-utils gnupg gpgv # the package, and the repository that it is installed from
)

lab_need_root
lab_apt "${packages[@]}"

started=no
if ! tests/lab/engine.sh env >/dev/null 2>&1; then started=yes; fi
finish() { if [ $started = yes ]; then tests/lab/engine.sh down; fi; }
trap finish EXIT
tests/lab/engine.sh up
lab_engine
tests/lab/images.sh all
tests/lab/moto.sh

cargo fmt --check
cargo clippy --locked --all-targets --quiet -- -D warnings

scripts/deb.sh | tee "$LAB_DIR/log/deb.log"
TARS_BACKUP_DEB=$(tail -n 1 "$LAB_DIR/log/deb.log")
export TARS_BACKUP_DEB

# Most of the time of a test is waiting for a container.
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$(($(nproc) * 2))}

log=$LAB_DIR/log/cargo-test.log
status=0
# shellcheck disable=SC2086 # several arguments
cargo test --locked --no-fail-fast ${TARS_BACKUP_TEST_ARGS:-} </dev/null 2>&1 | tee "$log" || status=$?

# "test result: ok. 12 passed; 0 failed; 1 ignored; …", once per test program.
read -r passed failed < <(awk '
  /^test result: / { for (i = 2; i <= NF; i++) { if ($i == "passed;") p += $(i - 1); if ($i == "failed;") f += $(i - 1) } }
  END { print p + 0, f + 0 }' "$log")
if [ "$status" != 0 ] && [ "$failed" = 0 ]; then
  echo "cargo test ended with status $status, and no test says why: look for what does not compile, or died" >&2
  failed=1
fi

# A test with a deadline may fail on a machine that is busy with the others. A few that failed are run once more, each
# alone: what is broken fails there too. It is told in any case, as a test that needs it twice has a fault of its own.
# Not where a test program died without its result, as nobody knows what it would have said; and not those that kill or
# race: what they find once, they have found.
# "     Running tests/stack/main.rs (…)" or "tests/cli.rs", then "test NAME ... FAILED".
failures=$(awk '
  $1 == "Running" { split($2, part, "/"); program = part[1] == "tests" ? part[2] : ""; sub(/\.rs$/, "", program) }
  /^test .* \.\.\. FAILED$/ && program != "" && $2 !~ /kill|interrupt|signal|writers|holds|old_or/ { print program, $2 }
  ' "$log")
programs=$(grep -cE '^ +(Running|Doc-tests) ' "$log" || true)
results=$(grep -c '^test result: ' "$log" || true)
if [ "$failed" -gt 0 ] && [ "$failed" -le 3 ] && [ "$(grep -c . <<<"$failures")" = "$failed" ] && [ "$programs" = "$results" ]; then
  again=()
  while read -r program name; do
    echo "once more, alone: $program $name"
    if cargo test --locked --test "$program" -- --exact "$name" </dev/null 2>&1 | tee "$LAB_DIR/log/again.log" &&
      grep -q '^test result: ok. 1 passed; 0 failed;' "$LAB_DIR/log/again.log"; then
      again+=("$program::$name")
    fi
  done <<<"$failures"
  passed=$((passed + ${#again[@]}))
  failed=$((failed - ${#again[@]}))
  if [ "$failed" = 0 ]; then status=0; fi
  for name in "${again[@]}"; do echo "failed beside the others, passed alone: $name"; done
fi
finish
trap - EXIT
printf 'tests: %d passed, %d failed\n' "$passed" "$failed"
[ "$passed" -gt 0 ] && [ "$failed" = 0 ] && [ "$status" = 0 ]
