#!/usr/bin/env bash
# What capture costs the workload: fio on one loop device, bare and captured by turns in the same run, in
# each of several rounds; medians in one table, or as JSON.
#
#   loadtest/capture.sh [--rounds N] [--seconds S] [--size MIB] [--modes LIST] [--directory DIR]
#                       [--rates LIST] [--memory] [--share] [--binary FILE] [--json]
#
# With --rates, what a disk has a workload do that is no faster than that: each of LIST is so many 4 KiB random
# writes a second (10k), or MB/s of 1 MiB writes in sequence (200m); fio is held to it, and how much of it is
# reached, how long a write takes, and the agent's CPU at that rate is told. "10k 20k 40k 200m 400m" is a good one.
# Modes: bare, ebpf, alone (ebpf without a process server), fuse, nbd; default all. The device lies on a file
# in DIR (default $TMPDIR or /tmp), with --memory in /dev/shm. The agent has a process server with a directory
# store on the same cores. As it stands for another machine, cache and store are in /dev/shm (about 2 GiB), and of the cores
# it gets what nobody else wants (SCHED_IDLE), with --share as much as everybody. Needs root, fio, jq, losetup.
# Everything it makes is gone at its end.
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=3 seconds=3 size=256 modes='bare ebpf alone fuse nbd' directory=${TMPDIR:-/tmp}
memory='' share='' rates='' binary=target/release/holdfast json=''
while [ $# -gt 0 ]; do
  case $1 in
    --rounds) rounds=$2; shift 2 ;;
    --seconds) seconds=$2; shift 2 ;;
    --size) size=$2; shift 2 ;;
    --modes) modes=$2; shift 2 ;;
    --directory) directory=$2; shift 2 ;;
    --rates) rates=$2; shift 2 ;;
    --memory) memory=1; shift ;;
    --share) share=1; shift ;;
    --binary) binary=$2; shift 2 ;;
    --json) json=1; shift ;;
    *) sed -n '2,16s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
done
[ -x "$binary" ] || { echo "$binary is missing: cargo build --release --workspace" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "a loop device and eBPF take root" >&2; exit 1; }
export PATH="$PATH:/usr/sbin:/sbin"
for tool in fio jq losetup chrt; do
  command -v "$tool" >/dev/null || { echo "$tool is missing (packages fio, jq, mount, util-linux)" >&2; exit 1; }
done
hold=$(realpath "$binary")

work=$(mktemp -d "$directory/holdfast-capture-XXXXXX")
# As the unit for eBPF has it: the bitmaps are in memory, a boot is a resync anyway.
states=$(mktemp -d /dev/shm/holdfast-capture-XXXXXX)
device='' server='' agent=''
# end PID [SIGNAL]: of a child of ours.
end() {
  [ -n "$1" ] || return 0
  kill "-${2:-TERM}" "$1" 2>/dev/null || true
  wait "$1" 2>/dev/null || true
}
release() {
  for mode in ebpf alone; do
    [ ! -e "$work/$mode/agent.toml" ] || "$hold" agent release --config "$work/$mode/agent.toml" >/dev/null 2>&1 || true
  done
}
leave() {
  end "$agent" KILL
  end "$server" KILL
  release
  ! mountpoint -q "$work/fuse/mount" || umount -l "$work/fuse/mount" || true
  [ -z "$device" ] || losetup -d "$device" || true
  rm -rf "$work" "$states"
}
trap leave EXIT
trap 'exit 130' INT TERM

# A program of another agent sees each request of this machine, and costs bare runs as well.
others=$(find /sys/fs/bpf/holdfast -mindepth 2 -maxdepth 2 2>/dev/null | wc -l)
[ "$others" = 0 ] || echo "$others other programs are loaded (/sys/fs/bpf/holdfast): what is measured has their cost in it" >&2

place=$work; [ -z "$memory" ] || place=$states
dd if=/dev/zero of="$place/disk" bs=1M count="$size" status=none
sync "$place/disk"
device=$(losetup --find --show --direct-io=on "$place/disk" 2>/dev/null || losetup --find --show "$place/disk")

# CPU seconds of a process, all of its threads.
cpu() { sed 's/.*) //' "/proc/$1/stat" | awk -v hz="$(getconf CLK_TCK)" '{ print ($12 + $13) / hz }'; }
status() { "$hold" agent status --config "$work/$1/agent.toml" --json 2>/dev/null; }
# until MODE: the agent is as it shall be, and has nothing left to do.
ready() {
  local want='.mode == "ordered" and .dirty_bytes == 0 and .published == .last'
  [ "$1" != alone ] || want='.disks[0].capture == "extents"'
  for _ in $(seq 1200); do
    kill -0 "$agent" 2>/dev/null || { echo "the agent of $1 ended:" >&2; tail -3 "$work/$1.log" >&2; exit 1; }
    status "$1" | jq -e "$want" >/dev/null 2>&1 && return
    sleep 0.1
  done
  echo "the agent of $1 is not ready after two minutes:" >&2; status "$1" | jq -c '{mode, why, dirty_bytes}' >&2; exit 1
}
lost() { grep -c 'from=Ordered' "$work/$1.log" || true; }

