#!/usr/bin/env bash
# Ours against the pipeline that people use instead (tar | gzip per component, then one tar), in one run on one machine,
# so that the ratio means something even where the machine is noisy. Also: peak memory, flat over size; many small files.
# What could go wrong: a warm cache for one side only; so every pair reads the same files, and each side runs in turn.
#
# usage: benches/run.sh [megabytes] [part...]   (default 800; parts: backup small memory seal many restore; default: all. Memory
# and restore use 200 and 2000, seal 2000 and 4000; seal needs moto, see tests/lab/moto.sh)
set -euo pipefail
cd "$(dirname "$0")/.."
size=${1:-800}
parts=" ${*:2} "
[ "$parts" != "  " ] || parts=" backup small memory seal many restore "
wanted() { [[ $parts == *" $1 "* ]]; }
rounds=${ROUNDS:-3}
cargo build --release --quiet
program=$PWD/target/release/tars-backup
work=$(mktemp -d "${TMPDIR:-/tmp}/tars-bench-XXXXXX")
trap 'rm -rf "$work"' EXIT

# Half text that compresses like a dump, a quarter vectors (floats), a quarter already compressed.
make_data() { # directory megabytes
  mkdir -p "$1"
  python3 - "$1" "$2" <<'PY'
import os, random, struct, sys
root, mb = sys.argv[1], int(sys.argv[2])
rnd = random.Random(7)
words = [''.join(rnd.choice('etaoinshrdlucmfwypvbgkjqxz') for _ in range(rnd.randint(2, 9))) for _ in range(20000)]
def text(n):
    out = bytearray()
    while len(out) < n:
        out += ('%d\t%s\t%s\n' % (rnd.randint(1, 10**8), ' '.join(rnd.choices(words, k=12)), rnd.choice(words))).encode()
    return bytes(out[:n])
def vectors(n):
    return struct.pack('%df' % (n // 4), *[rnd.gauss(0, 1) for _ in range(n // 4)])
text_block = [text(4 << 20) for _ in range(4)]
vector_block = [vectors(4 << 20) for _ in range(2)]
def fill(name, n, make):
    with open(os.path.join(root, name), 'wb') as f:
        for i in range(n):
            f.write(make(i))
n = mb // 4
fill('text', n // 2, lambda i: text_block[i % 4][i * 977 % 4096:] + text_block[i % 4][:i * 977 % 4096])
fill('vectors', n // 4, lambda i: vector_block[i % 2][i % 64 * 4:] + vector_block[i % 2][:i % 64 * 4])
fill('packed', n - n // 2 - n // 4, lambda i: os.urandom(4 << 20))
PY
}

config() { # directory compression
  cat > "$work/config.toml" <<EOF
[agent]
state_dir = "$work/state"
runtime_dir = "$work/run"
[archive]
compression = "$2"
[sources.data]
type = "directory"
path = "$1"
[stores.nas]
type = "fs"
path = "$work/store"
[tiers.hot]
stores = ["nas"]
path = "daily"
EOF
  mkdir -p "$work/store"
  "$program" --config "$work/config.toml" store init nas >/dev/null 2>&1
}

now() { date +%s.%N; }
elapsed() { # command...: wall seconds into $seconds
  local start end
  start=$(now); "$@" >/dev/null 2>&1; end=$(now)
  seconds=$(echo "$end $start" | awk '{printf "%.3f", $1 - $2}')
}
median() { sort -n | awk '{v[NR]=$1} END {print v[int((NR+1)/2)]}'; }
ours() { "$program" --config "$work/config.toml" -q backup; }
classic() { # directory filter
  rm -rf "$work/classic"; mkdir -p "$work/classic/in"
  tar -C "$1" -cf - . | $2 > "$work/classic/in/data.tar.x"
  tar -C "$work/classic" -czf "$work/classic/out.tar.gz" in
  (cd "$work/classic" && sha256sum out.tar.gz > out.sha256)
  sync -f "$work/classic/out.tar.gz"
}
pair() { # label directory filter
  local a=() b=() i
  for ((i = 0; i < rounds; i++)); do
    rm -rf "$work/store/daily"; elapsed ours; a+=("$seconds")
    elapsed classic "$2" "$3"; b+=("$seconds")
  done
  local x y
  x=$(printf '%s\n' "${a[@]}" | median); y=$(printf '%s\n' "${b[@]}" | median)
  local ours_bytes classic_bytes
  ours_bytes=$(stat -c %s "$work"/store/daily/*.tar.gz | tail -1)
  classic_bytes=$(stat -c %s "$work/classic/out.tar.gz")
  awk -v l="$1" -v x="$x" -v y="$y" -v ob="$ours_bytes" -v cb="$classic_bytes" \
    'BEGIN {printf "%-34s ours %7.2f s  theirs %7.2f s  speed ratio %5.2fx  size ratio %5.3f\n", l, x, y, y / x, ob / cb}'
}

if wanted backup; then
echo "== $size MB (text, vectors, packed), median of $rounds"
make_data "$work/data" "$size"
config "$work/data" gzip; pair "gzip against tar|gzip -6, tar -czf" "$work/data" "gzip -6"
config "$work/data" zstd; rm -f "$work/store/tars-backup-store.json"; config "$work/data" zstd
pair "zstd against tar|zstd -T2, tar -czf" "$work/data" "zstd -q -T2"
rm -rf "$work/data" "$work/classic"
fi

if wanted small; then
echo "== 100,000 small files: whole backup against GNU tar alone"
mkdir -p "$work/small"
python3 - "$work/small" <<'PY'
import os, sys
for d in range(200):
    p = os.path.join(sys.argv[1], 'd%03d' % d); os.mkdir(p)
    for i in range(500):
        with open(os.path.join(p, 'f%03d' % i), 'wb') as f: f.write(b'x%d' % i * 100)
PY
config "$work/small" gzip
a=(); b=()
for ((i = 0; i < rounds; i++)); do
  elapsed ours; a+=("$seconds")
  elapsed tar -C "$work/small" -cf "$work/small.tar" .; b+=("$seconds")
done
awk -v x="$(printf '%s\n' "${a[@]}" | median)" -v y="$(printf '%s\n' "${b[@]}" | median)" \
  'BEGIN {printf "ours %.2f s  tar -cf %.2f s  speed ratio %.2fx\n", x, y, y / x}'
rm -rf "$work/small" "$work/small.tar"
fi

if wanted memory; then
echo "== peak memory and verify"
for mb in 200 2000; do
  make_data "$work/data" "$mb"; config "$work/data" gzip; rm -rf "$work/store/daily"
  /usr/bin/time -f "%M" -o "$work/rss" "$program" --config "$work/config.toml" -q backup
  awk -v mb="$mb" '{printf "%5d MB: peak memory %.0f MiB\n", mb, $1 / 1024}' "$work/rss"
  rm -rf "$work/data"
done
archive=$(echo "$work"/store/daily/*.tar.gz)
a=(); b=()
for ((i = 0; i < rounds; i++)); do
  elapsed "$program" --config "$work/config.toml" -q verify --latest; a+=("$seconds")
  elapsed openssl dgst -sha256 "$archive"; b+=("$seconds")
done
awk -v x="$(printf '%s\n' "${a[@]}" | median)" -v y="$(printf '%s\n' "${b[@]}" | median)" \
  'BEGIN {printf "verify %.2f s  openssl dgst -sha256 %.2f s  ratio %.2f\n", x, y, x / y}'
fi

if wanted seal; then
echo "== sealing against not sealing, and the memory of 4,000 MB sealed and brought to S3"
make_data "$work/data" 2000
key=$("$program" key new --output "$work/key" 2>&1 | grep -o 'age1[a-z0-9]*' | head -1)
a=(); b=()
for ((i = 0; i < rounds; i++)); do
  for how in always never; do
    rm -rf "$work/store"; config "$work/data" gzip
    printf '[encryption]\nrecipients = ["%s"]\nseal = "%s"\n' "$key" "$how" >> "$work/config.toml"
    elapsed ours
    if [ $how = always ]; then a+=("$seconds"); else b+=("$seconds"); fi
  done
done
awk -v x="$(printf '%s\n' "${a[@]}" | median)" -v y="$(printf '%s\n' "${b[@]}" | median)" \
  'BEGIN {printf "sealed %.2f s  plain %.2f s  ratio %.2f\n", x, y, x / y}'
rm -rf "$work/data" "$work/store"

# shellcheck source=tests/lab/lib.sh
. tests/lab/lib.sh
tests/lab/moto.sh
mkdir "$work/data"
head -c 4000000000 /dev/urandom > "$work/data/noise"
"$LAB_DIR/moto/bin/moto_server" -H 127.0.0.1 -p 5055 >/dev/null 2>&1 & moto=$!
trap 'kill $moto; rm -rf "$work"' EXIT
for ((i = 0; i < 100; i++)); do
  curl -sf -o /dev/null --user id:secret --aws-sigv4 aws:amz:us-east-1:s3 -X PUT http://127.0.0.1:5055/bench && break
  sleep 0.2
done
config "$work/data" none
(umask 077; echo id > "$work/id"; echo secret > "$work/secret")
cat >> "$work/config.toml" <<EOF
[encryption]
recipients = ["$key"]
[stores.s3]
type = "s3"
bucket = "bench"
endpoint = "http://127.0.0.1:5055"
region = "us-east-1"
key_id = { file = "$work/id" }
key = { file = "$work/secret" }
[tiers.away]
stores = ["s3"]
path = "weekly"
EOF
"$program" --config "$work/config.toml" -q store init s3
/usr/bin/time -f "%M" -o "$work/rss" "$program" --config "$work/config.toml" -q backup --tier away
awk '{printf "4000 MB sealed and uploaded: peak memory %.0f MiB\n", $1 / 1024}' "$work/rss"
kill $moto
trap 'rm -rf "$work"' EXIT
rm -rf "$work/data" "$work/store"
fi

if wanted many; then
echo "== 1,000 backups in one directory: listed, and planned what goes"
mkdir -p "$work/data"; echo x > "$work/data/x"
config "$work/data" gzip
printf 'keep = { within = "7d", monthly = 12 }\n' >> "$work/config.toml"
rm -rf "$work/store/daily"; ours
python3 - "$work/store/daily" <<'PY'
import datetime, glob, hashlib, os, re, sys
root = sys.argv[1]
[manifest] = glob.glob(os.path.join(root, '*.manifest.json'))
like = os.path.basename(manifest)[:-len('.manifest.json')]
read = lambda end: open(os.path.join(root, like + end), 'rb').read()
text, archive, mark = read('.manifest.json').decode(), read('.tar.gz'), read('.verified')
now = datetime.datetime.strptime(like[-15:], '%Y%m%d_%H%M%S')
for i in range(1, 1000):
    at = now - datetime.timedelta(days=i)
    name = at.strftime('tars-backup-%Y%m%d_%H%M%S')
    new = re.sub(r'"timestamp": "[^"]*"', '"timestamp": "%s"' % at.strftime('%Y-%m-%dT%H:%M:%SZ'), text.replace(like, name))
    new = re.sub(r'("manifest_sha256": ")[0-9a-f]*', r'\1', new)
    digest = hashlib.sha256(new.encode()).hexdigest()
    new = new.replace('"manifest_sha256": "', '"manifest_sha256": "' + digest)
    for end, data in (('.tar.gz', archive), ('.verified', mark), ('.manifest.json', new.encode())):
        with open(os.path.join(root, name + end), 'wb') as f: f.write(data)
PY
for command in "list --json" "prune --json"; do
  a=()
  # shellcheck disable=SC2086 # two words
  for ((i = 0; i < rounds; i++)); do elapsed "$program" --config "$work/config.toml" $command; a+=("$seconds"); done
  awk -v c="$command" -v x="$(printf '%s\n' "${a[@]}" | median)" 'BEGIN {printf "%-14s %.3f s\n", c, x}'
done
"$program" --config "$work/config.toml" prune --json | grep -c '"keep": false' | awk '{print $1 " would go"}'
rm -rf "$work/store"
fi

if wanted restore; then
echo "== restore of 2,000 MB against tar -xzf"
make_data "$work/data" 2000; config "$work/data" gzip; rm -rf "$work/store/daily"
ours
archive=$(echo "$work"/store/daily/*.tar.gz)
# Ours fetches, compares and reads through before it writes; theirs only writes. First theirs from the archive as it is,
# then from one that gzip itself made.
tar -xzOf "$archive" --wildcards '*/data.tar.gz' > "$work/data.tar.gz"
tar -C "$work/data" -czf "$work/classic.tar.gz" .
a=(); b=(); c=()
for ((i = 0; i < rounds; i++)); do
  elapsed "$program" --config "$work/config.toml" -q restore --latest --yes --no-safety-backup; a+=("$seconds")
  rm -rf "$work/plain"; mkdir "$work/plain"
  elapsed sh -c "tar -xpzf '$work/data.tar.gz' -C '$work/plain' && sync -f '$work/plain'"; b+=("$seconds")
  diff -r "$work/data" "$work/plain"
  rm -rf "$work/plain"; mkdir "$work/plain"
  elapsed sh -c "tar -xpzf '$work/classic.tar.gz' -C '$work/plain' && sync -f '$work/plain'"; c+=("$seconds")
done
awk -v x="$(printf '%s\n' "${a[@]}" | median)" -v y="$(printf '%s\n' "${b[@]}" | median)" -v z="$(printf '%s\n' "${c[@]}" | median)" \
  'BEGIN {printf "restore %.2f s  tar -xpzf and sync %.2f s, of gzip itself %.2f s  speed ratio %.2fx, %.2fx\n", x, y, z, y / x, z / x}'
fi
