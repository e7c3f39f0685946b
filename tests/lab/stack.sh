#!/bin/bash
# The home stack as `docker compose` would leave it: same names, labels, volumes, network,
# restart policy and health checks. PostgreSQL, Redis and ChromaDB are real; Ollama and the
# backend are stand-ins (standin.py).
#   stack.sh up|down [PROJECT]          (PROJECT: deploy)
#
#   LAB_PREFIX=x-      put before the names of containers, volumes and network and before
#                      the project, so that test processes can have stacks side by side
#   LAB_SERVICES=..    which to start, such as "postgres redis"; default: all five
#   REDIS_PASSWORD=..  start Redis with --requirepass
#   POSTGRES_PASSWORD  default below: every character that quoting gets wrong
#   LAB_TIMEOUT=240    seconds to wait for each server
#
# ChromaDB is published on 127.0.0.1:8001, with a prefix on a free port; Ollama and the
# backend always on free ports, as a developer's machine may have its own. `docker port`
# tells them. PostgreSQL and Redis are reached through exec.
#
# `up` may be called again: what runs stays, what is stopped or paused is continued,
# a Redis whose password setting differs is made anew on the same volume.
# `down` removes containers, volumes and the network of this prefix and project.
#
# What could go wrong
# - The engine may be a real one with a real stack of the same names. Only what has
#   the label of the laboratory is touched; a foreign name is an error.
# - PostgreSQL answers during its initialisation and goes away again. That phase
#   listens on no TCP address, so the wait asks 127.0.0.1 inside the container.
# - Redis answers LOADING until its data is read; the wait wants PONG.
# - The health check of ChromaDB asks the v1 API, as the stack's Compose file does. 1.x
#   answers that with 410, so its container stays unhealthy for ever. That is on purpose:
#   such is the stack that is to be backed up. The wait here asks v2.
set -euo pipefail
# shellcheck source=tests/lab/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

prefix=${LAB_PREFIX:-}
project=$prefix${2:-deploy}
postgres=${prefix}tars-home-postgres
redis=${prefix}tars-home-redis
chromadb=${prefix}tars-home-chromadb
ollama=${prefix}tars-home-ollama
backend=${prefix}tars-home-backend
network=${project}_tars_home
volumes=(postgres_data redis_data chroma_data ollama_data backend_logs)
read -r -a services <<<"${LAB_SERVICES-postgres redis chromadb ollama backend}"
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

network() {
  local have
  if have=$(label network .Labels "$network"); then
    [ -n "$have" ] || refuse network "$network"
    return 0
  fi
  docker network create --label "$LAB_LABEL=stack" --label "com.docker.compose.project=$project" \
    --label com.docker.compose.network=tars_home "$network" >/dev/null
}

# container NAME SERVICE DOCKER-RUN-ARGUMENT...: run it, or continue the one there is.
container() {
  local name=$1 service=$2 recipe have said; shift 2
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
  # On success it only complains that this machine forwards no packets.
  said=$(docker run -d --name "$name" --hostname "$service" --network "$network" --network-alias "$service" \
    --restart unless-stopped --health-interval 5s --health-timeout 10s --health-retries 3 \
    --label "$LAB_LABEL=$recipe" --label "com.docker.compose.project=$project" \
    --label "com.docker.compose.service=$service" --label com.docker.compose.container-number=1 \
    --label com.docker.compose.oneoff=False \
    --label "com.tars.service=$service" --label com.tars.deployment=home \
    "$@" 2>&1) || lab_die "$said"
}

await() { # await NAME PROBE: until the probe succeeds
  local name=$1 probe=$2 end=$((SECONDS + ${LAB_TIMEOUT:-240})) restarts before
  before=$(docker container inspect -f '{{.RestartCount}}' "$name")
  until "$probe" >/dev/null 2>&1; do
    # A server that dies at each start is restarted for ever: no use to wait for it.
    restarts=$(docker container inspect -f '{{.RestartCount}}' "$name")
    if [ $SECONDS -ge $end ] || [ $((restarts - before)) -gt 3 ]; then
      docker logs --tail 15 "$name" >&2 || true
      lab_die "$name does not answer (state: $(docker container inspect -f '{{.State.Status}}' "$name"), restarts: $restarts, waited up to ${LAB_TIMEOUT:-240} s)"
    fi
    sleep 0.2
  done
}

