#!/bin/bash
# Makes a signed apt repository of the package below target/apt, so that `apt install tars-backup` works from there: a
# directory that any web server, or a file: URL, can show.
#   TARS_BACKUP_DEB   packages to put in, separated by blanks; without it, the package is built (scripts/deb.sh)
#   APT_KEY           the key in your GnuPG keyring to sign with: fingerprint, key id or address
#   APT_URL           where the repository will be seen, for the example; without it, this directory
#
# Without APT_KEY a key without passphrase is made once below target/apt-key. It is good for trying, and for as long as
# that directory is kept: machines that trust it refuse what another key has signed.
#
# What could go wrong: a repository that looks signed and that newer apt refuses (Debian 13 takes no SHA-1 and no short
# RSA keys), so what was made is verified before it takes the place of the old one, with SHA512 and nothing but the
# public key that is shipped.
set -euo pipefail
cd "$(dirname "$0")/.."

die() { printf 'apt-repo: %s\n' "$*" >&2; exit 1; }

for tool in apt-ftparchive:apt-utils gpg:gnupg gpg-agent:gnupg gpgv:gpgv dpkg-deb:dpkg; do
  command -v "${tool%%:*}" >/dev/null ||
    die "${tool%%:*} is missing, which is in the package ${tool#*:} of Debian: apt-get install ${tool#*:}"
done

packages=${TARS_BACKUP_DEB:-}
[ -n "$packages" ] || packages=$(scripts/deb.sh | tail -n 1)

gpg_home=() # the caller's own
if [ -n "${APT_KEY:-}" ]; then
  key=$APT_KEY
  echo "signing with your key $key" >&2
else
  home=$PWD/target/apt-key
  # The agent's socket lies in the home directory where /run/user is not there, and its path must be short.
  gpg_home=(--homedir "$home")
  if [ ! -d "$home" ]; then
    mkdir -p target
    rm -rf "$home.new"
    mkdir -m 0700 "$home.new"
    gpg --homedir "$home.new" --batch --quiet --pinentry-mode loopback --passphrase '' \
      --quick-generate-key 'tars-backup archive signing key <maintainers@tars-home.invalid>' ed25519 sign never
    gpgconf --homedir "$home.new" --kill gpg-agent
    mv "$home.new" "$home"
    echo "made a new signing key without passphrase below $home: keep it, and keep it private" >&2
  else
    echo "signing with the key below $home" >&2
  fi
  trap 'gpgconf --homedir "$home" --kill gpg-agent || true' EXIT
  key=$(gpg "${gpg_home[@]}" --batch --quiet --with-colons --list-secret-keys | awk -F: '$1 == "fpr" { print $10; exit }')
  [ -n "$key" ] || die "there is no secret key below $home: remove it, and a new one is made"
fi
gpg "${gpg_home[@]}" --batch --quiet --list-secret-keys "$key" >/dev/null ||
  die "there is no secret key \"$key\" in your keyring: gpg --list-secret-keys"

new=$PWD/target/apt.new
rm -rf "$new"
mkdir -p "$new/pool/main/t/tars-backup"
architectures=()
for package in $packages; do
  cp "$package" "$new/pool/main/t/tars-backup/"
  architecture=$(dpkg-deb --field "$package" Architecture)
  [[ " ${architectures[*]} " == *" $architecture "* ]] || architectures+=("$architecture")
done

cd "$new"
# Old digests prove nothing, and apt needs none of them.
index=(apt-ftparchive -o APT::FTPArchive::MD5=false -o APT::FTPArchive::SHA1=false)
for architecture in "${architectures[@]}"; do
  list=dists/stable/main/binary-$architecture
  mkdir -p "$list"
  "${index[@]}" --arch "$architecture" packages pool >"$list/Packages"
  [ -s "$list/Packages" ] || die "apt-ftparchive found no package of $architecture"
  gzip -9nk "$list/Packages"
done
release=(-o APT::FTPArchive::Release::Origin=tars-backup -o APT::FTPArchive::Release::Label=tars-backup
  -o APT::FTPArchive::Release::Suite=stable -o APT::FTPArchive::Release::Codename=stable
  -o APT::FTPArchive::Release::Components=main -o "APT::FTPArchive::Release::Architectures=${architectures[*]}"
  -o APT::FTPArchive::Release::Description='tars-backup, backup agent for small Docker Compose stacks')
# Written elsewhere first, or it would list itself.
"${index[@]}" "${release[@]}" release dists/stable >"$new.Release"
mv "$new.Release" dists/stable/Release

sign=(gpg "${gpg_home[@]}" --batch --quiet --yes --local-user "$key" --digest-algo SHA512)
"${sign[@]}" --clear-sign --output dists/stable/InRelease dists/stable/Release
"${sign[@]}" --armor --detach-sign --output dists/stable/Release.gpg dists/stable/Release

keyring=tars-backup-archive-keyring
gpg "${gpg_home[@]}" --batch --export "$key" >"$keyring.gpg"
gpg "${gpg_home[@]}" --batch --armor --export "$key" >"$keyring.asc"
cat >tars-backup.sources <<EOF
# Belongs to /etc/apt/sources.list.d/; the key to /usr/share/keyrings/.
Types: deb
URIs: ${APT_URL:-file:$(dirname "$new")/apt}
Suites: stable
Components: main
Architectures: ${architectures[*]}
Signed-By: /usr/share/keyrings/$keyring.gpg
EOF

gpgv --quiet --keyring "$new/$keyring.gpg" dists/stable/InRelease 2>"$new.verified" ||
  { cat "$new.verified" >&2; die "the signature that was just made is not good with the exported key"; }
gpgv --quiet --keyring "$new/$keyring.gpg" dists/stable/Release.gpg dists/stable/Release 2>"$new.verified" ||
  { cat "$new.verified" >&2; die "the signature that was just made is not good with the exported key"; }
rm "$new.verified"
# apt reads all of it as a user without rights.
chmod -R a+rX,u+w "$new"

cd "$OLDPWD"
rm -rf target/apt
mv "$new" target/apt
echo "$PWD/target/apt"
