//! The rules of `agent.toml`.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use super::check::Check;
use super::qemu;
use super::raw::{RawAgent, RawApplication, RawDisk, RawScan};
use super::{
    AgentDisk, AgentMode, AgentSettings, ApplicationHook, Capture, Congestion, ScanSettings,
    SettingsError, SnapshotHook, TransportChoice,
};
use crate::model::{DISKS_MAX, DiskName, WRITE_BYTES_MAX};

/// Where a running agent is asked, in its state directory. No disk has a `-` in its name, and so none has this
/// socket by default.
pub const AGENT_CONTROL_SOCKET: &str = "agent-control.sock";
/// Longest path of a Unix socket, bytes (unix(7): `sun_path` has 108 with its NUL).
const SOCKET_PATH_BYTES_MAX: usize = 107;

pub(super) fn check(raw: RawAgent, path: &Path) -> Result<AgentSettings, SettingsError> {
    let mut c = Check::new(path)?;
    let servers = raw.servers.unwrap_or_default();
    let cure = "write servers = [\"HOST:9443\"]";
    c.relation(
        !servers.is_empty(),
        "servers",
        "(not set)",
        "must name at least one process server",
        cure,
    );
    for server in &servers {
        c.host_port("servers", server);
    }
    let twice = servers.iter().enumerate().find(|(at, server)| servers[..*at].contains(server));
    if let Some((_, twice)) = twice {
        c.violation("servers", format!("{twice:?}"), "must be named once", "leave one of them out");
    }
    if let Some(name) = &raw.server_name {
        c.host_port("server_name", &format!("{name}:1"));
    }
    let state_directory = c.path("state_directory", raw.state_directory.as_deref(), ".");
    let settings = AgentSettings {
        machine: c.name("machine", raw.machine.as_deref()),
        servers,
        server_name: raw.server_name,
        server_timeout: Duration::from_millis(c.number(
            "server_timeout_ms",
            raw.server_timeout_ms,
            5_000,
            1_000..=120_000,
        )),
        ca_certificate: c.path("ca_certificate", raw.ca_certificate.as_deref(), "ca.crt"),
        certificate: c.path("certificate", raw.certificate.as_deref(), "machine.crt"),
        key: c.path("key", raw.key.as_deref(), "machine.key"),
        mode: mode(&mut c, raw.mode.as_deref()),
        transport: transport(&mut c, raw.transport.as_deref()),
        quic_congestion: congestion(&mut c, raw.quic_congestion.as_deref()),
        buffer_bytes_max: c.number(
            "buffer_bytes_max",
            raw.buffer_bytes_max,
            64 << 20,
            4 * u64::from(WRITE_BYTES_MAX)..=64 << 30,
        ),
        bitmap_chunk_bytes: c.narrow(
            "bitmap_chunk_bytes",
            raw.bitmap_chunk_bytes,
            64 << 10,
            4 << 10..=u64::from(WRITE_BYTES_MAX),
        ),
        bandwidth_bytes_per_second_max: raw.bandwidth_bytes_per_second_max.map(|rate| {
            c.number("bandwidth_bytes_per_second_max", Some(rate), 0, 64 << 10..=1 << 40)
        }),
        mirror: qemu::tls(&mut c, &raw.mirror),
        ebpf_ring_bytes: ring_bytes(&mut c, raw.ebpf.ring_bytes),
        application: raw.application.map(|raw| application(&mut c, raw)),
        disks: disks(&mut c, &raw.disk, &state_directory),
        state_directory,
    };
    let chunk = settings.bitmap_chunk_bytes;
    c.relation(
        chunk.is_power_of_two(),
        "bitmap_chunk_bytes",
        chunk,
        "must be a power of two",
        "leave it out for the default, 65536",
    );
    c.finish(settings)
}

