//! Settings that passed every check, with units in their types.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::{AzureUrl, MirrorTls, Prices, QemuAddress, RateSchedule, RemoteMirror};
use crate::model::{DiskName, MachineId, ServerId, SiteId};

/// Everything in `holdfast.toml`. Paths are absolute: relative ones are resolved against the file.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// This installation.
    pub site: SiteId,
    /// This process server.
    pub server: ServerId,
    /// The store.
    pub store: StoreUrl,
    /// Data port; 9443 by default. Port 0 lets the system choose (tests).
    pub listen: SocketAddr,
    /// Address that agents are told in `agent.toml`; `listen` unless set.
    pub advertise: String,
    /// Prometheus text and `/v1/status`; loopback by default.
    pub metrics_listen: SocketAddr,
    /// Directory where a running server writes `holdfast.pid`-like facts: `run/addresses.json`.
    pub run_directory: PathBuf,
    /// Certificate files of the server and the CA.
    pub tls: TlsFiles,
    /// The key-encryption key: 32 bytes as 64 hexadecimal digits in a file of mode 0600.
    pub key_file: PathBuf,
    /// Number of shards (threads with their own cache log); default: as many as have logs already, else
    /// cores, as far as cache and memory go round.
    pub shards: u16,
    /// Cache log.
    pub cache: CacheSettings,
    /// When a batch closes.
    pub batch: BatchSettings,
    /// Compression and encryption.
    pub seal: SealSettings,
    /// Bounds of its level.
    pub levels: LevelBounds,
    /// Uploading.
    pub upload: UploadSettings,
    /// Applying.
    pub apply: ApplySettings,
    /// Bounds against peers.
    pub limits: LimitSettings,
    /// Control API.
    pub sidecar: SidecarSettings,
    /// What requests to the store cost; without them no money is shown.
    pub prices: Option<Prices>,
}

/// Which store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// `dir:PATH`
    Dir(PathBuf),
    /// `azure:https://ACCOUNT.blob.core.windows.net/CONTAINER?…`
    Azure(Box<AzureUrl>),
}

impl std::fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dir(path) => write!(f, "dir:{}", path.display()),
            Self::Azure(url) => url.fmt(f),
        }
    }
}

/// Files of TLS, PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// Certificate of the private CA.
    pub ca_certificate: PathBuf,
    /// Its key; needed by `enroll` and the sidecar only.
    pub ca_key: PathBuf,
    /// Server certificate chain.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Certificate of the operator: CLI and sidecar use it towards process servers.
    pub operator_certificate: PathBuf,
    /// Its key.
    pub operator_key: PathBuf,
}

/// Cache log.
#[derive(Clone, Debug)]
pub struct CacheSettings {
    /// Where segments live.
    pub directory: PathBuf,
    /// Size of a segment; default 64 MiB.
    pub segment_bytes: u64,
    /// All segments together, over all shards; default 8 GiB.
    pub bytes_max: u64,
    /// Fill (0..=1) above which it is said that uploads are behind; default 0.5.
    pub warn_fill: f64,
    /// Fill above which credit shrinks; default 0.65.
    pub slow_fill: f64,
    /// Fill at which credit is withheld; default 0.85.
    pub stop_fill: f64,
}

impl CacheSettings {
    /// Where the log of a shard lies.
    #[must_use]
    pub fn shard_directory(&self, shard: u16) -> PathBuf {
        self.directory.join(format!("{SHARD}{shard}"))
    }

    /// How many shards have logs: one more than the highest number.
    ///
    /// # Errors
    /// When the directory is there and cannot be read.
    pub fn shards_found(&self) -> io::Result<u16> {
        let entries = match std::fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            entries => entries?,
        };
        let mut found = 0;
        for entry in entries {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(SHARD));
            let number = number.and_then(|number| number.parse::<u16>().ok());
            found = found.max(number.map_or(0, |number| number.saturating_add(1)));
        }
        Ok(found)
    }
}

/// What the directories of shards' logs are called, before their numbers.
const SHARD: &str = "shard-";

/// When a batch closes.
#[derive(Clone, Debug)]
pub struct BatchSettings {
    /// Payload bytes; default 8 MiB.
    pub bytes_max: u64,
    /// Age of its first record; default 1 s.
    pub age_max: Duration,
}

/// Compression and encryption.
#[derive(Clone, Debug)]
pub struct SealSettings {
    /// CPU threads; default: cores.
    pub threads: usize,
    /// Whether frames are compressed at all; default true.
    pub compress: bool,
    /// The usual zstd level; default 1.
    pub level: i32,
    /// Plaintext of a frame; default 256 KiB.
    pub frame_bytes: u32,
}

