#!/bin/bash
# Installs moto, which speaks S3, below LAB_DIR: moto/bin/moto_server. Again at once when it is there.
# What could go wrong: half an installation that looks like a whole one; so one that is whole has a stamp, written last.
set -euo pipefail
# shellcheck source=tests/lab/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

pinned=$LAB_HERE/moto-5.2.5.txt
stamp=$(sha256sum <"$pinned")

lab_lock moto
if [ -x "$LAB_DIR/moto/bin/moto_server" ] && [ "$(cat "$LAB_DIR/moto/pinned" 2>/dev/null)" = "$stamp" ]; then
  exit 0
fi
install() {
  rm -rf "$LAB_DIR/moto"
  python3 -m venv "$LAB_DIR/moto"
  "$LAB_DIR/moto/bin/pip" install --quiet --no-input --no-deps -r "$pinned"
  "$LAB_DIR/moto/bin/moto_server" --help >/dev/null
  printf '%s\n' "$stamp" >"$LAB_DIR/moto/pinned"
}
lab_logged moto install