fn application(c: &mut Check, raw: RawApplication) -> ApplicationHook {
    let guest_agent = raw.qga.as_deref().map(|text| qemu::address(c, "application.qga", text));
    for (key, command) in [("application.freeze", &raw.freeze), ("application.thaw", &raw.thaw)] {
        if guest_agent.is_some() {
            let rule = "must not be set beside qga";
            c.relation(
                command.is_empty(),
                key,
                format!("{command:?}"),
                rule,
                "leave one of them out",
            );
            continue;
        }
        let named = command.first().is_some_and(|program| !program.is_empty());
        let rule = "must name a program, and its arguments";
        c.relation(named, key, format!("{command:?}"), rule, "write [\"PROGRAM\", \"ARGUMENT\"]");
    }
    let timeout = c.number("application.timeout_ms", raw.timeout_ms, 10_000, 100..=20_000);
    let timeout = Duration::from_millis(timeout);
    ApplicationHook { freeze: raw.freeze, thaw: raw.thaw, guest_agent, timeout }
}

fn ring_bytes(c: &mut Check, value: Option<i64>) -> u32 {
    let bytes: u32 = c.narrow("ebpf.ring_bytes", value, 256 << 20, 256 << 10..=1 << 30);
    let rule = "must be a power of two";
    let cure = "leave it out for the default, 268435456";
    c.relation(bytes.is_power_of_two(), "ebpf.ring_bytes", bytes, rule, cure);
    bytes
}

fn mode(c: &mut Check, value: Option<&str>) -> AgentMode {
    match value {
        None | Some("async") => AgentMode::Async,
        Some("sync") => AgentMode::Sync,
        Some(other) => {
            c.violation(
                "mode",
                format!("{other:?}"),
                "must be \"async\" or \"sync\"",
                "leave it out for \"async\"",
            );
            AgentMode::Async
        }
    }
}

fn transport(c: &mut Check, value: Option<&str>) -> TransportChoice {
    match value {
        None | Some("tcp") => TransportChoice::Tcp,
        Some("auto") => TransportChoice::Auto,
        Some("quic") => TransportChoice::Quic,
        Some(other) => {
            c.violation(
                "transport",
                format!("{other:?}"),
                "must be \"tcp\", \"quic\" or \"auto\"",
                "leave it out for \"tcp\"",
            );
            TransportChoice::Tcp
        }
    }
}

fn congestion(c: &mut Check, value: Option<&str>) -> Congestion {
    match value {
        None | Some("bbr") => Congestion::Bbr,
        Some("cubic") => Congestion::Cubic,
        Some(other) => {
            let rule = "must be \"bbr\" or \"cubic\"";
            let cure = "leave it out for \"bbr\"";
            c.violation("quic_congestion", format!("{other:?}"), rule, cure);
            Congestion::Bbr
        }
    }
}

fn disks(c: &mut Check, raw: &[RawDisk], state_directory: &Path) -> Vec<AgentDisk> {
    c.relation(
        (1..=DISKS_MAX).contains(&raw.len()),
        "disk",
        format!("{} tables", raw.len()),
        &format!("must be 1 to {DISKS_MAX} [[disk]] tables"),
        "add one for each disk that is to be protected",
    );
    let mut names = BTreeSet::new();
    let mut sockets = BTreeSet::from([state_directory.join(AGENT_CONTROL_SOCKET)]);
    let mut disks = Vec::new();
    for (number, disk) in raw.iter().enumerate() {
        let key = |name: &str| format!("disk[{number}].{name}");
        let name: DiskName = c.name(&key("name"), disk.name.as_deref());
        let first = names.insert(name.clone());
        c.relation(
            first,
            &key("name"),
            &name,
            "must be unique within the machine",
            "choose another",
        );
        if disk.capture.as_deref() != Some("mirror") {
            c.required(&key("path"), disk.path.as_deref(), "name the file or block device");
        }
        let path = c.path(&key("path"), disk.path.as_deref(), "disk");
        let capture = capture(c, &key, &name, disk, state_directory);
        if let Capture::Nbd { socket } = &capture {
            let free = !first || sockets.insert(socket.clone());
            let rule = "must be the socket of no other disk, nor the agent's own";
            c.relation(free, &key("socket"), socket.display(), rule, "choose another path");
        }
        disks.push(AgentDisk { name, path, capture });
    }
    let scanned = |disk: &AgentDisk| matches!(disk.capture, Capture::Scan(_));
    c.relation(
        disks.len() == 1 || !disks.iter().any(scanned),
        "disk.capture",
        "\"scan\"",
        "can only be the machine's one disk: a point of it is older than those of others",
        "enrol a machine of its own for the disk that is scanned",
    );
    let seen = disks.iter().filter(|disk| disk.capture == Capture::Ebpf).count();
    c.relation(
        seen == 0 || seen == disks.len(),
        "disk.capture",
        "\"ebpf\"",
        "must be that of all disks of the machine or of none: one ring orders them",
        "use it for the others as well",
    );
    qemu::together(c, &disks);
    disks
}