# load MODE JOB: fio's words for one run.
load() {
  local target=(--filename="$device" --ioengine=libaio --direct=1)
  case $1 in
    fuse) target=(--filename="$work/fuse/mount/d.img" --ioengine=libaio --direct=1) ;;
    nbd) target=(--ioengine=nbd --uri="nbd+unix:///d?socket=$(socket)") ;;
  esac
  local job
  case $2 in
    flushed) job=(--rw=randwrite --bs=4k --iodepth=1 --fsync=1) ;;
    random) job=(--rw=randwrite --bs=4k --iodepth=32) ;;
    sequence) job=(--rw=write --bs=1m --iodepth=4) ;;
    *[0-9]k) job=(--rw=randwrite --bs=4k --iodepth=32 --rate_iops="${2%k}000" --rate_process=poisson) ;;
    *[0-9]m) job=(--rw=write --bs=1m --iodepth=4 --rate="${2%m}000000") ;;
  esac
  fio --name=load "${target[@]}" "${job[@]}" --size="${size}m" --time_based --runtime="$seconds" --randrepeat=0 --output-format=json 2>>"$work/fio.log"
}
socket() { echo "$states/nbd/d.sock"; }

# run ROUND MODE JOB: one line of JSON.
run() {
  local before=0 after=0 losses=0
  if [ "$2" != bare ]; then ready "$2"; before=$(cpu "$agent") losses=$(lost "$2"); fi
  load "$2" "$3" >"$work/out" || { tail -3 "$work/fio.log" >&2; exit 1; }
  if [ "$2" != bare ]; then ready "$2"; after=$(cpu "$agent") losses=$(($(lost "$2") - losses)); fi
  # What fio's engine for NBD may say before its JSON is left out.
  sed -n '/^{/,$p' "$work/out" | jq -c --arg mode "$2" --arg job "$3" --argjson round "$1" --argjson losses "$losses" \
    --argjson cpu "$(awk -v a="$before" -v b="$after" 'BEGIN { printf "%.3f", b - a }')" \
    '.jobs[0].write | { $round, $mode, $job, iops, mb_per_s: (.bw_bytes / 1e6), p50_us: (.clat_ns.percentile["50.000000"] / 1000),
      p99_us: (.clat_ns.percentile["99.000000"] / 1000), runtime_s: (.runtime / 1000), bytes: .io_bytes, agent_cpu_s: $cpu, order_lost: $losses }' >>"$work/runs"
}

# A site of its own for each round, so that nothing piles up.
open_site() {
  local as=(chrt --idle 0) mode capture
  [ -z "$share" ] || as=()
  # Two ports that are free now; the agent of mode alone finds nobody at the second.
  port=$((20000 + RANDOM % 10000))
  while taken "$port" || taken $((port + 1)); do port=$((20000 + RANDOM % 10000)); done
  "$hold" init "$states/site" --listen "127.0.0.1:$port" >/dev/null
  # Published soon, so that each run begins with nothing left of the one before.
  sed -i 's/^# age_max_ms = .*/age_max_ms = 300/; s/^# enabled = true/enabled = false/' "$states/site/holdfast.toml"
  "${as[@]}" "$hold" serve --config "$states/site/holdfast.toml" >"$work/serve.log" 2>&1 &
  server=$!
  for mode in $modes; do
    [ "$mode" != bare ] || continue
    capture=$mode; [ "$mode" != alone ] || capture=ebpf
    "$hold" enroll "capture-$$-$mode" --config "$states/site/holdfast.toml" --out "$work/$mode" --disk "d=$device" >/dev/null
    mkdir "$states/$mode"
    sed -i "1i state_directory = \"$states/$mode\"" "$work/$mode/agent.toml"
    sed -i "s/^capture = .*/capture = \"$capture\"/" "$work/$mode/agent.toml"
    case $mode in
      alone) sed -i "s/:$port\"/:$((port + 1))\"/" "$work/$mode/agent.toml" ;;
      fuse) echo "mount = \"$work/fuse/mount\"" >>"$work/fuse/agent.toml" ;;
    esac
  done
}
taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
close_site() {
  local mode
  end "$server" KILL; server=''
  rm -rf "$states/site"
  for mode in $modes; do rm -rf "${work:?}/$mode" "${states:?}/$mode"; done
}

jobs=${rates:-flushed random sequence}
for job in $rates; do
  [[ $job =~ ^[1-9][0-9]*[km]$ ]] || { echo "--rates: $job is neither like 10k (writes of 4 KiB a second) nor like 200m (MB/s)" >&2; exit 2; }
