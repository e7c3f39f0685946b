#!/bin/bash
# Images for the tests, built from Debian packages: no registry is needed.
#   images.sh [services|systemd12|systemd13|all]     (default: services systemd12)
#
#   tars-lab/services:1   PostgreSQL 15 and Redis 7; also postgres:15-alpine and
#                         redis:7-alpine, the names in the stack's Compose file
#   tars-lab/systemd:12   Debian 12 with systemd as PID 1;  :13 the same of Debian 13
#
# The packages come from the mirror that apt uses; LAB_MIRROR overrides it.
#
# What could go wrong
# - Half a tree after a kill or a network failure: a tree becomes a tarball only
#   when it is complete (rename), and only tarballs are used.
# - The engine may be somebody's real one: the two well-known names are taken only
#   when nobody has them, or when they are ours already.
# - A maintainer script in the chroot would start a daemon on this machine;
#   policy-rc.d in the tree forbids it.
# - The tarballs survive `engine.sh down` and a removed engine; an image made again
#   from them takes seconds. Change of the package lists: new tarball name.
set -euo pipefail
# shellcheck source=tests/lab/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

cache=$LAB_DIR/images
bin=/usr/lib/postgresql/15/bin
# Trees are unpacked beside the tarballs; debootstrap cannot work below a name with a blank.
work=$cache
case $work in *[[:space:]]*) work=/var/tmp/tars-lab-$(printf %s "$LAB_DIR" | sha256sum | cut -c1-8) ;; esac

base_packages=ca-certificates,adduser,procps
systemd_packages=(systemd systemd-sysv dbus)
services_packages=(postgresql-15 redis-server)

key() { printf '%s ' "$@" | sha256sum | cut -c1-8; }

mirror() {
  if [ -n "${LAB_MIRROR:-}" ]; then echo "$LAB_MIRROR"; return; fi
  # The archive (not the security one) that apt has for this release, if any;
  # otherwise nothing, and debootstrap takes its own default.
  # shellcheck disable=SC2016 # apt's own placeholders
  apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT)' 'Created-By: Packages' 2>/dev/null |
    awk '$2 == "bookworm" && $3 == "main" && !u {u = $1} END {print u}'
}

# pack TREE TARBALL: without what no container needs; then the tree goes.
pack() {
  # Names of the host's resolver are of no use in an image.
  rm -f "$1/etc/resolv.conf" "$1/usr/sbin/policy-rc.d"
  tar -C "$1" --numeric-owner --xattrs -cf "$2.partial" .
  mv "$2.partial" "$2"
  rm -rf "$1"
}

