# What is tried on the machine of tests/guest/run.
# shellcheck shell=bash
# Owns: each step and what must be true. Does not own: the machine (lib.sh).

agent_log() { guest journalctl --no-pager -o cat -u holdfast-agent; }
agent_status() { guest "holdfast agent status --json --config $1/agent.toml"; }
own=/var/lib/holdfast-agent
# ordered [SETTINGS]: the agent streams every write in order.
ordered() { [ "$(agent_status "${1:-$own}" | jq -r '.mode + " " + (.disks | map(.capture) | unique | join(","))')" = 'ordered ordered' ]; }
logged() { agent_log | grep -- "$1" >/dev/null; }

# What every step needs: the package, a data disk, and somebody who writes.
prepare() {
  into "$package" /root/holdfast.deb
  into tests/guest/records /usr/local/bin/
  guest 'cd /root && DEBIAN_FRONTEND=noninteractive apt-get install -y -q ./holdfast.deb' >"$work/apt.log" 2>&1 || fail "apt: $(cat "$work/apt.log")"
  guest 'mkfs.ext4 -q /dev/vdb && mkdir -p /srv/data && echo "/dev/vdb /srv/data ext4 defaults,nofail 0 2" >>/etc/fstab && mount /srv/data'
  guest 'printf "[Service]\nExecStart=records /var/lib/records /dev/ttyS1\n[Install]\nWantedBy=multi-user.target\n" >/etc/systemd/system/records.service
    systemctl daemon-reload; systemctl enable -q --now records'
}
# writes FOLDER: somebody else writes there.
writes() { guest "systemd-run -q records $1/records /dev/null"; }

# enrol MACHINE CAPTURE FOLDER NAME=DEVICE…: settings of an agent, put into the guest.
enrol() {
  local machine=$1 capture=$2 folder=$3 disks=() disk
  shift 3
  for disk; do disks+=(--disk "$disk"); done
  site enroll "$machine" --out "$work/$machine" "${disks[@]}" >/dev/null || fail "$machine was not enrolled"
  sed -i -e "s/capture = \"nbd\"/capture = \"$capture\"/" -e "s|^# state_directory.*|state_directory = \"/run/${folder##*/}\"|" "$work/$machine/agent.toml"
  ! [ -e "$work/more" ] || { cat "$work/more" >>"$work/$machine/agent.toml"; rm "$work/more"; }
  guest "mkdir -p $folder"
  into "$work/$machine/"* "$folder/"
}

# The agent's unit as deploy/README.md has it for eBPF, for the root disk and the data disk.
with_ebpf() {
  ! guest systemctl is-active -q holdfast-agent || return 0
  guest 'mkdir -p /etc/systemd/system/holdfast-agent.service.d &&
    cp /usr/share/holdfast/holdfast-agent-ebpf.conf /etc/systemd/system/holdfast-agent.service.d/ebpf.conf && systemctl daemon-reload'
  cat >"$work/more" <<'END'

[application]
freeze = ["fsfreeze", "-f", "/srv/data"]
thaw = ["fsfreeze", "-u", "/srv/data"]
END
  enrol guest-1 ebpf "$own" root=/dev/vda data=/dev/vdb
  guest "chown -R holdfast-agent: $own; systemctl enable -q --now holdfast-agent"
  until_true 3600 "the first copy of root and data" ordered
  writes /srv/data
}
# by_hand MACHINE: a further agent, not the unit's. A first copy is behind a point.
by_hand() { guest "mkdir -p /run/$1; systemd-run -q --unit=agent-$1 holdfast agent --config /root/$1/agent.toml"; }
# refused MACHINE WORDS: an agent that must not start.
refused() {
  guest "mkdir -p /run/$1; holdfast agent --config /root/$1/agent.toml 2>&1" >"$work/said" && fail "$1 was not refused"
  grep -q "$2" "$work/said" || fail "$1 was refused with: $(cat "$work/said")"
  tail -n 1 "$work/said"
}

