//! Shapes of the documents: JSON that people can read.

use serde::{Deserialize, Serialize};

use crate::model::{BookmarkKind, DiskIndex, DiskName, MachineId, ServerId, SiteId, Timestamp};
use crate::store::SnapshotId;

/// `vault/site`: exists once a store is in use; a second site on the same store is refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteDocument {
    /// Which installation owns this store.
    pub site: SiteId,
    /// When it was made.
    pub created: Timestamp,
}

/// `vault/servers/<server>`: where a process server can be reached, and how loaded it is. Written by
/// that server alone, under the lease of the document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerDocument {
    /// Which.
    pub server: ServerId,
    /// `host:port` of its data port as agents and the sidecar reach it.
    pub address: String,
    /// When it last started.
    pub started: Timestamp,
    /// This life of its process, 32 hexadecimal digits.
    #[serde(default)]
    pub incarnation: String,
    /// Version of its program.
    #[serde(default)]
    pub version: String,
    /// Which cache directory it runs on, 32 hexadecimal digits: another one under the same name knows
    /// by it that somebody acted under that name.
    #[serde(default)]
    pub cache: String,
    /// It drains: nothing new is placed there.
    #[serde(default)]
    pub leaving: bool,
    /// What it carries.
    #[serde(default)]
    pub load: ServerLoad,
}

/// What a process server carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerLoad {
    /// Bytes of writes that its machines send a second, over about a minute.
    pub churn_bytes_per_s: u64,
    /// Machines that it serves.
    pub machines: u64,
    /// Fill of its cache log, 0 to 1.
    pub cache_fill: f64,
}

/// `vault/assignments/<machine>`: the wish which process server shall serve a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AssignmentDocument {
    /// Which machine.
    pub machine: MachineId,
    /// Which server; `None`: the least loaded.
    pub server: Option<ServerId>,
}

/// `machines/<machine>/machine`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineDocument {
    /// Which.
    pub machine: MachineId,
    /// When it was enrolled first.
    pub created: Timestamp,
    /// Data keys, ascending by id; the last one seals, all open.
    pub data_keys: Vec<WrappedKey>,
    /// Certificates issued for it.
    pub certificates: Vec<CertificateEntry>,
    /// How it is protected.
    pub policy: Policy,
}

/// A data key, encrypted under the key-encryption key (AES-256-GCM, the AAD names machine and id).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrappedKey {
    /// Number within the machine, from 1.
    pub id: u32,
    /// First 8 bytes of SHA-256 of the key-encryption key, hex: a wrong key file is named as such.
    pub wrapped_by: String,
    /// 12 bytes, hex.
    pub nonce: String,
    /// 32 bytes and tag, hex.
    pub sealed: String,
    /// When it was made.
    pub created: Timestamp,
}

/// A certificate issued for a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateEntry {
    /// SHA-256 of its DER form, hex.
    pub fingerprint: String,
    /// End of its life.
    pub not_after: Timestamp,
    /// Refused from now on.
    pub revoked: bool,
}

/// How a machine is protected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Seconds between bookmarks in the cloud log; 1 to 3600.
    pub bookmark_interval_s: u32,
    /// Seconds between snapshots on the seed disks; 60 to 86400 (tests may go lower by setting).
    pub snapshot_interval_s: u32,
    /// Deltas are kept at least this long, seconds: any bookmark inside can be recovered to.
    pub journal_window_s: u64,
    /// How long snapshots are kept and how dense; ascending by age.
    pub ladder: Vec<LadderStep>,
    /// RPO in seconds above which status warns.
    pub rpo_warn_s: u32,
    /// Nothing is folded: every single write in the journal window can be recovered to.
    pub keep_every_write: bool,
}

/// One step of the snapshot ladder: up to `age_s` old, keep one per `every_s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LadderStep {
    /// Age, seconds, counted from the newest point.
    pub age_s: u64,
    /// One snapshot per this many seconds; 0 keeps every one.
    pub every_s: u64,
}

