#!/bin/bash
# Entry point of the image tars-lab/services: PostgreSQL or Redis the way their
# usual images start them. Runs as PID 1 inside a container, never on the host.
#
#   postgres ...       make the database of POSTGRES_USER / POSTGRES_PASSWORD /
#                      POSTGRES_DB on an empty PGDATA, then start the server
#   redis-server ...   start it as the user redis with /data as its directory
#   anything else      is run as it is
#
# What could go wrong: a server that is being initialised answers on the unix
# socket already and then goes away again. It listens on no TCP address in that
# phase, so "answers on 127.0.0.1" means the real one.
set -euo pipefail

as() { setpriv --reuid="$1" --regid="$1" --init-groups -- env HOME=/nonexistent "${@:2}"; }

init_postgres() {
  local user=${POSTGRES_USER:-postgres} db
  db=${POSTGRES_DB:-$user}
  : "${POSTGRES_PASSWORD:?must be set for an empty database directory}"
  # The password goes through a pipe: in no file, in no argument list. The pipe is
  # opened by a shell of that user, as root's would not be readable.
  # shellcheck disable=SC2016 # expanded by the inner shell
  as postgres bash -c 'initdb --username="$1" --pwfile=<(printf "%s\n" "$POSTGRES_PASSWORD") \
    --encoding=UTF8 --locale=C.UTF-8 --auth-local=trust --auth-host=scram-sha-256' - "$user"
  echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
  as postgres pg_ctl -w -D "$PGDATA" -o "-c listen_addresses=''" start
  if [ "$db" != postgres ]; then
    as postgres createdb --username="$user" --maintenance-db=postgres -- "$db"
  fi
  as postgres pg_ctl -w -m fast -D "$PGDATA" stop
}

case ${1:-} in
  postgres)
    mkdir -p "$PGDATA" /run/postgresql
    chown postgres:postgres "$PGDATA" /run/postgresql
    chmod 700 "$PGDATA"
    chmod 2775 /run/postgresql
    [ -s "$PGDATA/PG_VERSION" ] || init_postgres
    shift
    exec setpriv --reuid=postgres --regid=postgres --init-groups -- \
      env -u POSTGRES_PASSWORD HOME=/var/lib/postgresql \
      postgres -D "$PGDATA" -c listen_addresses='*' "$@"
    ;;
  redis-server)
    shift
    chown -R redis:redis /data
    cd /data
    exec setpriv --reuid=redis --regid=redis --init-groups -- env HOME=/nonexistent \
      redis-server --dir /data --bind '* -::*' --protected-mode no "$@"
    ;;
  *) exec "$@" ;;
esac
