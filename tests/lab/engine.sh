#!/bin/bash
# A Docker engine for the tests: engine.sh up | down | env
#
#   up    use the engine that answers already; otherwise install Debian's one and
#         start a private one below LAB_DIR. Seconds when it is there.
#   env   print the shell line that points `docker` at it.
#   down  stop the private engine (never a foreign one). Images stay.
#
# The private engine has its own containerd and its own bridge, no packet filter rules
# and no forwarding: containers reach each other and this machine, and ports that are
# published on 127.0.0.1 work (through docker-proxy), but nothing goes further. Of the
# host, nothing is touched but the bridges, which `down` removes.
#
# What could go wrong
# - A unix socket path is limited to 108 bytes, so sockets live in a short
#   directory outside LAB_DIR; its name is remembered, as TMPDIR may change.
# - An engine that was killed leaves pid files, sockets, mounts and container
#   processes behind. With a containerd started by dockerd it would not come up
#   again, which is why containerd is a process of its own here. Left-overs are
#   ended by pid.
# - Containers of an earlier life of the engine are removed, with their volumes,
#   when the engine starts: they are of tests that are gone. LAB_KEEP=1 keeps them
#   (for tests that kill the engine and look what becomes of the containers).
# - Two engines would fight over docker0 and over addresses: the name of the bridge and
#   the addresses come from LAB_DIR; a range that this machine has a route to is passed
#   over. A bridge of a user-defined network is known by its address, as its name is the
#   engine's own choice.
# - A pid file may name a process that is not ours any more: the command line is
#   compared before a signal is sent.
set -euo pipefail
# shellcheck source=tests/lab/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

home=$LAB_DIR/engine
containerd_log=$LAB_DIR/log/containerd.log
dockerd_log=$LAB_DIR/log/dockerd.log

# The short directory: root's own, so that nobody else can put a socket there.
if [ -s "$home/run-dir" ]; then
  run=$(cat "$home/run-dir")