/// Between which zstd levels sealing adapts itself; [`SealSettings::level`] lies between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelBounds {
    /// Least: when the CPU is the bottleneck; default -5.
    pub min: i32,
    /// Most: when the line is, and the CPU idles; default 6.
    pub max: i32,
}

/// Between how many streams uploading adapts itself; both at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamBounds {
    /// Fewest.
    pub min: u32,
    /// Most.
    pub max: u32,
}

/// Uploading.
#[derive(Clone, Debug)]
pub struct UploadSettings {
    /// Objects in flight at once; default 2 to 8. Memory: `streams.max × batch.bytes_max`.
    pub streams: StreamBounds,
    /// Bytes a second that uploads may take, by the hour of the week; default: all there are.
    pub rate: RateSchedule,
    /// Bytes of a staged block; default 4 MiB.
    pub block_bytes: u32,
    /// Unnamed deltas older than this are removed; default 1 h.
    pub orphan_grace: Duration,
}

/// Applying.
#[derive(Clone, Debug)]
pub struct ApplySettings {
    /// Whether `serve` applies; default true.
    pub enabled: bool,
    /// Shortest pause between two turns of a machine: what was published meanwhile is applied
    /// together; default 5 s.
    pub interval: Duration,
    /// Longest pause between looks at a machine on which nothing happens, in `holdfast apply`;
    /// default 5 min.
    pub idle_interval_max: Duration,
    /// Page writes in flight for one machine; default 4.
    pub streams: usize,
}

/// Bounds against peers.
#[derive(Clone, Debug)]
pub struct LimitSettings {
    /// Connections over all; default 4,096.
    pub connections_max: usize,
    /// Connections that have not finished TLS and HTTP yet; default 256.
    pub handshakes_max: usize,
    /// Time for TLS and the HTTP request; default 5 s.
    pub handshake_timeout: Duration,
    /// Silence after which a connection is closed; default 30 s.
    pub idle_timeout: Duration,
    /// Payload bytes received and not yet durable, over all machines; default 128 MiB.
    pub receive_bytes_max: u64,
    /// Credit of one connection; default 16 MiB.
    pub credit_bytes: u64,
    /// Memory of QUIC over all machines, beside `receive_bytes_max`; default 48 MiB.
    pub quic_bytes_max: u64,
}

/// Control API.
#[derive(Clone, Debug)]
pub struct SidecarSettings {
    /// HTTPS port; default 127.0.0.1:9444.
    pub listen: SocketAddr,
    /// Time an enrolment token is good for; default 1 h.
    pub token_ttl: Duration,
    /// Life of a machine's certificate; default 365 days.
    pub certificate_ttl: Duration,
    /// Shortest snapshot interval that a policy may ask for; default 60 s.
    pub snapshot_interval_min_s: u32,
}

/// Records in the cache log take at most this part of `cache.bytes_max` in memory: with it a record
/// of 4 KiB takes as much of the one as of the other.
pub const RECORDS_MEMORY_PART: u64 = 64;

impl ServerSettings {
    /// Most memory that the records of a full cache log take, bytes; part of
    /// [`ServerSettings::memory_bytes_max`].
    #[must_use]
    pub fn records_bytes_max(&self) -> u64 {
        self.cache.bytes_max / RECORDS_MEMORY_PART
    }

    /// Most memory that a process server takes with these settings, bytes. The formula stands in
    /// `docs/configuration.md`.
    #[must_use]
    pub fn memory_bytes_max(&self) -> u64 {
        const CONNECTION: u64 = 50 << 10; // TLS and session of an idle agent, and its machine
        const HANDSHAKE: u64 = 68 << 10; // a ClientHello that trickles in
        const APPLYING: u64 = 2; // machines that are applied at once
        const RUN: u64 = 16 << 20; // source bytes of a run, unless one delta has more
        const BASE: u64 = 20 << 20; // code, runtimes, indexes, metrics
        let (limits, streams) = (&self.limits, u64::from(self.upload.streams.max));
        let seal = 2 * self.batch.bytes_max + 4 * u64::from(self.seal.frame_bytes);
        BASE + limits.receive_bytes_max
            + limits.quic_bytes_max
            + limits.connections_max as u64 * CONNECTION
            + limits.handshakes_max as u64 * HANDSHAKE
            + self.seal.threads as u64 * seal
            + streams * self.batch.bytes_max
            + self.records_bytes_max()
            + APPLYING * 2 * RUN.max(self.batch.bytes_max) // frames, and bodies joined from them
    }
}