postgres_ready() {
  docker exec "$postgres" pg_isready -q -h 127.0.0.1 -U tars -d tars_home &&
    [ "$(docker exec "$postgres" psql -X -A -t -U tars -d tars_home -c 'select 1')" = 1 ]
}
redis_ready() { [ "$(docker exec -e REDISCLI_AUTH "$redis" redis-cli --no-auth-warning ping)" = PONG ]; }

chromadb_ready() { docker exec "$chromadb" curl -sf http://localhost:8000/api/v2/heartbeat; }
ollama_ready() { docker exec "$ollama" curl -sf http://localhost:11434/api/tags; }
backend_ready() { docker exec "$backend" curl -sf http://localhost:8000/ready; }

start_postgres() {
  container "$postgres" postgres --stop-signal SIGINT --health-cmd 'pg_isready -U tars -d tars_home' \
    -e POSTGRES_USER=tars -e POSTGRES_DB=tars_home -e POSTGRES_PASSWORD \
    -v "${project}_postgres_data:/var/lib/postgresql/data" postgres:15-alpine
}
start_redis() {
  container "$redis" redis --health-cmd 'redis-cli ping' -v "${project}_redis_data:/data" redis:7-alpine \
    redis-server --appendonly yes ${REDISCLI_AUTH:+--requirepass "$REDISCLI_AUTH"}
}
start_chromadb() {
  local port=8001
  [ -z "$prefix" ] || port=
  container "$chromadb" chromadb --health-cmd 'curl -f http://localhost:8000/api/v1/heartbeat' \
    -e ANONYMIZED_TELEMETRY=FALSE -p "127.0.0.1:$port:8000" -v "${project}_chroma_data:/chroma/chroma" \
    chromadb/chroma:latest run --host 0.0.0.0 --port 8000 --path /chroma/chroma
}
start_ollama() {
  container "$ollama" ollama --health-cmd 'curl -f http://localhost:11434/api/tags' \
    -p 127.0.0.1::11434 -v "${project}_ollama_data:/root/.ollama" ollama/ollama:latest
}
start_backend() {
  local needs=ollama:service_healthy:false,chromadb:service_healthy:false
  needs+=,redis:service_healthy:false,postgres:service_healthy:false
  container "$backend" backend --label "com.docker.compose.depends_on=$needs" \
    --health-cmd 'curl -f http://localhost:8000/health' \
    -p 127.0.0.1::8000 -v "${project}_backend_logs:/app/logs" tars-backend:v1.0.10-home
}

volumes_of() { # volumes_of SERVICE
  case $1 in
    postgres | redis) echo "$1_data" ;;
    chromadb) echo chroma_data ;;
    ollama) echo ollama_data ;;
    backend) echo backend_logs ;;
    *) lab_die "there is no service $1 in LAB_SERVICES" ;;
  esac
}

up() {
  local s v needed=()
  for s in "${services[@]}"; do
    v=$(volumes_of "$s")
    needed+=("$v")
  done
  case " ${services[*]} " in *' postgres '* | *' redis '*) "$LAB_HERE/images.sh" services ;; esac
  case " ${services[*]} " in *' chromadb '* | *' ollama '* | *' backend '*) "$LAB_HERE/images.sh" chroma ;; esac
  network
  for v in "${needed[@]}"; do volume "$v"; done
  for s in "${services[@]}"; do "start_$s"; done
  for s in "${services[@]}"; do await "${prefix}tars-home-$s" "${s}_ready"; done
}

down() {
  local c v have
  for c in "$backend" "$ollama" "$chromadb" "$redis" "$postgres"; do
    have=$(label container .Config.Labels "$c") || continue
    [[ $have == stack-* ]] || refuse container "$c"
    docker rm -f -v "$c" >/dev/null
  done
  for v in "${volumes[@]}"; do
    have=$(label volume .Labels "${project}_$v") || continue
    [ -n "$have" ] || refuse volume "${project}_$v"
    docker volume rm "${project}_$v" >/dev/null
  done
  if have=$(label network .Labels "$network"); then
    [ -n "$have" ] || refuse network "$network"
    docker network rm "$network" >/dev/null
  fi
}

case ${1:-} in
  up | down) lab_engine; "$1" ;;
  *) lab_die "usage: stack.sh up|down [PROJECT]" ;;
esac
