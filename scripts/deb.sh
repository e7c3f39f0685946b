#!/bin/bash
# Builds the Debian package below target/debian; the last line of the output is its path.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo_deb=$(scripts/tool.sh cargo-deb 3.8.0)
cargo build --release --locked
program=${CARGO_TARGET_DIR:-target}/release/tars-backup

# What the package holds and nobody writes by hand.
dist=target/dist
rm -rf "$dist"
mkdir -p "$dist"/{man,completions}
"$program" man >"$dist/man/tars-backup.1"
"$program" completions bash >"$dist/completions/tars-backup"
"$program" completions zsh >"$dist/completions/_tars-backup"
"$program" completions fish >"$dist/completions/tars-backup.fish"
gzip -9n <CHANGELOG.md >"$dist/changelog.gz"

rm -rf target/debian
mkdir -p target/debian
# The profile of the release strips already.
"$cargo_deb" --quiet --no-build --no-strip --output "$PWD/target/debian" -- --locked
ls "$PWD"/target/debian/*.deb
