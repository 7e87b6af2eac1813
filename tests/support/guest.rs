//! A Debian guest under QEMU, without KVM: kernel and busybox from Debian's packages (`tests/run` unpacks
//! them below target/test-tools), its root file system on the disk that is to be protected.
//!
//! In role `write` it appends numbered records to a file, each synced before it is acknowledged on the
//! console. In role `show` it prints what the file holds and switches itself off. In role `prove` it runs
//! an agent of its own on its root disk until that has said how it captures.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{eventually, have, run, skipped, text};

/// What else a guest is made with.
const TOOLS: [&str; 4] = ["qemu-system-x86_64", "mkfs.ext4", "ldd", "curl"];
/// In the order in which they are loaded.
const MODULES: [&str; 8] = [
    "virtio/virtio_ring.ko",
    "virtio/virtio.ko",
    "virtio/virtio_pci_legacy_dev.ko",
    "virtio/virtio_pci_modern_dev.ko",
    "virtio/virtio_pci.ko",
    "block/virtio_blk.ko",
    "block/loop.ko",
    "char/virtio_console.ko",
];
/// First QEMU that says whether a mirror is actively synced.
const QEMU_MIN: (u32, u32) = (8, 2);

/// From the kernel to the disk's own root file system.
const FROM_RAM: &str = r#"#!/bin/busybox sh
B=/bin/busybox
for module in $($B cat /modules/order); do $B insmod /modules/$module; done
$B mount -t devtmpfs dev /dev
for turn in $($B seq 200); do [ -b /dev/vda ] && break; $B usleep 20000; done
$B mount -t ext4 /dev/vda /root || exec $B poweroff -f
$B umount /dev
exec $B switch_root /root /sbin/init
"#;

const INIT: &str = r#"#!/bin/busybox sh
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
$B mount -t tmpfs run /run
if $B grep -q role=show /proc/cmdline; then
  $B cat /records
  echo "holds $($B wc -l < /records)"
  exec $B poweroff -f
fi
if $B grep -q role=prove /proc/cmdline; then
  $B mkdir /run/state
  PATH=/usr/sbin /usr/sbin/holdfast agent --config /agent/agent.toml >/run/log 2>&1 &
  for turn in $($B seq 600); do
    $B grep -q 'eBPF' /run/log && break
    $B kill -0 $! 2>/dev/null || break
    $B usleep 200000
  done
  $B cat /run/log
  exec $B poweroff -f
fi
agent() {
  for turn in $($B seq 500); do
    port=$(echo /dev/vport*p1)
    [ -c "$port" ] && exec /usr/sbin/qemu-ga -m virtio-serial -p "$port" -t /run
    $B usleep 20000
  done
}
agent &
n=0
while :; do
  n=$((n + 1))
  $B printf 'record %d of the guest\n' $n |
    $B dd of=/records oflag=append conv=notrunc,fsync 2>/dev/null && echo "acknowledged $n"
done
"#;

/// Where the packages were unpacked.
pub struct Parts(PathBuf);

