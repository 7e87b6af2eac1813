# What is tried on the machine of tests/guest/run.
# shellcheck shell=bash
# Owns: each step and what must be true. Does not own: the machine (lib.sh).

agent_log() { guest journalctl --no-pager -o cat -u holdfast-agent; }
agent_status() { guest "holdfast agent status --json --config $1/agent.toml"; }
own=/var/lib/holdfast-agent
# ordered [SETTINGS]: the agent streams every write in order.
ordered() { [ "$(agent_status "${1:-$own}" | jq -r '.mode + " " + (.disks | map(.capture) | unique | join(","))')" = 'ordered ordered' ]; }
logged() { agent_log | grep -q -- "$1"; }

# What every step needs: the package, and a data disk.
prepare() {
  into "$package" /root/holdfast.deb
  guest 'cd /root && DEBIAN_FRONTEND=noninteractive apt-get install -y -q ./holdfast.deb' >"$work/apt.log" 2>&1 || fail "apt: $(cat "$work/apt.log")"
  guest 'mkfs.ext4 -q /dev/vdb && mkdir -p /srv/data && mount /dev/vdb /srv/data && echo "/dev/vdb /srv/data ext4 defaults 0 2" >>/etc/fstab'
}

# enrol MACHINE CAPTURE FOLDER NAME=DEVICE…: settings of an agent, put into the guest.
enrol() {
  local machine=$1 capture=$2 folder=$3 disks=() disk
  shift 3
  for disk; do disks+=(--disk "$disk"); done
  site enroll "$machine" --out "$work/$machine" "${disks[@]}" >/dev/null
  sed -i -e "s/capture = \"nbd\"/capture = \"$capture\"/" -e "s|^# state_directory.*|state_directory = \"/run/${folder##*/}\"|" "$work/$machine/agent.toml"
  guest "mkdir -p $folder"
  into "$work/$machine/"* "$folder/"
}

# The agent's unit as deploy/README.md has it for eBPF, for the root disk and the data disk.
with_ebpf() {
  ! guest systemctl is-active -q holdfast-agent || return 0
  guest 'mkdir -p /etc/systemd/system/holdfast-agent.service.d &&
    cp /usr/share/holdfast/holdfast-agent-ebpf.conf /etc/systemd/system/holdfast-agent.service.d/ebpf.conf && systemctl daemon-reload'
  enrol guest-1 ebpf "$own" root=/dev/vda data=/dev/vdb
  printf '\n[application]\nfreeze = ["fsfreeze", "-f", "/srv/data"]\nthaw = ["fsfreeze", "-u", "/srv/data"]\n' >"$work/more"
  into "$work/more" /root/more
  guest "cat /root/more >>$own/agent.toml; chown -R holdfast-agent: $own; systemctl enable --now holdfast-agent"
  until_true 900 "the first copy of root and data" ordered
  guest 'systemd-run -q --unit=records --property=Restart=no records /var/lib/records; systemd-run -q --unit=records-data records /srv/data/records'
}

# point MACHINE NAME [OPTIONS]: a recovery point; its file gets what was acknowledged before it was asked for.
point() {
  local machine=$1 name=$2
  shift 2
  acknowledged >"$work/before-$name"
  site bookmark "$machine" --name "$name" --wait recoverable "$@" >/dev/null
}
take_point() { until_true 300 "the point $2" point "$@"; }
recover() { # MACHINE DISK POINT FILE
  site export "$1" --disk "$2" --point "name:$3" --format raw --out "$4" >/dev/null
}

# The recovered root disk, as it is booted: all records in order, none of those that were acknowledged missing.
boots() {
  local name=$1 before held
  recover guest-1 root "$name" "$work/recovered"
  recover guest-1 data "$name" "$work/recovered-data"
  mv "$work/extra-b" "$work/kept-b"; mv "$work/recovered-data" "$work/extra-b"
  boot "$work/recovered" systemd.mask=holdfast-agent.service
  before=$(cat "$work/before-$name")
  held=$(guest 'awk "\$2 != NR { exit 1 } END { print NR }" /var/lib/records') || fail "$name: the records are not in order"
  echo "$name: acknowledged $before, holds $held; $(guest systemctl is-system-running || true)"
  [ "$held" -ge "$before" ] || fail "$name: record $before was acknowledged, $held are there"
  cut_power
  mv "$work/kept-b" "$work/extra-b"
  rm "$work/recovered"
}

step_install() {
  guest 'for unit in holdfast-serve holdfast-sidecar holdfast-agent; do systemd-analyze --no-pager security $unit | tail -n 1; done'
  # As deploy/README.md says.
  guest 'cd / && runuser -u holdfast -- holdfast init /var/lib/holdfast/site --store dir:/var/lib/holdfast/store --listen 0.0.0.0:9443 >/dev/null &&
    systemctl enable -q --now holdfast-serve holdfast-sidecar' || fail "the site's units"
  until_true 60 "the process server's unit" guest 'runuser -u holdfast -- holdfast status --json --config /var/lib/holdfast/site/holdfast.toml | grep -q alive'
  until_true 60 "the sidecar's unit" guest 'openssl s_client -connect localhost:9444 -CAfile /var/lib/holdfast/site/ca.crt -verify_return_error </dev/null'
  guest 'systemctl disable -q --now holdfast-serve holdfast-sidecar; rm -rf /var/lib/holdfast/site /var/lib/holdfast/store'
  guest '! systemctl --failed --no-legend | grep -q holdfast' || fail "a unit failed"
}