fn scan(c: &mut Check, key: &dyn Fn(&str) -> String, raw: &RawDisk) -> ScanSettings {
    let empty = RawScan::default();
    let raw = raw.scan.as_ref().unwrap_or(&empty);
    let key = |name: &str| key(&format!("scan.{name}"));
    let seconds = c.number(&key("interval_s"), raw.interval_s, 300, 1..=86_400);
    let rate = raw.read_bytes_per_second_max;
    let rate_key = key("read_bytes_per_second_max");
    let rate = rate.map(|rate| c.number(&rate_key, Some(rate), 0, 1 << 16..=1 << 40));
    let timeout = c.number(&key("timeout_ms"), raw.timeout_ms, 60_000, 100..=3_600_000);
    let hook = match (&raw.snapshot, &raw.release, &raw.path) {
        (None, None, None) => None,
        (snapshot, release, path) => {
            for (name, command) in [("snapshot", snapshot), ("release", release)] {
                let program = command.as_ref().and_then(|command| command.first());
                c.relation(
                    program.is_some_and(|program| !program.is_empty()),
                    &key(name),
                    format!("{:?}", command.as_deref().unwrap_or_default()),
                    "must name a program where one of snapshot, release and path is set",
                    "write [\"PROGRAM\", \"ARGUMENT\"]",
                );
            }
            c.required(&key("path"), path.as_deref(), "say where the snapshot can be read");
            Some(SnapshotHook {
                snapshot: snapshot.clone().unwrap_or_default(),
                release: release.clone().unwrap_or_default(),
                path: c.path(&key("path"), path.as_deref(), "snapshot"),
                timeout: Duration::from_millis(timeout),
            })
        }
    };
    let interval = Duration::from_secs(seconds);
    ScanSettings { interval, read_bytes_per_second_max: rate, hook }
}

fn capture(
    c: &mut Check,
    key: &dyn Fn(&str) -> String,
    name: &DiskName,
    raw: &RawDisk,
    state_directory: &Path,
) -> Capture {
    match raw.capture.as_deref() {
        None | Some("nbd") => {}
        Some("fuse") => {
            let default = state_directory.join("fuse");
            let mount = raw.mount.as_deref();
            let mount = mount.map_or(default, |text| c.path(&key("mount"), Some(text), ""));
            return Capture::Fuse { mount };
        }
        Some("ebpf") => return Capture::Ebpf,
        Some("mirror") => return mirror(c, key, raw),
        Some("scan") => return Capture::Scan(scan(c, key, raw)),
        Some(other) => {
            let rule = "must be \"nbd\", \"fuse\", \"ebpf\", \"mirror\" or \"scan\"";
            let cure = "leave it out for \"nbd\"";
            c.violation(&key("capture"), format!("{other:?}"), rule, cure);
        }
    }
    let default = state_directory.join(format!("{name}.sock"));
    let socket = raw.socket.as_deref();
    let socket = socket.map_or(default, |text| c.path(&key("socket"), Some(text), ""));
    c.relation(
        socket.as_os_str().as_bytes().len() <= SOCKET_PATH_BYTES_MAX,
        &key("socket"),
        socket.display(),
        &format!("must be at most {SOCKET_PATH_BYTES_MAX} bytes long"),
        "choose a shorter state_directory or socket",
    );
    Capture::Nbd { socket }
}

fn mirror(c: &mut Check, key: &dyn Fn(&str) -> String, raw: &RawDisk) -> Capture {
    let monitor = raw.qmp.as_deref();
    c.required(
        &key("qmp"),
        monitor,
        "name QEMU's monitor, a socket (-qmp unix:PATH,...) or tls:HOST:PORT",
    );
    let device = raw.device.clone();
    c.required(&key("device"), device.as_deref(), "name the disk's device in QEMU");
    let monitor = qemu::address(c, &key("qmp"), monitor.unwrap_or("qmp.sock"));
    let remote = qemu::remote(c, key, raw, &monitor);
    Capture::Mirror { monitor, device: device.unwrap_or_default(), remote }
}
