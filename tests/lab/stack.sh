#!/bin/bash
# PostgreSQL and Redis of the home stack as `docker compose` would leave them:
# same names, labels, volumes and restart policy. No network; everything goes
# through exec.
#   stack.sh up|down [PROJECT]          (PROJECT: deploy)
#
#   LAB_PREFIX=x-      put before the names of containers and volumes and before the
#                      project, so that test processes can have stacks side by side
#   REDIS_PASSWORD=..  start Redis with --requirepass
#   POSTGRES_PASSWORD  default below: every character that quoting gets wrong
#   LAB_TIMEOUT=60     seconds to wait for each server
#
# `up` may be called again: what runs stays, what is stopped or paused is continued,
# a Redis whose password setting differs is made anew on the same volume.
# `down` removes containers and volumes of this prefix and project.
#
# What could go wrong
# - The engine may be a real one with a real stack of the same names. Only what has
#   the label of the laboratory is touched; a foreign name is an error.
# - PostgreSQL answers during its initialisation and goes away again. That phase
#   listens on no TCP address, so the wait asks 127.0.0.1 inside the container.
# - Redis answers LOADING until its data is read; the wait wants PONG.
set -euo pipefail
# shellcheck source=tests/lab/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

prefix=${LAB_PREFIX:-}
project=$prefix${2:-deploy}
postgres=${prefix}tars-home-postgres
redis=${prefix}tars-home-redis
volumes=(postgres_data redis_data)
export POSTGRES_PASSWORD=${POSTGRES_PASSWORD-"p@ss w'ord\"\$HOME\\x:/%41ü#;"}
export REDISCLI_AUTH=${REDIS_PASSWORD:-}
# An empty one would be sent too, and a server without a password rejects it.
[ -n "$REDISCLI_AUTH" ] || unset REDISCLI_AUTH

label() { docker "$1" inspect -f "{{index $2 \"$LAB_LABEL\"}}" "$3" 2>/dev/null; }
refuse() { lab_die "there is a $1 $2 that is not of this laboratory; it is left alone"; }

volume() { # volume NAME: as compose makes it
  local full=${project}_$1 have
  if have=$(label volume .Labels "$full"); then
    [ -n "$have" ] || refuse volume "$full"
    return 0
  fi
  docker volume create --label "$LAB_LABEL=stack" --label "com.docker.compose.project=$project" \
    --label "com.docker.compose.volume=$1" "$full" >/dev/null
}

# container NAME SERVICE DOCKER-RUN-ARGUMENT...: run it, or continue the one there is.
container() {
  local name=$1 service=$2 recipe have; shift 2
  recipe=stack-$(printf '%s\n' "$@" | sha256sum | cut -c1-12)
  if have=$(label container .Config.Labels "$name"); then
    # An image of ours hands its label down; only this script's value counts.
    [[ $have == stack-* ]] || refuse container "$name"
    if [ "$have" = "$recipe" ]; then
      case $(docker container inspect -f '{{.State.Status}}' "$name") in
        running | restarting) return 0 ;;
        paused) docker unpause "$name" >/dev/null; return 0 ;;
        created | exited) docker start "$name" >/dev/null; return 0 ;;
      esac
    fi
    docker rm -f "$name" >/dev/null
  fi
  docker run -d --name "$name" --hostname "$service" --network none --restart unless-stopped \
    --label "$LAB_LABEL=$recipe" --label "com.docker.compose.project=$project" \
    --label "com.docker.compose.service=$service" --label com.docker.compose.container-number=1 \
    --label com.docker.compose.oneoff=False \
    "$@" >/dev/null
}

await() { # await NAME PROBE: until the probe succeeds
  local name=$1 probe=$2 end=$((SECONDS + ${LAB_TIMEOUT:-60})) restarts before
  before=$(docker container inspect -f '{{.RestartCount}}' "$name")
  until "$probe" >/dev/null 2>&1; do
    # A server that dies at each start is restarted for ever: no use to wait for it.
    restarts=$(docker container inspect -f '{{.RestartCount}}' "$name")
    if [ $SECONDS -ge $end ] || [ $((restarts - before)) -gt 3 ]; then
      docker logs --tail 15 "$name" >&2 || true
      lab_die "$name does not answer (state: $(docker container inspect -f '{{.State.Status}}' "$name"), restarts: $restarts, waited up to ${LAB_TIMEOUT:-60} s)"
    fi
    sleep 0.2
  done
}

postgres_ready() {
  docker exec "$postgres" pg_isready -q -h 127.0.0.1 -U tars -d tars_home &&
    [ "$(docker exec "$postgres" psql -X -A -t -U tars -d tars_home -c 'select 1')" = 1 ]
}
redis_ready() { [ "$(docker exec -e REDISCLI_AUTH "$redis" redis-cli --no-auth-warning ping)" = PONG ]; }

up() {
  local v
  "$LAB_HERE/images.sh" services
  for v in "${volumes[@]}"; do volume "$v"; done
  container "$postgres" postgres --stop-signal SIGINT \
    -e POSTGRES_USER=tars -e POSTGRES_DB=tars_home -e POSTGRES_PASSWORD \
    -v "${project}_postgres_data:/var/lib/postgresql/data" postgres:15-alpine
  container "$redis" redis -v "${project}_redis_data:/data" redis:7-alpine \
    redis-server --appendonly yes ${REDISCLI_AUTH:+--requirepass "$REDISCLI_AUTH"}
  await "$postgres" postgres_ready
  await "$redis" redis_ready
}

down() {
  local c v have
  for c in "$postgres" "$redis"; do
    have=$(label container .Config.Labels "$c") || continue
    [[ $have == stack-* ]] || refuse container "$c"
    docker rm -f -v "$c" >/dev/null
  done
  for v in "${volumes[@]}"; do
    have=$(label volume .Labels "${project}_$v") || continue
    [ -n "$have" ] || refuse volume "${project}_$v"
    docker volume rm "${project}_$v" >/dev/null
  done
}

case ${1:-} in
  up | down) lab_engine; "$1" ;;
  *) lab_die "usage: stack.sh up|down [PROJECT]" ;;
esac