else
  tmp=${TMPDIR:-/tmp}
  [ ${#tmp} -le 40 ] || tmp=/tmp
  run=${tmp%/}/tars-lab-$(printf %s "$LAB_DIR" | sha256sum | cut -c1-8)
fi
containerd_sock=$run/containerd.sock
docker_sock=$run/docker.sock
bridge=tars-$(printf %s "$LAB_DIR" | sha256sum | cut -c1-8)

answers() { DOCKER_HOST=$1 timeout 10 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

# alive PIDFILE WORD: print the pid if it is a live process with WORD (a path of
# ours) as one of its arguments.
alive() {
  local pid arg
  pid=$(cat "$1" 2>/dev/null) || return 1
  [ -n "$pid" ] && [ -r "/proc/$pid/cmdline" ] || return 1
  while IFS= read -r -d '' arg; do
    [ "$arg" != "$2" ] || { echo "$pid"; return 0; }
  done <"/proc/$pid/cmdline"
  return 1
}
dockerd_pid() { alive "$home/dockerd.pid" "--host=unix://$docker_sock"; }
containerd_pid() { alive "$home/containerd.pid" "$home/containerd.toml"; }

# end PID SECONDS: TERM, wait, KILL.
end() {
  local pid=$1 i
  kill -TERM "$pid" 2>/dev/null || return 0
  for ((i = 0; i < $2 * 10; i++)); do
    [ -d "/proc/$pid" ] && [ "$(awk '/^State:/ {print $2}' "/proc/$pid/status" 2>/dev/null)" != Z ] || return 0
    sleep 0.1
  done
  kill -KILL "$pid" 2>/dev/null || true
}

# Shims whose containerd is gone keep their containers running. They are known by
# the address of our containerd among their arguments.
end_orphans() {
  local dir pid child frozen
  for dir in /proc/[0-9]*; do
    pid=${dir#/proc/}
    # Processes come and go while we look.
    { tr '\0' '\n' <"$dir/cmdline"; } 2>/dev/null | grep -qxF -- "$containerd_sock" || continue
    [[ $(readlink "$dir/exe" 2>/dev/null) == */containerd-shim* ]] || continue
    # shellcheck disable=SC2013 # words are wanted: pids
    for child in $(cat "$dir"/task/*/children 2>/dev/null); do
      kill -KILL "$child" 2>/dev/null || true
      # A process in a frozen (paused) v1 group dies only when it is thawed.
      frozen=$(sed -n 's/^[0-9]*:freezer://p' "/proc/$child/cgroup" 2>/dev/null) || continue
      [ "${frozen:-/}" = / ] || echo THAWED >"/sys/fs/cgroup/freezer$frozen/freezer.state" 2>/dev/null || true
    done
    kill -KILL "$pid" 2>/dev/null || true
  done
}

# A killed engine leaves its mounts: network namespaces below the run directory,
# file systems of containers below the data. Deepest first; lazy, as a process that
# is just dying may still hold one.
unmount_leftovers() {
  local target
  findmnt -rno TARGET | tac | while IFS= read -r target; do
    target=$(printf '%b' "$target") # blanks come as \x20
    case $target in "$run"/* | "$home"/*) umount -l "$target" || true ;; esac
  done
}

# net N: the first three numbers of range N of this engine, which is 16 x 256 addresses.
# Range 0 is as good as random; the following ones are for a machine that uses it.
net() {
  local n=$(((16#${bridge#tars-} + $1) % 896)) # 10.200.0.0 to 10.255.240.0
  echo "10.$((200 + n / 16)).$((n % 16 * 16))"
}

# used RANGE: this machine has a route to a part of it, or one (not the default) that holds it.
used() {
  [ -n "$(ip -4 route show root "$1"; ip -4 route show match "$1" | grep -v '^default')" ]
}

# The bridge and what networks get, in the file `net`: the engine remembers its networks,
# so a later life must use the same range.
make_bridge() {
  local i net
  remove_bridges
  net=$(cat "$home/net" 2>/dev/null) || net=
  for ((i = 0; i < 896; i++)); do
    [ -n "$net" ] || net=$(net $i)
    used "$net.0/20" || break
    net=
  done
  [ -n "$net" ] || lab_die "no free range of addresses in 10.200.0.0/13 for the engine"
  echo "$net" >"$home/net"
  ip link add "$bridge" type bridge
  ip address add "$net.1/24" dev "$bridge"
  ip link set "$bridge" up
}

# Half of the range is for networks, 64 of them with 29 addresses each.
pool() { local net; net=$(cat "$home/net"); echo "${net%.*}.$((${net##*.} + 8)).0/21"; }

remove_bridges() {
  local device
  # A machine without iproute2 never had any.
  command -v ip >/dev/null || return 0
  ip link show dev "$bridge" >/dev/null 2>&1 && ip link delete dev "$bridge"
  [ -s "$home/net" ] || return 0
  ip -4 -o address show to "$(pool)" | awk '{print $2}' | while read -r device; do
    case $device in br-*) ip link delete dev "$device" type bridge || true ;; esac
  done
}

# Foreign first: an engine that answers on DOCKER_HOST or the default socket.
foreign() {
  local host=${DOCKER_HOST:-unix:///var/run/docker.sock}
  [ "$host" != "unix://$docker_sock" ] && command -v docker >/dev/null && answers "$host" && echo "$host"
}

host() {
  if dockerd_pid >/dev/null && answers "unix://$docker_sock"; then
    echo "unix://$docker_sock"
  else
    foreign
  fi
}

await() { # await SECONDS PIDFUNCTION LOG COMMAND...: until it succeeds or the daemon is dead
  local seconds=$1 pid_of=$2 log=$3 i; shift 3
  for ((i = 0; i < seconds * 5; i++)); do
    if "$@" >/dev/null 2>&1; then return 0; fi
    # The command line of a fresh process is nohup's for a moment, hence the grace.
    if ((i > 10)) && ! "$pid_of" >/dev/null; then break; fi
    sleep 0.2
  done
  lab_tail "$log"
  lab_die "the engine did not come up (waited for: $*)"
}

up() {
  local fresh=yes tool
  if host >/dev/null; then return 0; fi
  lab_need_root
  lab_lock engine
  if host >/dev/null; then return 0; fi # another process was faster
  for tool in dockerd docker docker-proxy containerd containerd-shim-runc-v2 ctr runc ip; do
    command -v "$tool" >/dev/null || { lab_apt docker.io containerd runc iptables iproute2; break; }
  done

  mkdir -p "$home/data" "$home/containerd"
  mkdir -p "${run%/*}"
  [ -d "$run" ] || mkdir -m 700 "$run"
  if [ -L "$run" ] || [ ! -O "$run" ]; then lab_die "$run is not ours"; fi
  echo "$run" >"$home/run-dir"

  if ! containerd_pid >/dev/null; then
    end_orphans
    unmount_leftovers
    rm -rf "$containerd_sock" "$containerd_sock.ttrpc" "$run/containerd" "$run/exec"
    cat >"$home/containerd.toml" <<TOML
version = 2
root = "$home/containerd"
state = "$run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$containerd_sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$home/containerd/opt"
TOML
    lab_daemon "$containerd_log" containerd --config "$home/containerd.toml" >"$home/containerd.pid"
    await 30 containerd_pid "$containerd_log" ctr --address "$containerd_sock" version
  fi
  if ! dockerd_pid >/dev/null; then
    # dockerd refuses to start beside the pid file of a dead one when the number is in use again.
    rm -f "$docker_sock" "$run/docker.pid"
    make_bridge
    lab_daemon "$dockerd_log" dockerd --host="unix://$docker_sock" --containerd="$containerd_sock" \
      --data-root="$home/data" --exec-root="$run/exec" --pidfile="$run/docker.pid" \
      --bridge="$bridge" --default-address-pool="base=$(pool),size=27" \
      --ip-forward=false --ip-masq=false --iptables=false --ip6tables=false >"$home/dockerd.pid"
  else
    fresh=no # it was starting, or busy
  fi
  await 60 dockerd_pid "$dockerd_log" answers "unix://$docker_sock"
  if [ $fresh = yes ] && [ -z "${LAB_KEEP:-}" ]; then remove_leftovers; fi
}

remove_leftovers() {
  local ids
  export DOCKER_HOST=unix://$docker_sock
  ids=$(docker ps -aq)
  # shellcheck disable=SC2086 # a list of ids
  [ -z "$ids" ] || docker rm -f -v $ids >>"$dockerd_log" 2>&1 || true
  docker volume ls -q | while read -r v; do docker volume rm "$v" >>"$dockerd_log" 2>&1 || true; done
  docker network prune -f >>"$dockerd_log" 2>&1 || true
}

down() {
  local pid
  lab_lock engine
  # 40 s: the engine gives each container 10 s to end in good order.
  if pid=$(dockerd_pid); then end "$pid" 40; fi
  if pid=$(containerd_pid); then end "$pid" 10; fi
  end_orphans
  unmount_leftovers
  remove_bridges
  rm -f "$home/dockerd.pid" "$home/containerd.pid"
  rm -rf "$run"
}

case ${1:-} in
  up) up ;;
  down) down ;;
  env)
    h=$(host) || lab_die "no engine answers; run: tests/lab/engine.sh up"
    printf 'export DOCKER_HOST=%q\n' "$h"
    ;;
  *) lab_die "usage: engine.sh up|down|env" ;;
esac
