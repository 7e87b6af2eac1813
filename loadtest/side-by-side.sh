#!/bin/bash
# TCP and QUIC side by side: MB/s that become durable, and CPU seconds per GiB of agent and process
# server, on loopback and over a path with delay and loss between two network namespaces.
#
#   cargo build --release --workspace && loadtest/side-by-side.sh [SECONDS]
#
# SECONDS (default 20) bounds each measurement; seven of them take about five minutes. Needs root (or
# CAP_NET_ADMIN and CAP_SYS_ADMIN), ip, curl, openssl. Everything it makes is gone at its end.
# BIN names another folder of programs, PATHS one of `loopback` and `path` alone. DELAY_MS (one way, 50), LOSS (%, 1), RATE (Mbit/s, 500) and MIB (size of the disk, 1024) may be set.

set -euo pipefail
seconds=${1:-20}
delay=${DELAY_MS:-50} loss=${LOSS:-1} rate=${RATE:-500} mib=${MIB:-1024}
bin=$(cd "${BIN:-$(dirname "$0")/../target/release}" && pwd)
near=hf-near-$$ far=hf-far-$$
work=$(mktemp -d) pids=()

end() {
    for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
    pids=()
}
leave() {
    end
    ip netns del "$near" 2>/dev/null || true
    ip netns del "$far" 2>/dev/null || true
    rm -rf "$work"
}
trap leave EXIT

ip netns add "$near"
ip netns add "$far"
for space in "$near" "$far"; do ip -n "$space" link set lo up; done
# Content that no compressor shrinks: sealing costs least, the way there is what counts.
openssl enc -aes-128-ctr -pass pass:x -nosalt </dev/zero 2>/dev/null | head -c $((mib << 20)) >"$work/disk" || true

# User and system time of a process, in clock ticks.
ticks() { sed 's/.*) //' "/proc/$1/stat" | awk '{ print $12 + $13 }'; }
# Bytes that the server received and made durable so far, and CPU seconds of its ingest.
metric() { ip netns exec "$1" curl -s --max-time 2 http://127.0.0.1:19445/metrics | awk -v name="$2" 'index($1, name) == 1 { sum += $2 } END { printf "%.3f", sum }'; }
now() { date +%s.%N; }

# link delay loss: the path between the namespaces for this measurement.
link() {
    "$bin/holdfast-link" --devices hf0 hf1 --delay "$1" --loss "$2" --rate "$rate" --seconds $((seconds + 60)) >"$work/link" &
    pids+=($!)
    for _ in $(seq 100); do grep -q ready "$work/link" && break; sleep 0.05; done
    ip link set hf0 netns "$near"
    ip link set hf1 netns "$far"
    ip -n "$near" addr add 10.99.0.1/30 dev hf0
    ip -n "$far" addr add 10.99.0.2/30 dev hf1
    ip -n "$near" link set hf0 up
    ip -n "$far" link set hf1 up
}

# measure LABEL TRANSPORT PATH [CONGESTION]
measure() {
    local label=$1 transport=$2 path=$3 congestion=${4:-cubic} server_space=$far address=10.99.0.2
    if [ "$path" = loopback ]; then server_space=$near address=127.0.0.1; else link "$delay" "$loss"; fi
    if [ "$transport" = tcp ] && [ "$path" = path ]; then
        ip -n "$near" route replace 10.99.0.0/30 dev hf0 src 10.99.0.1 congctl "$congestion"
    fi
    local site=$work/site agent=$work/agent
    rm -rf "$site" "$agent" "$work/store"
    "$bin/holdfast" init "$site" --store "dir:$work/store" --listen "$address:19443" >/dev/null
    sed -i 's|^# metrics_listen = .*|metrics_listen = "127.0.0.1:19445"|' "$site/holdfast.toml"
    sed -i 's|^# enabled = true|enabled = false|' "$site/holdfast.toml"
    ip netns exec "$server_space" "$bin/holdfast" serve --config "$site/holdfast.toml" >"$work/serve.log" 2>&1 &
    local server=$!
    pids+=("$server")
    for _ in $(seq 200); do [ -n "$(metric "$server_space" holdfast_connections || true)" ] && [ -e "$site/run/addresses.json" ] && break; sleep 0.05; done
    "$bin/holdfast" enroll m1 --config "$site/holdfast.toml" --out "$agent" --disk "root=$work/disk" >/dev/null
    sed -i "s|^# transport = .*|transport = \"$transport\"\nquic_congestion = \"$congestion\"|" "$agent/agent.toml"
    ip netns exec "$near" "$bin/holdfast" agent --config "$agent/agent.toml" >"$work/agent.log" 2>&1 &
    local sender=$!
    pids+=("$sender")
    # From the first bytes on, after two seconds in which the path is found out.
    for _ in $(seq 400); do [ "$(metric "$server_space" holdfast_source_bytes_total)" != 0.000 ] && break; sleep 0.05; done
    [ "$path" = loopback ] || sleep 2
    local bytes0 cpu0 sent0 began ended bytes cpu sent ingest0 ingest
    bytes0=$(metric "$server_space" holdfast_source_bytes_total) began=$(now)
    cpu0=$(ticks "$server") sent0=$(ticks "$sender") ingest0=$(metric "$server_space" 'holdfast_stage_cpu_seconds_total{stage="ingest"}')
    # Asking costs the server something: less often where little goes through in a second.
    local whole=$((mib << 20)) look=0.1
    [ "$path" = loopback ] || look=0.5
    while awk -v a="$began" -v b="$(now)" -v s="$seconds" 'BEGIN { exit !(b - a < s) }'; do
        bytes=$(metric "$server_space" holdfast_source_bytes_total)
        if awk -v b="$bytes" -v w="$whole" 'BEGIN { exit !(b >= w) }'; then break; fi
        sleep "$look"
    done
    bytes=$(metric "$server_space" holdfast_source_bytes_total) ended=$(now)
    cpu=$(ticks "$server") sent=$(ticks "$sender") ingest=$(metric "$server_space" 'holdfast_stage_cpu_seconds_total{stage="ingest"}')
    awk -v label="$label" -v path="$path" -v b0="$bytes0" -v b="$bytes" -v t0="$began" -v t="$ended" -v c0="$cpu0" -v c="$cpu" \
        -v s0="$sent0" -v s="$sent" -v i0="$ingest0" -v i="$ingest" -v hz="$(getconf CLK_TCK)" 'BEGIN {
        gib = (b - b0) / 2^30
        if (gib <= 0) { printf "%-22s %-10s  nothing arrived\n", label, path; exit }
        printf "%-22s %-10s %8.2f MB/s   server %6.2f (ingest %6.2f)   agent %6.2f CPU s/GiB\n",
            label, path, (b - b0) / 1e6 / (t - t0), (c - c0) / hz / gib, (i - i0) / gib, (s - s0) / hz / gib }'
    [ -n "${KEEP_LOGS:-}" ] && cp "$work/serve.log" "$work/agent.log" "$KEEP_LOGS/"
    end
    wait 2>/dev/null || true
}

echo "path: $((2 * delay)) ms round trip, $loss % lost each way, $rate Mbit/s; disk of $mib MiB"
for path in ${PATHS:-loopback path}; do
    measure "TCP, cubic" tcp "$path" cubic
    # On loopback nothing is lost and nothing is far: its controller does not matter.
    if [ "$path" = path ] && grep -qw bbr /proc/sys/net/ipv4/tcp_available_congestion_control; then
        measure "TCP, bbr" tcp "$path" bbr
    fi
    measure "QUIC, bbr" quic "$path" bbr
    measure "QUIC, cubic" quic "$path" cubic
done
