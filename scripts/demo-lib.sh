# shellcheck shell=bash
# Shared by the demonstrations; sourced in the root of the project, never run.

die() { printf 'demo: %s\n' "$*" >&2; exit 1; }
step() { printf '\n# %s\n' "$*"; }
# show COMMAND: prints a shell line, then runs it.
show() { printf '$ %s\n' "$1"; eval "$1"; }

# end_always FUNCTION: runs it at the end, however the end comes.
end_always() {
  # shellcheck disable=SC2064 # the name of now is wanted
  trap "$1" EXIT
  trap 'exit 143' TERM
  trap 'exit 130' INT
  trap 'exit 129' HUP
}

need() { # need PROGRAM PACKAGE
  if command -v "$1" >/dev/null; then return 0; fi
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    die "needs the program $1: apt-get install $2"
  fi
  step "$1 is not here: install it"
  show "apt-get update -qq </dev/null || true"
  show "DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $2 </dev/null >/dev/null"
}

# program: `tars-backup` is the one of TARS_BACKUP from now on, or one that is built for it.
program() {
  if [ -z "${TARS_BACKUP:-}" ]; then
    need cc gcc
    step "Build the program"
    show "cargo build --release --locked"
    TARS_BACKUP=${CARGO_TARGET_DIR:-target}/release/tars-backup
  fi
  TARS_BACKUP=$(realpath "$TARS_BACKUP")
  PATH=$(dirname "$TARS_BACKUP"):$PATH
}
