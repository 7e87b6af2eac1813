#!/usr/bin/env bash
# What somebody would use instead, from Debian's packages, on the same image in the same run: CPU
# seconds and wall clock per GiB, ratio, in one table with ours. Everything ends on the disk (synced).
#
#   loadtest/peers.sh [--image FILE] [--size MIB] [--seconds S] [--directory DIR]
#
# Without --image an ext4 image of this machine's files is made. Ours is the process server's CPU
# (TLS, group commit, sealing at zstd level 1 and no other, publishing in a directory store); the
# generator's is shown beside it.
set -euo pipefail
cd "$(dirname "$0")/.."

image='' size=1024 seconds=20 directory=${TMPDIR:-/tmp}
while [ $# -gt 0 ]; do
  case $1 in
    --image) image=$(realpath "$2"); shift 2 ;;
    --size) size=$2; shift 2 ;;
    --seconds) seconds=$2; shift 2 ;;
    --directory) directory=$2; shift 2 ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
done

load=target/release/holdfast-loadtest
[ -x "$load" ] || { echo "$load is missing: cargo build --release --workspace" >&2; exit 1; }

declare -A package=(
  [restic]=restic [borg]=borgbackup [qemu-img]=qemu-utils [nbdkit]=nbdkit [nbdcopy]=libnbd-bin
  [zstd]=zstd [openssl]=openssl [mkfs.ext4]=e2fsprogs [jq]=jq
)
export PATH="$PATH:/usr/sbin:/sbin"
missing=()
for tool in "${!package[@]}"; do
  command -v "$tool" >/dev/null || missing+=("${package[$tool]}")
done
if [ "${#missing[@]}" -gt 0 ]; then
  root=(); [ "$(id -u)" = 0 ] || root=(sudo)
  answer=y
  if [ "${CI:-}" != true ]; then
    read -r -p "Peers need ${missing[*]}. Install them with ${root[*]:-} apt-get? [y/N] " answer || answer=n
  fi
  if [ "$answer" = y ] || [ "$answer" = Y ]; then
    "${root[@]}" apt-get update -q >/dev/null
    DEBIAN_FRONTEND=noninteractive "${root[@]}" apt-get install -qy --no-install-recommends "${missing[@]}" >/dev/null
  else
    echo "going on without; what is missing is left out of the table" >&2
  fi
fi

work=$(mktemp -d "$directory/holdfast-peers-XXXXXX")
trap 'rm -rf "$work"' EXIT

if [ -z "$image" ]; then
  echo "making an image of $size MiB" >&2
  image=$work/disk.img
  mkdir "$work/files"
  # The same files every time, from all over: ordered by a hash of their names, 84 % of the image.
  find /usr -xdev -type f -size -64M -printf '%s %p\n' 2>/dev/null |
    awk '{ h = 0; for (i = 1; i <= length($2); i += 3) h = (h * 31 + length($2) * i + index("abcdefghijklmnopqrstuvwxyz0123456789/._-", substr($2, i, 1))) % 1000003; print h, $0 }' |
    sort -n | awk -v left=$((size * 1024 * 1024 / 100 * 84)) \
      'NF == 3 { need = int(($2 + 4095) / 4096) * 4096; if (need <= left && need > 0 && n < 60000) { left -= need; n++; print $3 } }' |
    { n=0; while IFS= read -r file; do
        folder=$work/files/$((n / 1000)); mkdir -p "$folder"; cp "$file" "$folder/$n" 2>/dev/null || true; n=$((n + 1))
      done; }
  truncate -s "${size}M" "$image"
  mkfs.ext4 -q -F -b 4096 -i 8192 -m 0 -d "$work/files" "$image"
  rm -rf "$work/files"
fi
bytes=$(stat -c %s "$image")
cat "$image" >/dev/null # everybody reads it from memory

table=$work/table
printf '%s\t%s\t%s\t%s\n' tool 'CPU s/GiB' MB/s ratio >"$table"

# row NAME OUTPUT COMMAND…: runs it, with the sync of what it wrote.
row() {
  local name=$1 output=$2; shift 2
  local TIMEFORMAT='%R %U %S' spent
  echo "$name" >&2
  if ! spent=$( { time { "$@" >"$work/log" 2>&1 && sync "$work"; } 2>>"$work/log"; } 2>&1 ); then
    printf '%s\tfailed\t-\t-\n' "$name" >>"$table"; tail -3 "$work/log" >&2; return
  fi
  local stored; stored=$(du -sB1 "$output" | cut -f1)
  awk -v name="$name" -v bytes="$bytes" -v stored="$stored" -v spent="$spent" 'BEGIN {
    split(spent, t, " "); gib = bytes / 1073741824
    printf "%s\t%.2f\t%.0f\t%.2f\n", name, (t[2] + t[3]) / gib, bytes / 1e6 / t[1], bytes / stored }' >>"$table"
  rm -rf "$output"
}
have() { command -v "$1" >/dev/null; }

export RESTIC_PASSWORD=peers BORG_PASSPHRASE=peers BORG_BASE_DIR=$work/borg-home
export XDG_CACHE_HOME=$work/cache
if have restic; then
  restic init -q -r "$work/restic"
  row 'restic (compression auto)' "$work/restic" restic -q -r "$work/restic" backup "$image"
fi
if have borg; then
  borg init -e repokey-blake2 "$work/borg" 2>/dev/null
  row 'borg (zstd,1)' "$work/borg" borg create -C zstd,1 "$work/borg::a" "$image"
fi
have qemu-img && row 'qemu-img convert (qcow2, zstd; not encrypted)' "$work/out.qcow2" \
  qemu-img convert -c -O qcow2 -o compression_type=zstd "$image" "$work/out.qcow2"
have nbdkit && have nbdcopy && row 'nbdcopy (both ends; plain, not compressed)' "$work/out.raw" \
  nbdkit -U - file "$image" --run "nbdcopy \"\$uri\" '$work/out.raw'"
pipe() { zstd -1 -T0 -q -c "$image" | openssl enc -aes-256-ctr -pbkdf2 -pass pass:peers -out "$work/out.zst.enc"; }
have zstd && have openssl && row 'zstd -1 -T0 | openssl enc' "$work/out.zst.enc" pipe

echo holdfast >&2
"$load" --data "$image" --profile sequential --block 64 --machines 4 --flat-out --seconds "$seconds" \
  --set seal.level=1 --set seal.level_min=1 --set seal.level_max=1 --set apply.enabled=false --directory "$work" --json >"$work/ours.json"
jq -r '.phases[0] | [
    "holdfast, process server",
    (.server_cpu_seconds_per_gib * 100 | round / 100),
    (.published_bytes_per_second / 1e6 | round),
    (.payload_bytes / .published_bytes * 100 | round / 100)
  ] | @tsv' "$work/ours.json" >>"$table"
jq -r '.phases[0] | [ "  and what sent to it, on the same cores",
    (.generator_cpu_seconds_per_gib * 100 | round / 100), "-", "-" ] | @tsv' "$work/ours.json" >>"$table"

printf 'image of %s MiB, %s cores\n\n' "$((bytes >> 20))" "$(nproc)"
awk -F'\t' '{ printf "%-46s %10s %8s %7s\n", $1, $2, $3, $4 }' "$table"