slim() {
  rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/* "$1"/var/cache/debconf/*-old \
    "$1"/usr/share/{man,info,locale,lintian,bug} "$1"/var/log/*.log "$1"/var/log/apt
  find "$1/usr/share/doc" -mindepth 2 ! -name copyright -delete 2>/dev/null || true
}

# base SUITE: prints the tarball of a minimal tree with fresh package lists.
base() {
  local suite=$1 tarball tree
  tarball=$cache/base-$suite-$(key "$base_packages").tar
  if [ ! -s "$tarball" ]; then
    lab_apt debootstrap
    tree=$(mktemp -d "$work/tree.XXXXXX")
    chmod 755 "$tree" # becomes / of the image; mktemp made it 0700
    lab_logged "debootstrap-$suite" debootstrap --variant=minbase --include="$base_packages" \
      "$suite" "$tree" ${mirror_uri:+"$mirror_uri"}
    prepare "$tree"
    lab_logged "update-$suite" chroot "$tree" apt-get update
    pack "$tree" "$tarball"
  fi
  echo "$tarball"
}

prepare() {
  printf '#!/bin/sh\nexit 101\n' >"$1/usr/sbin/policy-rc.d"
  chmod 755 "$1/usr/sbin/policy-rc.d"
  cp -L /etc/resolv.conf "$1/etc/resolv.conf" 2>/dev/null || true
  # fsync of every unpacked file doubles the time, and a broken tree is thrown away anyway.
  echo force-unsafe-io >"$1/etc/dpkg/dpkg.cfg.d/lab"
  echo 'Acquire::Languages "none";' >"$1/etc/apt/apt.conf.d/lab"
}

# tree NAME SUITE PACKAGE...: prints the tarball of base plus packages.
tree() {
  local name=$1 suite=$2 tarball from dir; shift 2
  tarball=$cache/$name-$(key "$base_packages" "$@").tar
  if [ ! -s "$tarball" ]; then
    from=$(base "$suite")
    dir=$(mktemp -d "$work/tree.XXXXXX")
    tar -C "$dir" --numeric-owner --xattrs -xf "$from"
    prepare "$dir"
    lab_logged "packages-$name" chroot "$dir" env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y --no-install-recommends "$@"
    slim "$dir"
    "finish_${name%%[0-9]*}" "$dir"
    pack "$dir" "$tarball"
  fi
  echo "$tarball"
}

finish_services() {
  # The cluster that the package makes for itself, and the JIT compiler (150 MB):
  # without its provider library the server simply does not compile expressions.
  rm -rf "$1"/var/lib/postgresql/15 "$1"/etc/postgresql/15 "$1"/usr/lib/postgresql/15/lib/{llvmjit*,bitcode} \
    "$1"/usr/lib/x86_64-linux-gnu/{libLLVM*,libz3*} "$1"/usr/lib/aarch64-linux-gnu/{libLLVM*,libz3*}
  mkdir -p "$1/data"
}

finish_systemd() {
  # Empty, not absent: a new identity in every container, and no first-boot questions.
  : >"$1/etc/machine-id"
  rm -f "$1/var/lib/dbus/machine-id"
}

have() { # have IMAGE RECIPE: the image is there and made by this very recipe
  [ "$(docker image inspect -f "{{index .Config.Labels \"$LAB_LABEL\"}}" "$1" 2>/dev/null)" = "$2" ]
}

free_name() { # free_name IMAGE: nobody has it, or it is ours
  local label
  label=$(docker image inspect -f "{{index .Config.Labels \"$LAB_LABEL\"}}" "$1" 2>/dev/null) || return 0
  [ -n "$label" ] || lab_die "the engine has an image $1 that is not of this laboratory; it is left alone"
}

import() { # import IMAGE RECIPE TARBALL CHANGE...
  local image=$1 recipe=$2 tarball=$3 changes=() c; shift 3
  for c in "LABEL $LAB_LABEL=$recipe" "$@"; do changes+=(--change "$c"); done
  docker import "${changes[@]}" - "$image" <"$tarball" >/dev/null
}

# variant IMAGE RECIPE CHANGE...: a further name with its own defaults, sharing the layer.
variant() {
  local image=$1 recipe=$2 changes=() c id; shift 2
  free_name "$image"
  for c in "LABEL $LAB_LABEL=$recipe" "$@"; do changes+=(--change "$c"); done
  id=$(docker create --network none --entrypoint /bin/true tars-lab/services:1)
  docker commit --pause=false "${changes[@]}" "$id" "$image" >/dev/null ||
    { docker rm -v "$id" >/dev/null; lab_die "could not make $image"; }
  docker rm -v "$id" >/dev/null
}

services() {
  local recipe tarball layered
  recipe=$(key "$(cat "$LAB_HERE/entrypoint.sh")" "$base_packages" "${services_packages[@]}" 3)
  if have tars-lab/services:1 "$recipe" && have postgres:15-alpine "$recipe" && have redis:7-alpine "$recipe"; then return 0; fi
  tarball=$(tree services bookworm "${services_packages[@]}")
  # The entry point is put on top at import time: changing it needs no new tree.
  layered=$cache/services.import.tar
  cp --reflink=auto "$tarball" "$layered"
  tar -C "$LAB_HERE" --owner=0 --group=0 --numeric-owner --mode=755 \
    --transform 's,^entrypoint.sh$,./usr/local/bin/docker-entrypoint.sh,' -rf "$layered" entrypoint.sh
  import tars-lab/services:1 "$recipe" "$layered" \
    "ENV PATH=$bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
    'ENV PGDATA=/var/lib/postgresql/data' 'ENV LANG=C.UTF-8' \
    'ENTRYPOINT ["docker-entrypoint.sh"]' 'CMD ["postgres"]'
  rm -f "$layered"
  # As in the usual images, the data directories are declared as volumes: a container
  # made from them without a mount gets an anonymous one, which tests should notice.
  variant postgres:15-alpine "$recipe" 'ENTRYPOINT ["docker-entrypoint.sh"]' 'CMD ["postgres"]' \
    'VOLUME /var/lib/postgresql/data' 'EXPOSE 5432'
  variant redis:7-alpine "$recipe" 'ENTRYPOINT ["docker-entrypoint.sh"]' 'CMD ["redis-server"]' \
    'VOLUME /data' 'WORKDIR /data' 'EXPOSE 6379'
}

systemd() { # systemd 12|13 SUITE
  local recipe tarball
  recipe=$(key "$base_packages" "${systemd_packages[@]}" 2)
  if have "tars-lab/systemd:$1" "$recipe"; then return 0; fi
  tarball=$(tree "systemd$1" "$2" "${systemd_packages[@]}")
  import "tars-lab/systemd:$1" "$recipe" "$tarball" \
    'ENV container=docker' 'ENV LANG=C.UTF-8' 'CMD ["/lib/systemd/systemd"]'
}

cleanup() {
  rm -rf "$work"/tree.*
  [ "$work" = "$cache" ] || rmdir "$work" 2>/dev/null || true
  # An image that was made anew leaves its predecessor without a name.
  docker image prune -f --filter "label=$LAB_LABEL" >/dev/null 2>&1 || true
}

lab_need_root
lab_engine
lab_lock images
mkdir -p "$cache" "$work"
# What an earlier, killed call left. Ours alone: the lock is held.
rm -rf "$work"/tree.* "$cache"/*.partial "$cache"/*.import.tar
mirror_uri=$(mirror)

[ $# -gt 0 ] || set -- services systemd12
trap cleanup EXIT
for what in "$@"; do
  case $what in
    services) services ;;
    systemd12) systemd 12 bookworm ;;
    systemd13) systemd 13 trixie ;;
    all) services; systemd 12 bookworm; systemd 13 trixie ;;
    *) lab_die "usage: images.sh [services|systemd12|systemd13|all]" ;;
  esac
done
