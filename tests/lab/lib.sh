# shellcheck shell=bash
# Shared by the laboratory scripts; sourced, never run.
# Where things lie, how a long step is logged, and which engine is used.
# What could go wrong: a file descriptor of the lock leaking into a daemon would
# hold the lock for the life of that daemon, so lab_daemon closes it.

# Without it a failure inside $(...) would be passed over there.
shopt -s inherit_errexit

LAB_HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
LAB_DIR=${LAB_DIR:-$LAB_HERE/../../target/lab}
mkdir -p "$LAB_DIR/log"
LAB_DIR=$(cd "$LAB_DIR" && pwd)
export LAB_DIR

# Everything that the laboratory creates in an engine carries this label, and
# nothing without it is ever changed or removed: the engine may be one that
# somebody uses for real work, with containers of the very same names.
LAB_LABEL=tars-lab
export LAB_LABEL

lab_die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

lab_tail() { # lab_tail FILE: the end of a log, for the reader of a failure
  printf -- '--- end of %s\n' "$1" >&2
  tail -n "${2:-25}" "$1" >&2 || true
}

# lab_logged NAME COMMAND...: run it silently; on failure show the end of its log.
lab_logged() {
  local log=$LAB_DIR/log/$1.log; shift
  if ! "$@" >"$log" 2>&1 </dev/null; then
    lab_tail "$log"
    lab_die "failed: $*"
  fi
}

# lab_lock NAME: one process at a time per name (test processes run side by side).
# The lock goes when this process ends.
lab_lock() {
  exec 9>"$LAB_DIR/$1.lock"
  flock -w "${LAB_LOCK_TIMEOUT:-900}" 9 || lab_die "another process holds $LAB_DIR/$1.lock"
}

# lab_daemon LOG COMMAND...: start it so that it outlives this shell, its
# terminal and its process group. Prints the pid.
lab_daemon() {
  local log=$1; shift
  setsid nohup "$@" </dev/null >>"$log" 2>&1 9>&- &
  echo $!
}

# lab_engine: make `docker` talk to the engine of the laboratory.
lab_engine() {
  local line
  line=$("$LAB_HERE/engine.sh" env) || exit 1 # it has said why
  eval "$line"
}

lab_need_root() { [ "$(id -u)" = 0 ] || lab_die "must be run as root"; }

# lab_apt PACKAGE...: install what is missing, and start no service by it.
lab_apt() {
  local missing=() p
  for p in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$p" 2>/dev/null)" = 'ii ' ] || missing+=("$p")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  lab_need_root
  lab_logged apt lab_apt_install "${missing[@]}"
}

lab_apt_install() (
  # The maintainer scripts ask this file before they start a daemon; 101 = don't.
  # One that is already there belongs to the machine and is left alone.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
  fi
  export DEBIAN_FRONTEND=noninteractive
  install=(apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=300 "$@")
  # Package lists may be absent or old: refresh them only when the first try fails,
  # and do not let one unreachable foreign source stop us.
  "${install[@]}" || { apt-get update || true; "${install[@]}"; }
)
