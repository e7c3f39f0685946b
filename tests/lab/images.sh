#!/bin/bash
# Images for the tests, built from Debian packages, and ChromaDB from PyPI: no registry
# of images is needed.
#   images.sh [services|chroma|systemd12|systemd13|all]     (default: services systemd12)
#
#   tars-lab/services:1   PostgreSQL 15 and Redis 7; also postgres:15-alpine and
#                         redis:7-alpine, the names in the stack's Compose file
#   tars-lab/chroma:1     ChromaDB 1.5.9; also chromadb/chroma:latest.  :0 is ChromaDB 0.6.3.
#                         Also ollama/ollama:latest and tars-backend:v1.0.10-home, which
#                         are stand-ins (standin.py)
#   tars-lab/systemd:12   Debian 12 with systemd as PID 1 and Compose;  :13 the same of Debian 13
#
# The packages come from the mirror that apt uses; LAB_MIRROR overrides it. pip finds its
# index as it does on this machine: its settings, proxies and certificates are handed in.
#
# What could go wrong
# - Half a tree after a kill or a network failure: a tree becomes a tarball only
#   when it is complete (rename), and only tarballs are used.
# - The engine may be somebody's real one: the well-known names are taken only
#   when nobody has them, or when they are ours already.
# - A maintainer script in the chroot would start a daemon on this machine;
#   policy-rc.d in the tree forbids it.
# - Settings of pip may hold a password. They lie in one directory of the tree while pip
#   runs, which is removed before the tree becomes a tarball.
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
# ssh is what stores of type sftp run. Compose is version 1 in Debian 12, and the plugin in 13.
systemd_packages=(systemd systemd-sysv dbus openssh-client docker-compose)
systemd13_packages=(docker-cli)
services_packages=(postgresql-15 redis-server)
# dumb-init is what the usual image has as PID 1; curl is what health checks call.
chroma_packages=(python3 python3-venv dumb-init curl)
chroma_versions=(1.5.9 0.6.3)

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

