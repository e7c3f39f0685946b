#!/bin/bash
# A container with systemd as PID 1, to install the package in and run its units.
#   systemd.sh up NAME [12|13 [DOCKER RUN FLAG...]]
#   systemd.sh down NAME
#   LAB_NETWORK=host   the network of this machine instead of none
# `up` waits until the system is `running` and prints nothing. Ten seconds at most.
#
# The flags, and why:
#   SYS_ADMIN             systemd mounts; units with ProtectSystem= and the like need it
#   NET_ADMIN SYS_PTRACE MKNOD   PrivateNetwork=, the journal's reading of /proc, PrivateDevices=
#   DAC_READ_SEARCH       our units' bounding set has it; a container does not by default,
#                         and the sandbox would look broken where it is not
#   seccomp, apparmor     the default profiles forbid mounts and namespaces
#   cgroupns=host and /sys/fs/cgroup   a writable group tree, on v1 hosts too
#   tmpfs                 systemd expects an empty /run
#   stop-signal           orderly shutdown of systemd; TERM only makes it re-execute
#
# What could go wrong: a failed unit makes the state `degraded`; its name and status
# are printed then. A full privilege container is not possible everywhere, hence
# single capabilities.
set -euo pipefail
# shellcheck source=tests/lab/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

verb=${1:-} name=${2:-}
[ -n "$name" ] || lab_die "usage: systemd.sh up|down NAME [12|13 [DOCKER RUN FLAG...]]"
lab_engine

ours() { [ "$(docker container inspect -f "{{index .Config.Labels \"$LAB_LABEL\"}}" "$name" 2>/dev/null)" = systemd ]; }
exists() { docker container inspect "$name" >/dev/null 2>&1; }

up() {
  local release=${1:-12} flags=() cap state
  [ $# -eq 0 ] || shift
  "$LAB_HERE/images.sh" "systemd$release"
  for cap in SYS_ADMIN NET_ADMIN SYS_PTRACE MKNOD DAC_READ_SEARCH; do flags+=(--cap-add "$cap"); done
  flags+=(--security-opt seccomp=unconfined --security-opt apparmor=unconfined
    --cgroupns=host -v /sys/fs/cgroup:/sys/fs/cgroup:rw
    --tmpfs /run --tmpfs /run/lock
    --network "${LAB_NETWORK:-none}" --stop-signal SIGRTMIN+3 -t)
  if exists; then
    ours || lab_die "there is a container $name that is not of this laboratory; it is left alone"
    docker start "$name" >/dev/null
  else
    docker run -d --name "$name" --hostname "lab-systemd-$release" --label "$LAB_LABEL=systemd" \
      "${flags[@]}" "$@" "tars-lab/systemd:$release" >/dev/null
  fi
  state=$(settled) || true
  if [ "$state" != running ]; then
    { docker exec "$name" systemctl --no-pager --failed || docker logs --tail 25 "$name"; } >&2 || true
    lab_die "systemd in $name is '$state', not running"
  fi
}

settled() {
  local i state=
  for ((i = 0; i < ${LAB_TIMEOUT:-240} * 5; i++)); do
    # Until the bus is there the question itself fails; --wait is not usable that early.
    state=$(docker exec "$name" systemctl is-system-running 2>/dev/null) || true
    case $state in running | degraded | maintenance | stopping) break ;; esac
    [ "$(docker container inspect -f '{{.State.Running}}' "$name")" = true ] || { state=exited; break; }
    sleep 0.2
  done
  printf %s "$state"
}

down() {
  exists || return 0
  ours || lab_die "the container $name is not of this laboratory; it is left alone"
  # In good order first, so that no control group stays behind.
  docker stop -t 10 "$name" >/dev/null 2>&1 || true
  docker rm -f -v "$name" >/dev/null
}

case $verb in
  up) shift 2; up "$@" ;;
  down) down ;;
  *) lab_die "usage: systemd.sh up|down NAME [12|13 [DOCKER RUN FLAG...]]" ;;
esac