/// Everything in `agent.toml`.
#[derive(Clone, Debug)]
pub struct AgentSettings {
    /// This machine.
    pub machine: MachineId,
    /// Process servers, `host:port`, in order of preference.
    pub servers: Vec<String>,
    /// Name that every server's certificate must carry; `None`: the host that was connected to.
    pub server_name: Option<String>,
    /// Silence of a process server that owes something, after which the next one is tried; default
    /// 5 s.
    pub server_timeout: Duration,
    /// CA certificate, PEM.
    pub ca_certificate: PathBuf,
    /// Own certificate chain, PEM.
    pub certificate: PathBuf,
    /// Own key, PEM.
    pub key: PathBuf,
    /// Where bitmaps, sockets and status live.
    pub state_directory: PathBuf,
    /// Acknowledge writes at once or when durable at the server.
    pub mode: AgentMode,
    /// What carries the stream; default `auto`.
    pub transport: TransportChoice,
    /// How QUIC finds out how fast it may send; default `bbr`.
    pub quic_congestion: Congestion,
    /// Most bytes held for resending; default 64 MiB. Past it the agent goes to bitmap mode.
    pub buffer_bytes_max: u64,
    /// Most bytes a second that are sent to a process server.
    pub bandwidth_bytes_per_second_max: Option<u64>,
    /// Bytes that one bit of the write-intent bitmap stands for; default 64 KiB.
    pub bitmap_chunk_bytes: u32,
    /// What is shown to QEMU on another host, and what it has to show.
    pub mirror: MirrorTls,
    /// Bytes of the ring through which eBPF capture copies writes; kernel memory, default 256 MiB.
    pub ebpf_ring_bytes: u32,
    /// How the application is quiesced for application-consistent bookmarks, if it can be.
    pub application: Option<ApplicationHook>,
    /// Disks.
    pub disks: Vec<AgentDisk>,
}

/// What is done around an application-consistent bookmark: commands (program and arguments, without a
/// shell), or a word with the agent inside a QEMU guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApplicationHook {
    /// Quiesces the application; the bookmark is placed when it has ended well.
    pub freeze: Vec<String>,
    /// Lets it go on; run whatever became of `freeze`.
    pub thaw: Vec<String>,
    /// Channel to the guest's agent, which is asked to freeze and thaw instead.
    pub guest_agent: Option<QemuAddress>,
    /// Time for each of them; default 10 s.
    pub timeout: Duration,
}

/// When a write is acknowledged to the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentMode {
    /// When it is on the source disk.
    Async,
    /// When it is durable at the process server, too.
    Sync,
}

/// What carries an agent's stream to the process server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportChoice {
    /// TLS over TCP.
    Tcp,
    /// QUIC over UDP.
    Quic,
    /// TCP, or QUIC where TCP does not get through.
    Auto,
}

/// How QUIC's sender reacts to the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Congestion {
    /// Models the path's rate and delay; a lost packet by itself changes nothing.
    Bbr,
    /// Slows down at every loss, as most of TCP does.
    Cubic,
}

/// One disk of an agent.
#[derive(Clone, Debug)]
pub struct AgentDisk {
    /// Its name.
    pub name: DiskName,
    /// File or block device.
    pub path: PathBuf,
    /// How writes are captured.
    pub capture: Capture,
}

/// How writes are captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capture {
    /// The agent serves the disk over NBD at this socket.
    Nbd {
        /// Unix socket.
        socket: PathBuf,
    },
    /// The agent presents the disk as a file `mount/NAME.img`.
    Fuse {
        /// Directory, of this disk or several.
        mount: PathBuf,
    },
    /// A program in the kernel sees the requests of an existing block device.
    Ebpf,
    /// The disk of a QEMU guest, mirrored to the agent.
    Mirror {
        /// QEMU's monitor (QMP), the agent's alone.
        monitor: QemuAddress,
        /// The disk's device there.
        device: String,
        /// How QEMU on another host and the agent reach each other.
        remote: Option<RemoteMirror>,
    },
    /// The agent reads the disk again and again, and compares.
    Scan(ScanSettings),
}

/// How a disk is scanned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanSettings {
    /// Rest between the end of a pass and the next.
    pub interval: Duration,
    /// Most bytes a second that passes read.
    pub read_bytes_per_second_max: Option<u64>,
    /// A snapshot is read instead of the disk.
    pub hook: Option<SnapshotHook>,
}

/// How a snapshot of a disk is made for a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotHook {
    /// Program and arguments that make it.
    pub snapshot: Vec<String>,
    /// Program and arguments that drop it.
    pub release: Vec<String>,
    /// Where it can be read when it was made.
    pub path: PathBuf,
    /// Time for each program.
    pub timeout: Duration,
}
