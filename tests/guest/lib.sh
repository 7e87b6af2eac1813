# A Debian 12 machine under QEMU, and a process server beside it on the host. For tests/guest/run.
# shellcheck shell=bash
# Owns: making, starting and ending both. Does not own: what is tried.

port=19443 ssh_port=19022
ssh_options=(-F none -i "$made/key" -p "$ssh_port" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR
  -o ConnectTimeout=10 -o ServerAliveInterval=15 -o ControlMaster=auto -o "ControlPath=$work/ssh" -o ControlPersist=yes)

say() { printf '\n── %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }
# until_true SECONDS WHAT COMMAND…: the only way in which anything here waits.
until_true() {
  local until=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$until" ] || fail "$what did not come about"
    sleep 1
  done
}

# The system of the guest: made once, kept below target/guest.
make_system() {
  [ ! -e "$made/complete" ] || return 0
  local suite uri targets=()
  rm -rf "$made"; mkdir -p "$made"
  # From where this machine has its own packages.
  for suite in bookworm bookworm-security; do
    uri=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' | awk -v suite="$suite" '$2 == suite { print $1; exit }')
    [ -z "$uri" ] || targets+=("deb $uri $suite main")
  done
  [ "${#targets[@]}" -gt 0 ] || fail "this machine's apt knows no Debian 12"
  say "making the guest's system (a few minutes, once)"
  mmdebstrap --quiet --variant=minbase --mode=root --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --include="systemd-sysv,udev,$kernel,initramfs-tools,openssh-server,lvm2,mdadm,e2fsprogs,kmod,iproute2" \
    bookworm "$made/root" "${targets[@]}"
  ssh-keygen -q -t ed25519 -N '' -f "$made/key"
  install -D -m 600 "$made/key.pub" "$made/root/root/.ssh/authorized_keys"
  printf '[Match]\nName=eth0\n[Network]\nDHCP=yes\n' >"$made/root/etc/systemd/network/eth0.network"
  ln -sf /lib/systemd/system/systemd-networkd.service "$made/root/etc/systemd/system/multi-user.target.wants/systemd-networkd.service"
  echo guest >"$made/root/etc/hostname"
  printf '127.0.0.1 localhost guest\n10.0.2.2 %s\n' "$(hostname)" >"$made/root/etc/hosts"
  mkdir -p "$made/root/var/log/journal" # as Debian has it
  cp "$made"/root/boot/vmlinuz-* "$made/vmlinuz"
  cp "$made"/root/boot/initrd.img-* "$made/initrd"
  truncate -s 1280M "$made/disk"
  echo 'label: gpt
start=2048, type=linux' | sfdisk -q "$made/disk"
  mkfs.ext4 -q -E offset=1048576 -d "$made/root" "$made/disk" 1200M
  rm -rf "$made/root"
  touch "$made/complete"
}

# boot DISK [KERNEL PARAMETERS]: switches the machine on; returns when it can be spoken to.
boot() {
  local disk=$1
  shift
  say "booting ${disk##*/} $*"
  local drives=() more
  for more in "$work"/extra-*; do
    [ ! -e "$more" ] || drives+=(-drive "file=$more,format=raw,if=virtio,cache=writeback")
  done
  rm -f "$work/ssh"
  qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 2048 -nodefaults -display none \
    -kernel "$made/vmlinuz" -initrd "$made/initrd" \
    -append "root=/dev/vda1 rw console=ttyS0 net.ifnames=0 quiet no_timer_check $*" \
    -drive "file=$disk,format=raw,if=virtio,cache=writeback" "${drives[@]}" \
    -nic "user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:$ssh_port-:22" \
    -serial "file:$work/console" -serial "file:$work/acks" &
  guest=$!
  until_true 300 "the guest's ssh" guest true
}

guest() { ssh -n "${ssh_options[@]}" root@127.0.0.1 "$@"; }
# into FILES… PLACE: copies to the guest.
into() {
  local place=${*: -1}
  scp -q -r "${ssh_options[@]/#-p/-P}" "${@:1:$#-1}" "root@127.0.0.1:$place"
}
# As a power cut.
cut_power() { ssh -O exit "${ssh_options[@]}" root@127.0.0.1 2>/dev/null || true; end "$guest" KILL; guest=''; }
power_off() {
  guest systemctl poweroff || true
  until_true 180 "the end of the guest" eval "! kill -0 $guest"
  wait "$guest" || true
  guest=''
}

# end PID [SIGNAL]: of a child of ours.
end() {
  [ -n "$1" ] || return 0
  kill "-${2:-TERM}" "$1" 2>/dev/null || true
  wait "$1" 2>/dev/null || true
}

# The process server, on the host.
serve() {
  "$hold" init "$work/site" --listen "0.0.0.0:$port" >/dev/null
  "$hold" serve --config "$work/site/holdfast.toml" 2>"$work/server.log" &
  server=$!
  until_true 30 "the process server" site status
}
site() { local command=$1; shift; "$hold" "$command" "$@" --config "$work/site/holdfast.toml"; }

# What was told to be safe before anybody asked for a point.
acknowledged() { tr -d '\r' <"$work/acks" | sed -n 's/^acknowledged \([0-9]*\)$/\1/p' | tail -n 1; }