# tree NAME SUITE PACKAGE...: prints the tarball of base plus packages, and of what
# finish_NAME adds; the caller's variable `inputs` stands for what that depends on.
tree() {
  local name=$1 suite=$2 tarball from dir; shift 2
  tarball=$cache/$name-$(key "$base_packages" "$@" ${inputs:+"$inputs"}).tar
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

finish_chroma() {
  local version venv
  pip_world "$1"
  for version in "${chroma_versions[@]}"; do
    venv=/opt/chroma-$version
    cp "$LAB_HERE/chroma-$version.txt" "$1/run/lab-pip/requirements.txt"
    lab_logged "chroma-$version" in_pip_world "$1" python3 -m venv "$venv"
    lab_logged "chroma-$version" in_pip_world "$1" "$venv/bin/pip" install --no-deps -r /run/lab-pip/requirements.txt
    rm -rf "$1$venv"/lib/python3*/site-packages/{pip,setuptools,pkg_resources}{,-*}
    # The compiled files stay: without them every new container compiles anew when it starts.
    find "$1$venv" -type d -name tests -prune -exec rm -rf {} +
  done
  # 0.6.3 wants to find the module when it is imported, and needs it only to make vectors
  # out of texts; tests bring their vectors along.
  : >"$(echo "$1"/opt/chroma-0.6.3/lib/python3*/site-packages)/onnxruntime.py"
  rm -rf "$1/run/lab-pip"
}

# pip_world TREE: what pip needs of this machine, in one directory of the tree.
pip_world() {
  local world=$1/run/lab-pip conf cert
  mkdir -p "$world/.config/pip" "$world/.pip"
  for conf in .config/pip/pip.conf .pip/pip.conf .netrc; do
    if [ -r "${HOME:-/root}/$conf" ]; then cp -L "${HOME:-/root}/$conf" "$world/$conf"; fi
  done
  conf=${PIP_CONFIG_FILE:-/etc/pip.conf}
  if [ -r "$conf" ]; then cp -L "$conf" "$world/pip.conf"; fi
  cert=$(cat "$world"/{pip.conf,.config/pip/pip.conf,.pip/pip.conf} 2>/dev/null |
    sed -n 's/^ *cert *[=:] *//p' | head -n 1) || true
  # An authority of one's own is in the bundle of this machine, not in the tree's.
  cert=${PIP_CERT:-${cert:-${REQUESTS_CA_BUNDLE:-/etc/ssl/certs/ca-certificates.crt}}}
  if [ -r "$cert" ]; then cp -L "$cert" "$world/ca.crt"; fi
}

in_pip_world() { # in_pip_world TREE COMMAND...
  local tree=$1 world=/run/lab-pip settings=(); shift
  # The certificates in all variables: requests, inside pip, prefers its own to pip's.
  if [ -e "$tree$world/ca.crt" ]; then settings+=({PIP_CERT,REQUESTS_CA_BUNDLE,CURL_CA_BUNDLE,SSL_CERT_FILE}"=$world/ca.crt"); fi
  if [ -e "$tree$world/pip.conf" ]; then settings+=("PIP_CONFIG_FILE=$world/pip.conf"); fi
  # Where this machine's Python has its modules is nothing to the one in the tree.
  chroot "$tree" env -u PYTHONPATH -u PYTHONHOME -u PYTHONDONTWRITEBYTECODE -u VIRTUAL_ENV -u PIP_REQUIRE_VIRTUALENV \
    HOME="$world" TMPDIR=/tmp PATH=/usr/sbin:/usr/bin:/sbin:/bin PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    "${settings[@]}" "$@"
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

# variant FROM IMAGE RECIPE CHANGE...: a further name with its own defaults, sharing the layer.
variant() {
  local from=$1 image=$2 recipe=$3 changes=() c id; shift 3
  free_name "$image"
  for c in "LABEL $LAB_LABEL=$recipe" "$@"; do changes+=(--change "$c"); done
  id=$(docker create --network none --entrypoint /bin/true "$from")
  docker commit --pause=false "${changes[@]}" "$id" "$image" >/dev/null ||
    { docker rm -v "$id" >/dev/null; lab_die "could not make $image"; }
  docker rm -v "$id" >/dev/null
}

all_have() { # all_have RECIPE IMAGE...
  local recipe=$1 image; shift
  for image in "$@"; do have "$image" "$recipe" || return 1; done
}

# layered TARBALL FILE NAME: prints a copy of the tarball with a script of this directory
# on top, as an executable below /usr/local/bin. Changing the script needs no new tree.
layered() {
  local copy=$cache/$2.import.tar
  cp --reflink=auto "$1" "$copy"
  tar -C "$LAB_HERE" --owner=0 --group=0 --numeric-owner --mode=755 --transform "s,^$2\$,./usr/local/bin/$3," -rf "$copy" "$2"
  echo "$copy"
}

services() {
  local recipe tarball layered
  recipe=$(key "$(cat "$LAB_HERE/entrypoint.sh")" "$base_packages" "${services_packages[@]}" 3)
  if all_have "$recipe" tars-lab/services:1 postgres:15-alpine redis:7-alpine; then return 0; fi
  tarball=$(tree services bookworm "${services_packages[@]}")
  layered=$(layered "$tarball" entrypoint.sh docker-entrypoint.sh)
  import tars-lab/services:1 "$recipe" "$layered" \
    "ENV PATH=$bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
    'ENV PGDATA=/var/lib/postgresql/data' 'ENV LANG=C.UTF-8' \
    'ENTRYPOINT ["docker-entrypoint.sh"]' 'CMD ["postgres"]'
  rm -f "$layered"
  # As in the usual images, the data directories are declared as volumes: a container
  # made from them without a mount gets an anonymous one, which tests should notice.
  variant tars-lab/services:1 postgres:15-alpine "$recipe" 'ENTRYPOINT ["docker-entrypoint.sh"]' 'CMD ["postgres"]' \
    'VOLUME /var/lib/postgresql/data' 'EXPOSE 5432'
  variant tars-lab/services:1 redis:7-alpine "$recipe" 'ENTRYPOINT ["docker-entrypoint.sh"]' 'CMD ["redis-server"]' \
    'VOLUME /data' 'WORKDIR /data' 'EXPOSE 6379'
}

chroma() {
  local recipe tarball layered inputs path server entry v
  inputs=$(for v in "${chroma_versions[@]}"; do cat "$LAB_HERE/chroma-$v.txt"; done)
  recipe=$(key "$(cat "$LAB_HERE/standin.py")" "$base_packages" "${chroma_packages[@]}" "$inputs" 2)
  if all_have "$recipe" tars-lab/chroma:{0,1} chromadb/chroma:latest ollama/ollama:latest tars-backend:v1.0.10-home; then
    return 0
  fi
  tarball=$(tree chroma bookworm "${chroma_packages[@]}")
  layered=$(layered "$tarball" standin.py standin.py)
  path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
  entry='ENTRYPOINT ["dumb-init","--","chroma"]'
  server='"run","--host","0.0.0.0","--port","8000","--path"'
  # As in the usual images: 1.x writes to /data, 0.x to /chroma/chroma; none declares a volume.
  import tars-lab/chroma:1 "$recipe" "$layered" 'ENV LANG=C.UTF-8' "ENV PATH=/opt/chroma-1.5.9/bin:$path" \
    "$entry" "CMD [$server,\"/data\"]"
  rm -f "$layered"
  variant tars-lab/chroma:1 chromadb/chroma:latest "$recipe" "$entry" "CMD [$server,\"/data\"]" 'EXPOSE 8000'
  variant tars-lab/chroma:1 tars-lab/chroma:0 "$recipe" "ENV PATH=/opt/chroma-0.6.3/bin:$path" \
    'ENV ANONYMIZED_TELEMETRY=FALSE' "$entry" "CMD [$server,\"/chroma/chroma\"]" 'WORKDIR /chroma' 'EXPOSE 8000'
  variant tars-lab/chroma:1 ollama/ollama:latest "$recipe" \
    'ENTRYPOINT ["python3","/usr/local/bin/standin.py"]' 'CMD ["ollama"]' 'EXPOSE 11434'
  variant tars-lab/chroma:1 tars-backend:v1.0.10-home "$recipe" \
    'ENTRYPOINT ["python3","/usr/local/bin/standin.py"]' 'CMD ["backend"]' 'WORKDIR /app' 'EXPOSE 8000'
}

systemd() { # systemd 12|13 SUITE
  local recipe tarball
  local packages=("${systemd_packages[@]}")
  if [ "$1" = 13 ]; then packages+=("${systemd13_packages[@]}"); fi
  recipe=$(key "$base_packages" "${packages[@]}" 2)
  if have "tars-lab/systemd:$1" "$recipe"; then return 0; fi
  tarball=$(tree "systemd$1" "$2" "${packages[@]}")
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
# It need not be there in a tree, where maintainer scripts want it.
unset TMPDIR
mkdir -p "$cache" "$work"
# What an earlier, killed call left. Ours alone: the lock is held.
rm -rf "$work"/tree.* "$cache"/*.partial "$cache"/*.import.tar
mirror_uri=$(mirror)

[ $# -gt 0 ] || set -- services systemd12
trap cleanup EXIT
for what in "$@"; do
  case $what in
    services) services ;;
    chroma) chroma ;;
    systemd12) systemd 12 bookworm ;;
    systemd13) systemd 13 trixie ;;
    all) services; chroma; systemd 12 bookworm; systemd 13 trixie ;;
    *) lab_die "usage: images.sh [services|chroma|systemd12|systemd13|all]" ;;
  esac
done