# take_point MACHINE NAME [OPTIONS]: a recovery point; what was acknowledged before it was asked for is noted.
point() {
  acknowledged >"$work/before-$2"
  site bookmark "$1" --name "$2" --wait recoverable "${@:3}"
}
take_point() { until_true 600 "the point $2" point "$@"; }
recover() { # MACHINE DISK POINT FILE
  rm -f "$4"
  site export "$1" --disk "$2" --point "name:$3" --format raw --out "$4" >/dev/null
}
# in_order FILE: all records of a file in the guest, in order; how many they are.
in_order() { guest "awk '\$2 != NR { exit 1 } END { print NR }' $1" || fail "the records of $1 are not in order"; }

# boots POINT: what is recovered of guest-1 is switched on in the machine's place, then the machine again.
boots() {
  local before held
  recover guest-1 root "$1" "$work/recovered"
  mv "$work/extra-b" "$work/kept-b"
  recover guest-1 data "$1" "$work/extra-b"
  [ -z "$guest" ] || cut_power
  boot "$work/recovered" systemd.mask=holdfast-agent.service systemd.mask=records.service
  before=$(cat "$work/before-$1") held=$(in_order /var/lib/records)
  echo "$1: record $before was acknowledged, $held are there, $(in_order /srv/data/records) on the other disk; the machine is $(guest systemctl is-system-running --wait || true)"
  [ "$held" -ge "$before" ] || fail "$1: records are missing"
  cut_power
  mv "$work/kept-b" "$work/extra-b"
  rm "$work/recovered"
}

step_install() {
  guest 'for unit in holdfast-serve holdfast-sidecar holdfast-agent; do systemd-analyze --no-pager security $unit | tail -n 1; done'
  # As deploy/README.md says.
  guest 'cd / && runuser -u holdfast -- holdfast init /var/lib/holdfast/site --store dir:/var/lib/holdfast/store --listen 0.0.0.0:9443 >/dev/null &&
    systemctl enable -q --now holdfast-serve holdfast-sidecar' || fail "the site's units"
  until_true 120 "the process server's unit" guest 'runuser -u holdfast -- holdfast status --json --config /var/lib/holdfast/site/holdfast.toml | grep -q alive'
  until_true 60 "the sidecar's unit" guest 'journalctl -o cat -u holdfast-sidecar | grep -q "the control API listens"'
  guest 'systemctl disable -q --now holdfast-serve holdfast-sidecar && rm -rf /var/lib/holdfast/site /var/lib/holdfast/store'
  guest '! systemctl --failed --no-legend | grep holdfast' || fail "a unit failed"
}

# The running root disk: killed, stopped and begun anew while it writes, then its power cut.
step_root() {
  with_ebpf
  guest 'systemd-analyze --no-pager security holdfast-agent | tail -n 1; holdfast agent status --config /var/lib/holdfast-agent/agent.toml'
  take_point guest-1 first
  guest systemctl kill -s KILL holdfast-agent
  until_true 120 "an agent that was killed" logged 'what was written while no agent ran is known'
  take_point guest-1 killed
  guest systemctl reload holdfast-agent
  take_point guest-1 reloaded
  until_true 300 "order after a reload" ordered
  guest systemctl restart holdfast-agent
  logged 'stopped=Clean' || fail "under load the agent does not stop in order"
  take_point guest-1 restarted
  ! logged ERROR || fail "$(agent_log | grep ERROR)"
  boots restarted
  boot "$work/disk"
}

# The data disk's file system frozen by the hook of the unit: it needs no journal.
step_frozen() {
  with_ebpf
  take_point guest-1 crash
  take_point guest-1 frozen --app
  guest touch /srv/data/thawed
  local name
  for name in crash frozen; do
    recover guest-1 data "$name" "$work/frozen"
    if dumpe2fs -h "$work/frozen" 2>/dev/null | grep needs_recovery >/dev/null; then
      [ "$name" = crash ] || fail "the frozen file system needs its journal"
    else
      [ "$name" = frozen ] || fail "a crash leaves no journal: this shows nothing"
      e2fsck -fn "$work/frozen" >/dev/null 2>&1 || fail "the frozen file system is not clean"
    fi
  done
}