impl Default for Policy {
    fn default() -> Self {
        let step = |age_s, every_s| LadderStep { age_s, every_s };
        Self {
            bookmark_interval_s: 5,
            snapshot_interval_s: 300,
            journal_window_s: 24 * 3600,
            ladder: vec![
                step(2 * 3600, 0),
                step(24 * 3600, 3600),
                step(7 * 86400, 2 * 3600),
                step(15 * 86400, 4 * 3600),
            ],
            rpo_warn_s: 60,
            keep_every_write: false,
        }
    }
}

/// `machines/<machine>/points`: what the applier did, and the snapshots that are recovery points.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PointsDocument {
    /// Which machine.
    pub machine: MachineId,
    /// Ownership of the seed disks; also their sequence number. Grows with each applier's start.
    pub applier_generation: u64,
    /// Epoch that is being applied; 0 before the first.
    pub epoch: u32,
    /// The seed disks of `epoch` hold everything through here; or, when they could not be brought
    /// forward, a later epoch begins right after it.
    pub applied: u64,
    /// Id of the delta that ends at `applied`, hex: a log in which another one ends there is not the
    /// one that was applied. `None` before the first, and when an epoch was left.
    pub applied_delta: Option<String>,
    /// The seed disks may hold parts of everything through here: no snapshot is a cut before
    /// `applied` has reached it. Written before the first page of a run is.
    pub applying: u64,
    /// The log may be cut up to here at any time: no recovery begins to rely on what is below.
    /// Written before the cut is made; only ever raised.
    pub truncate_through: u64,
    /// Snapshot points, ascending by sequence.
    pub snapshots: Vec<SnapshotPoint>,
    /// Ids of bookmarks that retention must keep.
    pub pinned: Vec<String>,
    /// A delta that could not be read, seed disks that are ahead, or a manifest that was set back:
    /// applying stopped before it, and why.
    pub quarantine: Option<String>,
}

/// One recovery point kept as snapshots of all disks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotPoint {
    /// The bookmark's id, hex.
    pub bookmark: String,
    /// The user's name for it, or empty.
    pub name: String,
    /// What it promises.
    pub kind: BookmarkKind,
    /// When, as far as the agent's and the process server's clock agree; never before an earlier
    /// point's.
    pub time: Timestamp,
    /// Where in the stream.
    pub sequence: u64,
    /// Its epoch.
    pub epoch: u32,
    /// One snapshot a disk.
    pub disks: Vec<SnapshotDisk>,
}

/// One disk of a snapshot point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotDisk {
    /// Its number in the stream.
    pub index: u16,
    /// Its name.
    pub name: DiskName,
    /// Its size.
    pub size_bytes: u64,
    /// The snapshot of its seed disk.
    pub snapshot: SnapshotId,
}

impl SnapshotDisk {
    /// Its number in the stream.
    #[must_use]
    pub fn disk(&self) -> DiskIndex {
        DiskIndex(self.index)
    }
}

/// `vault/tokens/<id>`: `id` is the first 16 hexadecimal digits of the token's SHA-256.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, tag = "use", rename_all = "kebab-case")]
pub enum TokenDocument {
    /// Lets its bearer call the sidecar's routes.
    Operator {
        /// SHA-256 of the token, hex.
        sha256: String,
        /// When it was made.
        created: Timestamp,
    },
    /// Lets its bearer enrol one machine, once.
    Enrol {
        /// SHA-256 of the token, hex.
        sha256: String,
        /// For whom.
        machine: MachineId,
        /// End of its life.
        expires: Timestamp,
        /// When it was used; a used token is refused.
        used: Option<Timestamp>,
    },
}

/// `machines/<machine>/pins/<id>`: a running recovery. Retention keeps what it needs until then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinDocument {
    /// The point being read.
    pub sequence: u64,
    /// The snapshot it starts from; 0 when it starts from the beginning of the log.
    pub base: u64,
    /// For people: when it ends if nobody renews it, by the recovering host's clock. Each renewal
    /// changes it; that is what retention looks at.
    pub expires: Timestamp,
}
