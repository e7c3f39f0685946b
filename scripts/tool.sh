#!/bin/bash
# Prints the path of a cargo tool of exactly one version, after installing it below target/tools if it is nowhere yet.
#   tool.sh NAME VERSION
set -euo pipefail
cd "$(dirname "$0")/.."

name=$1 version=$2

for tool in "target/tools/bin/$name" "${CARGO_HOME:-$HOME/.cargo}/bin/$name"; do
  # cargo-deb says its bare version, others their name before it.
  if [ -x "$tool" ] && [[ " $("$tool" --version </dev/null) " == *" $version "* ]]; then
    realpath -s "$tool"
    exit
  fi
done

# A build directory of its own: this build's target directory is not for the tool.
CARGO_TARGET_DIR=$PWD/target/tools/build cargo install --quiet --locked "$name@$version" --root target/tools >&2
rm -rf target/tools/build
echo "$PWD/target/tools/bin/$name"