done
for round in $(seq "$rounds"); do
  open_site
  for mode in $modes; do
    echo "round $round: $mode" >&2
    if [ "$mode" != bare ]; then
      # As its unit has it: beside the workload it comes second, in the way of it it does not.
      as=(nice -n 10); case $mode in fuse | nbd) as=() ;; esac
      "${as[@]}" "$hold" agent --config "$work/$mode/agent.toml" >"$work/$mode.log" 2>&1 &
      agent=$!
    fi
    for job in $jobs; do run "$round" "$mode" "$job"; done
    if [ "$mode" != bare ]; then end "$agent" KILL; agent=''; release; fi
    ! mountpoint -q "$work/fuse/mount" || umount -l "$work/fuse/mount"
  done
  close_site
done

jq -s --arg modes "$modes" --arg jobs "$jobs" --argjson seconds "$seconds" --argjson size "$size" --arg version "$("$hold" --version)" '
  def median: sort | if length % 2 == 1 then .[length / 2 | floor] else (.[length / 2 - 1] + .[length / 2]) / 2 end;
  { $version, seconds_a_run: $seconds, disk_mib: $size, runs: .,
    figures: [ ($modes | split(" "))[] as $mode | ($jobs | split(" "))[] as $job
      | [ .[] | select(.mode == $mode and .job == $job) ] as $those
      | [ .[] | select(.mode == "bare" and .job == $job) ] as $bare
      | { $mode, $job, iops: ([$those[].iops] | median), mb_per_s: ([$those[].mb_per_s] | median), p50_us: ([$those[].p50_us] | median), p99_us: ([$those[].p99_us] | median),
          to_rate: (if $job | test("^[0-9]+k$") then ([$those[].iops] | median) / ($job[:-1] | tonumber * 1000)
            elif $job | test("^[0-9]+m$") then ([$those[].mb_per_s] | median) / ($job[:-1] | tonumber) else null end),
          agent_cpu_cores: ([$those[] | .agent_cpu_s / .runtime_s] | median),
          to_bare: (if $bare == [] then null else
            [ $those[] as $one | $one.iops / ($bare[] | select(.round == $one.round).iops) ] | median end),
          agent_cpu_s_per_gib: ([$those[] | .agent_cpu_s / (.bytes / 1073741824)] | median),
          order_kept: ([$those[] | select(.order_lost == 0)] | length), runs: ($those | length) } ] }' "$work/runs" >"$work/figures"
if [ -n "$json" ]; then cat "$work/figures"; exit; fi

printf 'medians of %s rounds of %s s, a disk of %s MiB, %s cores\n' "$rounds" "$seconds" "$size" "$(nproc)"
for job in $jobs; do
  case $job in
    *[0-9]k) printf '\n4 KiB random writes, at most %s a second\n' "${job%k}000" ;;
    *[0-9]m) printf '\n1 MiB writes in sequence, at most %s MB/s\n' "${job%m}" ;;
  esac
  case $job in
    flushed) printf '\n4 KiB random writes, one at a time, each flushed\n' ;;
    random) printf '\n4 KiB random writes, 32 at a time\n' ;;
    sequence) printf '\n1 MiB writes in sequence, 4 at a time\n' ;;
  esac
  if [ -n "$rates" ]; then
    printf '%-7s %9s %8s %8s %9s %9s %11s %10s  %s\n' '' IOPS MB/s 'to rate' 'p50 µs' 'p99 µs' 'agent cores' 's/GiB' 'order kept'
    jq -r --arg job "$job" '.figures[] | select(.job == $job) |
      [ .mode, (.iops | round), (.mb_per_s | round), (.to_rate * 100 | round / 100), (.p50_us | round), (.p99_us | round),
        (if .mode == "bare" then "-" else .agent_cpu_cores * 100 | round / 100 end),
        (if .mode == "bare" then "-" else .agent_cpu_s_per_gib * 100 | round / 100 end),
        (if .mode == "bare" or .mode == "alone" then "-" else "\(.order_kept) of \(.runs)" end) ] | @tsv' "$work/figures" |
      awk -F'\t' '{ printf "%-7s %9s %8s %8s %9s %9s %11s %10s  %s\n", $1, $2, $3, $4, $5, $6, $7, $8, $9 }'
    continue
  fi
  printf '%-7s %9s %8s %8s %9s %10s  %s\n' '' IOPS MB/s 'to bare' 'p99 µs' 'agent s/GiB' 'order kept'
  jq -r --arg job "$job" '.figures[] | select(.job == $job) |
    [ .mode, (.iops | round), (.mb_per_s | round), (.to_bare // 0 | . * 100 | round / 100), (.p99_us | round),
      (if .mode == "bare" then "-" else .agent_cpu_s_per_gib * 100 | round / 100 end),
      (if .mode == "bare" or .mode == "alone" then "-" else "\(.order_kept) of \(.runs)" end) ] | @tsv' "$work/figures" |
    awk -F'\t' '{ printf "%-7s %9s %8s %8s %9s %10s  %s\n", $1, $2, $3, $4, $5, $6, $7 }'
done