impl Parts {
    /// `None`, loudly, where something is missing; in CI that is a failure.
    pub fn find() -> Option<Self> {
        if !have(&TOOLS) || !have_mirror("qemu-system-x86_64") {
            return None;
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools/guest");
        if !folder.join("complete").exists() {
            skipped("no guest below target/test-tools: tests/run unpacks one (Debian)");
            return None;
        }
        Some(Self(folder))
    }

    fn busybox(&self) -> PathBuf {
        self.0.join("bin/busybox")
    }

    fn kernel(&self) -> PathBuf {
        let mut found = fs::read_dir(self.0.join("boot")).unwrap().map(|one| one.unwrap().path());
        let named = |path: &PathBuf| text(path).contains("/vmlinuz-");
        found.find(named).expect("a kernel was unpacked")
    }

    fn drivers(&self) -> PathBuf {
        let mut found = fs::read_dir(self.0.join("lib/modules")).unwrap();
        found.next().unwrap().unwrap().path().join("kernel/drivers")
    }

    /// An ext4 that a guest has as its root.
    pub fn make_disk(&self, folder: &Path, image: &Path, bytes: u64) {
        self.make_disk_with(folder, image, bytes, &[]);
    }

    /// The same with programs more.
    pub fn make_disk_with(&self, folder: &Path, image: &Path, bytes: u64, programs: &[&Path]) {
        let root = folder.join("root");
        for name in ["proc", "sys", "dev", "run", "tmp", "bin", "sbin", "usr/sbin"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        fs::copy(self.busybox(), root.join("bin/busybox")).unwrap();
        script(&root.join("sbin/init"), INIT);
        for program in [&[self.0.join("usr/sbin/qemu-ga").as_path()], programs].concat() {
            let name = program.file_name().unwrap();
            fs::copy(program, root.join("usr/sbin").join(name)).unwrap();
            let needed = run("ldd", &[program]).stdout;
            let needed = String::from_utf8_lossy(&needed).into_owned();
            assert!(!needed.contains("not found"), "libraries of {name:?}: {needed}");
            for library in needed.split_whitespace().filter(|word| word.starts_with('/')) {
                let target = root.join(library.trim_start_matches('/'));
                fs::create_dir_all(target.parent().unwrap()).unwrap();
                fs::copy(library, target).unwrap();
            }
        }
        let kib = format!("{}k", bytes >> 10);
        run("mkfs.ext4", &["-q", "-d", text(&root), text(image), &kib]);
    }

    /// What the kernel starts with: drivers, and the way to the disk.
    fn make_initramfs(&self, folder: &Path) -> PathBuf {
        let (ram, archive) = (folder.join("ram"), folder.join("initramfs"));
        if archive.exists() {
            return archive;
        }
        for name in ["bin", "dev", "root", "modules"] {
            fs::create_dir_all(ram.join(name)).unwrap();
        }
        fs::copy(self.busybox(), ram.join("bin/busybox")).unwrap();
        script(&ram.join("init"), FROM_RAM);
        let mut order = String::new();
        for module in MODULES {
            let name = module.rsplit('/').next().unwrap();
            fs::copy(self.drivers().join(module), ram.join("modules").join(name)).unwrap();
            order += &format!("{name}\n");
        }
        fs::write(ram.join("modules/order"), order).unwrap();
        let pack = "cd \"$1\" && \"$0\" find . | \"$0\" cpio -o -H newc > \"$2\" 2>/dev/null";
        run("sh", &["-c", pack, text(&self.busybox()), text(&ram), text(&archive)]);
        archive
    }

    /// Switches a guest on. Its sockets and its console are files in `folder`, named by its role.
    pub fn boot(&self, folder: &Path, disk: &Path, role: &str) -> Guest {
        let initramfs = self.make_initramfs(folder);
        let at = |name: &str| folder.join(format!("{role}.{name}"));
        let (console, monitor, agent) = (at("console"), at("qmp"), at("qga"));
        let socket = |path: &Path| format!("unix:{},server=on,wait=off", text(path));
        let port = format!("socket,id=qga,path={},server=on,wait=off", text(&agent));
        let child = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-cpu", "qemu64", "-m", "192", "-no-reboot"])
            .args(["-nodefaults", "-display", "none", "-nic", "none"])
            .args(["-kernel", text(&self.kernel()), "-initrd", text(&initramfs)])
            .args(["-append", &format!("console=ttyS0 quiet panic=-1 no_timer_check role={role}")])
            .args(["-drive", &format!("file={},format=raw,if=none,id=hd0", text(disk))])
            .args(["-device", "virtio-blk-pci,drive=hd0,id=vda"])
            .args(["-device", "virtio-serial-pci", "-chardev", &port])
            .args(["-device", "virtserialport,chardev=qga,name=org.qemu.guest_agent.0"])
            .args(["-serial", &format!("file:{}", text(&console))])
            .args(["-qmp", &socket(&monitor)])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Guest { child, console, monitor, agent }
    }
}

fn script(path: &Path, content: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Whether a program of QEMU is new enough for a mirror; says so when it is not.
pub fn have_mirror(program: &str) -> bool {
    let said = String::from_utf8(run(program, &["--version"]).stdout).unwrap();
    let version = said.split_whitespace().find(|word| word.starts_with(|c: char| c.is_numeric()));
    let mut numbers = version.unwrap_or_default().split('.').map_while(|part| part.parse().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < QEMU_MIN {
        let (major, minor) = QEMU_MIN;
        skipped(&format!(
            "{program} is older than {major}.{minor} (Debian 12: bookworm-backports)"
        ));
    }
    version >= QEMU_MIN
}

/// A guest that is switched on; killed when dropped.
pub struct Guest {
    child: Child,
    console: PathBuf,
    pub monitor: PathBuf,
    /// Socket of the agent inside.
    pub agent: PathBuf,
}

impl Guest {
    fn said(&self) -> String {
        let bytes = fs::read(&self.console).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// The last record that was acknowledged on the console, 0 before the first.
    pub fn acknowledged(&self) -> u64 {
        let said = self.said();
        // What stands behind the last line feed may still grow.
        let whole = said.rsplit_once('\n').map_or("", |(lines, _)| lines);
        let number = |line: &str| line.strip_prefix("acknowledged ")?.parse().ok();
        whole.lines().rev().find_map(number).unwrap_or(0)
    }

    /// Waits until the guest has acknowledged `count` records more.
    pub fn goes_on(&mut self, count: u64) {
        let from = self.acknowledged();
        eventually("the guest goes on", 120, || {
            if let Some(ended) = self.child.try_wait().unwrap() {
                panic!("the guest ended with {ended}: {}", self.said());
            }
            (self.acknowledged() >= from + count).then_some(())
        });
    }

    /// The records that a guest in role `show` found on its disk: all in order, none missing.
    pub fn shown(mut self) -> u64 {
        let ended = eventually("the guest is off", 120, || self.child.try_wait().unwrap());
        let said = self.said();
        assert!(ended.success(), "{ended}: {said}");
        let held = said.lines().find_map(|line| line.strip_prefix("holds ")?.parse().ok());
        let held: u64 = held.unwrap_or_else(|| panic!("it did not get so far: {said}"));
        let records: Vec<_> = said.lines().filter(|line| line.starts_with("record ")).collect();
        let expected: Vec<_> = (1..=held).map(|n| format!("record {n} of the guest")).collect();
        assert_eq!(records, expected);
        held
    }

    /// What a guest in role `prove` said until it was off.
    pub fn proved(mut self) -> String {
        let ended = eventually("the guest is off", 180, || self.child.try_wait().unwrap());
        let said = self.said();
        assert!(ended.success(), "{ended}: {said}");
        said
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let said = self.said();
            let from = said.len().saturating_sub(2000);
            eprintln!("── console ──\n{}", said.get(from..).unwrap_or_default());
        }
    }
}