# A boot: what is written before the agent runs is not known, so everything is read again.
step_reboot() {
  with_ebpf
  local before
  before=$(guest cat /proc/sys/kernel/random/boot_id)
  guest systemctl reboot || true
  until_true 600 "the next boot" eval "[ \"\$(guest cat /proc/sys/kernel/random/boot_id)\" != $before ]"
  until_true 120 "a new epoch, and that it is said" guest 'journalctl -b -o cat -u holdfast-agent | grep -q "a new epoch begins"'
  take_point guest-1 rebooted
  boots rebooted
  boot "$work/disk"
}

# Device mapper: the LV itself is refused, the disk below it is captured, and a scan reads snapshots of it.
step_lvm() {
  guest 'pvcreate -q /dev/vdc && vgcreate -q vg /dev/vdc && lvcreate -q -L 48M -n data vg && mkfs.ext4 -q /dev/vg/data &&
    mkdir -p /srv/lv && mount /dev/vg/data /srv/lv' >/dev/null
  writes /srv/lv
  enrol guest-dm ebpf /root/guest-dm lv=/dev/vg/data
  refused guest-dm 'lsblk -s'
  printf '\n[ebpf]\nring_bytes = 16777216\n' >"$work/more"
  enrol guest-lvm ebpf /root/guest-lvm below=/dev/vdc
  by_hand guest-lvm
  cat >"$work/more" <<'END'

[disk.scan]
snapshot = ["lvcreate", "-s", "-n", "holdfast", "-L", "24M", "vg/data"]
release = ["lvremove", "-f", "vg/holdfast"]
path = "/dev/vg/holdfast"
END
  enrol guest-scan scan /root/guest-scan lv=/dev/vg/data
  by_hand guest-scan
  take_point guest-lvm below
  take_point guest-scan snapshot
  recover guest-scan lv snapshot "$work/lv"
  e2fsck -fn "$work/lv" >/dev/null 2>&1 || fail "the snapshot's file system is not clean"
  debugfs -R 'cat records' "$work/lv" 2>/dev/null | awk '$2 != NR { exit 1 } END { print "snapshot of the LV:", NR, "records" }' || fail "its records are not in order"
  cut_power
  recover guest-lvm below below "$work/extra-c"
  boot "$work/disk"
  guest 'mount /dev/vg/data /srv/lv'
  echo "LV on the recovered disk: $(in_order /srv/lv/records) records"
}

# md: the array is refused, its members are captured.
step_md() {
  guest 'mdadm -q --create /dev/md0 --run --level=1 --raid-devices=2 /dev/vdd /dev/vde && mkfs.ext4 -q /dev/md0 && mkdir -p /srv/md && mount /dev/md0 /srv/md'
  writes /srv/md
  enrol guest-array ebpf /root/guest-array md=/dev/md0
  refused guest-array 'lsblk -s'
  printf '\n[ebpf]\nring_bytes = 16777216\n' >"$work/more"
  enrol guest-md ebpf /root/guest-md one=/dev/vdd two=/dev/vde
  by_hand guest-md
  take_point guest-md members
  cut_power
  recover guest-md one members "$work/extra-d"
  recover guest-md two members "$work/extra-e"
  boot "$work/disk"
  guest 'mdadm -q --assemble --scan; mount /dev/md/*0 /srv/md || mount /dev/md127 /srv/md; grep -A 1 ^md /proc/mdstat'
  echo "array of the recovered members: $(in_order /srv/md/records) records"
}

# A kernel that is locked down.
step_lockdown() {
  with_ebpf
  cut_power
  boot "$work/disk" lockdown=integrity
  until_true 120 "capture with lockdown=integrity" guest 'journalctl -b -o cat -u holdfast-agent | grep -q "eBPF capture mode=.ordered"'
  cut_power
  boot "$work/disk" lockdown=confidentiality
  until_true 120 "the reason with lockdown=confidentiality" guest 'journalctl -b -o cat -u holdfast-agent | grep "locked down (confidentiality)" | grep -q "capture = .scan"'
}
